"""The list of custom node packs: nodes.json, or a snapshot of ComfyUI-Manager or comfy-cli.

Ours is a list of `{"id", "version"}` (Comfy Registry) and `{"git", "commit"}` under `{"version": 1,
"nodes": [...]}`. Snapshots are read as these tools write them: `cnr_custom_nodes`,
`git_custom_nodes` and `file_custom_nodes`, in YAML below `custom_nodes` (manager_core.py,
get_current_snapshot; comfy-cli's comfy-lock.yaml), or `customNodes` of ComfyUI Desktop's export.
Disabled packs and ComfyUI-Manager itself are skipped, as by these tools.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from bootstrap.config import Settings
from bootstrap.core.findings import Finding, Severity, error, info
from bootstrap.core.redact import masked
from bootstrap.core.text import shell_quote
from bootstrap.environment.node_packs import COMMIT
from bootstrap.models.manifest import too_many
from bootstrap.models.manifest_entry import fault_of
from bootstrap.models.manifest_file import (
    ManifestKind,
    Unreadable,
    find_manifest,
    read_data,
    write_data,
)
from bootstrap.net import DownloadError
from bootstrap.net.addresses import take_apart
from bootstrap.volume import Layout

CODES = {
    "nodes.manifest_shape": "The file is neither a manifest of nodes nor a snapshot",
    "nodes.manifest_entry": "An entry for a custom node pack has an invalid value",
    "nodes.manifest_twice": "Two entries put different packs into one folder",
    "nodes.not_pinned": "An entry does not say which commit or version of a pack",
    "nodes.no_address": "A snapshot lists a single file without an address to fetch it from",
}
NODES = ManifestKind("NODES_MANIFEST", ("nodes.json", "nodes.yaml", "nodes.yml"), "nodes")
VERSION = 1
MOST_PACKS = 500
REGISTRY_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_VERSION = re.compile(r"[0-9][0-9A-Za-z.+-]{0,63}")
_REF = re.compile(r"[\w.-]{1,100}")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_SCP = re.compile(r"(?:ssh://)?git@(?P<host>[\w.-]+)[:/](?P<path>[\w./~-]+)")
_KNOWN = frozenset("id version git commit ref directory hash".split())
_SNAPSHOT = ("cnr_custom_nodes", "git_custom_nodes", "file_custom_nodes")
_MANAGER = "comfyui-manager"
_HOW = (
    'Write {"version": 1, "nodes": [...]}, or give a snapshot of ComfyUI-Manager; '
    "`comfyui-worker nodes add` makes one."
)


@dataclass(frozen=True)
class RegistryPin:
    """A version of a pack in the Comfy Registry; `sha256` of its archive, lower case hex."""

    id: str
    version: str
    sha256: str | None = None

    def __str__(self) -> str:
        return f"{self.id}@{self.version}"


@dataclass(frozen=True)
class GitPin:
    """A commit of a repository; `ref` is the branch or tag it was added from."""

    url: str
    commit: str
    ref: str | None = None

    def __str__(self) -> str:
        return f"{self.url}@{self.commit}"


@dataclass(frozen=True)
class PackSpec:
    """A listed pack. `name` is its folder in custom_nodes; `extra` has unknown fields, kept
    unchanged; `where` names the entry."""

    name: str
    pin: RegistryPin | GitPin
    extra: Mapping[str, Any] = field(default_factory=dict)
    where: str = ""

    def as_entry(self) -> dict[str, Any]:
        """This as a manifest's entry."""
        pin = self.pin
        if isinstance(pin, RegistryPin):
            entry = {"id": pin.id, "version": pin.version, "hash": pin.sha256}
            usual = pin.id
        else:
            entry = {"git": pin.url, "commit": pin.commit, "ref": pin.ref}
            usual = repository_name(pin.url)
        if self.name != usual:
            entry["directory"] = self.name
        return {**{k: v for k, v in entry.items() if v is not None}, **self.extra}


@dataclass(frozen=True)
class NodeManifest:
    """The packs of a manifest or snapshot. Entries with an error are left out; `findings` has all
    errors. `path` is the file, None if the variable has the text itself."""

    packs: tuple[PackSpec, ...] = ()
    findings: tuple[Finding, ...] = ()
    path: Path | None = None


def load_nodes(setting: str | None, root: Path, allow_http: bool = False) -> NodeManifest | None:
    """The manifest of `setting` (NODES_MANIFEST); None if there is none."""
    source = find_manifest(setting, root, NODES)
    if source is None:
        return None
    label = NODES.variable if isinstance(source, str) else str(source)
    path = None if isinstance(source, str) else source
    try:
        found = parse_nodes(read_data(source, NODES), label, allow_http)
    except Unreadable as problem:
        return NodeManifest(findings=(problem.finding(),), path=path)
    return NodeManifest(found.packs, found.findings, path)


def nodes_wanted_here(settings: Settings, layout: Layout) -> NodeManifest | None:
    """The manifest of NODES_MANIFEST, or the volume's own."""
    http = settings.allow_private_download_urls
    return load_nodes(settings.nodes_manifest, layout.root, http)


def parse_nodes(data: Any, label: str, allow_http: bool = False) -> NodeManifest:
    """The packs of a decoded manifest or snapshot. `label` names it in findings; all faults of all
    entries are reported together."""
    entries = _entries_in(data)
    if isinstance(entries, str):
        message = f"{label}: {entries}."
        return NodeManifest(findings=(error("nodes.manifest_shape", message, _HOW),))
    reader = _Reader(label, allow_http)
    for where, entry in islice(entries, MOST_PACKS):
        reader.read(where, entry)
    if any(True for _ in entries):
        reader.findings.append(too_many(label, MOST_PACKS, "packs"))
    return NodeManifest(tuple(reader.packs.values()), tuple(reader.findings))


Entries = Iterator[tuple[str, Any]]


def _entries_in(data: Any) -> Entries | str:
    """(where, entry in our form) for all packs; else why it is not a manifest."""
    if not isinstance(data, Mapping):
        return "it is not a JSON object"
    if isinstance(data.get("custom_nodes"), Mapping):
        data = data["custom_nodes"]
    if any(key in data for key in _SNAPSHOT):
        return _in_snapshot(data)
    snapshots = data.get("snapshots")
    if isinstance(snapshots, list):
        if len(snapshots) != 1 or not isinstance(snapshots[0], Mapping):
            return f"it holds {len(snapshots)} snapshots, and one is read"
        data = snapshots[0]
    if isinstance(data.get("customNodes"), list):
        return _in_desktop(data["customNodes"])
    nodes = data.get("nodes")
    if not isinstance(nodes, list):
        return "it has no `nodes`"
    if "links" in data or "last_node_id" in data:
        return "it is a workflow (`comfyui-worker nodes add --from FILE` adds what it needs)"
    if data.get("version") != VERSION:
        return f"`version` is {data.get('version')!r:.40}; this worker knows {VERSION}"
    return ((f"nodes[{index}]", entry) for index, entry in enumerate(nodes))


def _in_snapshot(data: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, version in _items(data.get("cnr_custom_nodes")):
        if _MANAGER not in key.lower():
            yield f"cnr_custom_nodes, {key}", {"id": key, "version": version}
    for url, found in _items(data.get("git_custom_nodes")):
        found = found if isinstance(found, Mapping) else {}
        if not found.get("disabled") and _MANAGER not in url.lower():
            yield f"git_custom_nodes, {url}", {"git": url, "commit": found.get("hash")}
    files = data.get("file_custom_nodes")
    for found in files if isinstance(files, list) else []:
        if isinstance(found, Mapping) and not found.get("disabled"):
            yield "file_custom_nodes", {"file": str(found.get("filename"))}


def _items(value: Any) -> list[tuple[str, Any]]:
    return [(str(k), v) for k, v in value.items()] if isinstance(value, Mapping) else []


def _in_desktop(nodes: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    for index, found in enumerate(nodes):
        where = f"customNodes[{index}]"
        if not isinstance(found, Mapping) or found.get("enabled") is False:
            continue
        more = {"directory": found["dirName"]} if found.get("dirName") else {}
        if found.get("type") == "cnr" and _MANAGER not in str(found.get("id")).lower():
            yield where, {"id": found.get("id"), "version": found.get("version"), **more}
        elif found.get("type") == "git" and _MANAGER not in str(found.get("url")).lower():
            yield where, {"git": found.get("url"), "commit": found.get("commit"), **more}
        elif found.get("type") == "file":
            yield where, {"file": str(found.get("dirName") or found.get("id"))}


class _Reader:
    def __init__(self, label: str, allow_http: bool) -> None:
        self.label = label
        self.allow_http = allow_http
        self.packs: dict[str, PackSpec] = {}
        self.findings: list[Finding] = []

    def read(self, where: str, entry: Any) -> None:
        """One entry, whatever it is."""
        if isinstance(entry, Mapping) and isinstance(entry.get("file"), str):
            self.findings.append(_single_file(self.label, entry["file"]))
            return
        try:
            spec = read_entry(entry, where, self.allow_http)
        except DownloadError as problem:
            self._complain(problem.code, where, problem.message, problem.fix)
            return
        earlier = self.packs.setdefault(spec.name.casefold(), spec)
        if earlier.pin != spec.pin:
            self._complain(
                "nodes.manifest_twice",
                where,
                f"{earlier.where} asks for {earlier.pin} in the folder {spec.name} already.",
                "Remove one of them, or give one another `directory`.",
            )

    def _complain(self, code: str, where: str, message: str, fix: str) -> None:
        text = f"{self.label}, {where}: {message}"
        self.findings.append(Finding(code, Severity.ERROR, text, fix, details={"entry": where}))


def _single_file(label: str, name: str) -> Finding:
    return info(
        "nodes.no_address",
        f"{label}: {name} is a single file, and the snapshot does not say where it is from.",
        "Copy it into custom_nodes on the volume, if it is not there.",
        file=name,
    )


def read_entry(entry: Any, where: str, allow_http: bool = False) -> PackSpec:
    """The entry as a spec. Raises DownloadError for its first fault."""
    if not isinstance(entry, Mapping):
        raise _bad(f"it is {type(entry).__name__}, not an object", "Write {...}.")
    if ("git" in entry) == ("id" in entry):
        fix = "Give `id` and `version` (Comfy Registry), or `git` and `commit`."
        raise _bad("it needs one of `id` and `git`", fix)
    pin, usual = _git(entry, allow_http) if "git" in entry else _registry(entry)
    name = _text(entry, "directory") or usual
    problem = fault_of(name)
    if name.endswith((".disabled", ".py")) or name == "__pycache__":
        problem = f"is {name!r}, which ComfyUI does not load"
    if problem:
        raise _bad(f"`directory` {problem}", "Give a folder's plain name.")
    extra = {str(k): v for k, v in entry.items() if k not in _KNOWN}
    return PackSpec(name, pin, extra, where)


def _registry(entry: Mapping[str, Any]) -> tuple[RegistryPin, str]:
    pack, version = _text(entry, "id") or "", _text(entry, "version") or ""
    check_id(pack)
    if not _VERSION.fullmatch(version):
        raise _not_pinned(f"`version` of {pack}", version, "a version", pack)
    digest = _text(entry, "hash")
    if digest is not None and not _SHA256.fullmatch(digest):
        raise _bad("`hash` is not a SHA-256", "Give 64 hexadecimal digits, or leave it out.")
    return RegistryPin(pack, version, digest.lower() if digest else None), pack


def check_id(pack: str) -> None:
    """Raises DownloadError if it is not an id of the Comfy Registry."""
    if not REGISTRY_ID.fullmatch(pack):
        raise _bad(f"`id` is {pack[:80]!r}", "Give the id that registry.comfy.org shows.")


def _git(entry: Mapping[str, Any], allow_http: bool) -> tuple[GitPin, str]:
    url = repository_url(_text(entry, "git") or "", allow_http)
    commit = (_text(entry, "commit") or "").lower()
    if not COMMIT.fullmatch(commit):
        ref = _text(entry, "commit") or _text(entry, "ref") or ""
        address = f"{url}@{ref}" if _REF.fullmatch(ref) else url
        raise _not_pinned(f"`commit` of {url}", commit, "a whole commit", address)
    return GitPin(url, commit, _text(entry, "ref")), repository_name(url)


def _not_pinned(what: str, given: str, wanted: str, pack: str) -> DownloadError:
    why = f"is {given[:70]!r}, which is not {wanted}" if given else "is missing"
    fix = f"Pin it: `{shell_quote('comfyui-worker', 'nodes', 'add', pack)}`."
    return DownloadError("nodes.not_pinned", f"{what} {why}.", fix)


def repository_url(address: str, allow_http: bool = False) -> str:
    """The https address of a repository in any notation (`git@host:owner/name.git`), so that
    spellings of one repository are equal. Raises DownloadError."""
    scp = _SCP.fullmatch(address)
    url = f"https://{scp['host']}/{scp['path']}" if scp else address
    url = url.rstrip("/").removesuffix(".git")
    target = take_apart(url)
    if target.scheme != "https" and not allow_http:
        fix = "Use https; for a server of your own set ALLOW_PRIVATE_DOWNLOAD_URLS=true."
        raise _bad(f"{url} is plain http", fix)
    if "?" in url or "#" in url or target.path in ("", "/"):
        fix = "Give it as https://github.com/owner/name."
        raise _bad(f"{masked(url)[:200]!r} is not the address of a repository", fix)
    return url


def repository_name(url: str) -> str:
    """The folder that git would clone it into."""
    return url.rpartition("/")[2]


def _text(entry: Mapping[str, Any], key: str) -> str | None:
    value = entry.get(key)
    if value is None or value == "":
        return None
    if not isinstance(value, str) or any("\ud800" <= c <= "\udfff" for c in value):
        raise _bad(f"`{key}` is {masked(repr(value)):.80}, not a text", "Put quotes.")
    return value.strip()


def _bad(why: str, fix: str) -> DownloadError:
    return DownloadError("nodes.manifest_entry", f"{why}.", fix)


def add_packs(path: Path, specs: Sequence[PackSpec]) -> list[PackSpec]:
    """Write `specs` into our manifest at `path`, replacing entries for the same folder; returns
    those that changed it. Other entries and unknown fields stay. Raises Unreadable and OSError."""
    data: Any = {"version": VERSION, "nodes": []}
    if os.path.exists(path):
        data = read_data(path, NODES)
        if not isinstance(data, dict) or not isinstance(data.get("nodes"), list):
            raise _not_ours(path)
        if isinstance(_entries_in(data), str):
            raise _not_ours(path)
    changed = [spec for spec in specs if _put(data["nodes"], spec)]
    if changed:
        write_data(path, data)
    return changed


def _not_ours(path: Path) -> Unreadable:
    return Unreadable(
        "nodes.manifest_shape",
        f"{path}: entries cannot be added to it.",
        "Give another file with --manifest; a snapshot stays as its tool wrote it.",
    )


def _put(entries: list[Any], spec: PackSpec) -> bool:
    new = spec.as_entry()
    for index, old in enumerate(entries):
        try:
            same = read_entry(old, "", True).name.casefold() == spec.name.casefold()
        except DownloadError:
            same = _names_same(old, new)
        if same:
            entry = {**{k: v for k, v in old.items() if k not in _KNOWN}, **new}
            if entry == old:
                return False
            entries[index] = entry
            return True
    entries.append(new)
    return True


def _names_same(old: Any, new: Mapping[str, Any]) -> bool:
    """Is it an unpinned entry for the same pack?"""
    return isinstance(old, Mapping) and any(
        key in new and str(old.get(key)).rstrip("/").removesuffix(".git") == new[key]
        for key in ("id", "git")
    )
