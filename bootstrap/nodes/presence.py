"""Which listed packs are in custom_nodes, and whether they are unchanged since they were fetched.

    custom_nodes/NAME/.comfyui-worker.json   receipt: which pack it is, and each file's SHA-256

A pack without a receipt is the user's: it counts if it is the listed commit or version.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from bootstrap.core.files import list_folder, read_regular
from bootstrap.core.text import pluralize, shell_quote, summarize_list
from bootstrap.environment.node_packs import look_at_git, project_value, read_text
from bootstrap.models.download.verify import hash_file
from bootstrap.models.manifest_entry import fault_of
from bootstrap.net import DownloadError
from bootstrap.nodes.manifest import GitPin, PackSpec, RegistryPin, repository_url

CODES = {
    "nodes.occupied": "Another pack of yours has the name of a wanted one; it is left alone",
    "nodes.edited": "A pack was changed since it was fetched; it is left alone",
}
RECEIPT = ".comfyui-worker.json"
# What ComfyUI-Manager writes into a pack from the registry, to recognise it (cnr_utils.py).
TRACKING = ".tracking"
#: Never from an archive: git in that folder would run what a stranger's `.git` says.
NOT_UNPACKED = (RECEIPT, TRACKING, ".git")
_MOST_RECEIPT = 32 * 1024 * 1024


class Presence(str, Enum):
    """A listed pack on disk. `OTHER` is one that we fetched at another version or commit."""

    THERE = "there"
    MISSING = "missing"
    OTHER = "other"
    OCCUPIED = "occupied"


@dataclass(frozen=True)
class PackReceipt:
    """What was fetched: `source` in a pin's form; SHA-256 by file, relative to the pack."""

    source: str
    files: Mapping[str, str]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready data."""
        return {"version": 1, "source": self.source, "files": dict(self.files)}


@dataclass(frozen=True)
class PackOnDisk:
    """The state of a pack at `path`; `what` says it in words."""

    state: Presence
    path: Path
    what: str = ""
    receipt: PackReceipt | None = None


def look_at_pack(spec: PackSpec, nodes: Path) -> PackOnDisk:
    """The state of a pack, without reading its files."""
    path = nodes / spec.name
    if not os.path.lexists(path):
        return PackOnDisk(Presence.MISSING, path)
    receipt = read_receipt(path)
    is_wanted, is_link = receipt is not None and receipt.source == str(spec.pin), path.is_symlink()
    if receipt is not None and (is_wanted or not is_link):
        state = Presence.THERE if is_wanted else Presence.OTHER
        return PackOnDisk(state, path, receipt.source, receipt)
    if not is_link and _is_empty(path):
        return PackOnDisk(Presence.MISSING, path)
    what = _users_own(path)
    same = what is not None and what == _as_users(spec)
    return PackOnDisk(Presence.THERE if same else Presence.OCCUPIED, path, what or _kind_of(path))


def _is_empty(path: Path) -> bool:
    inside = list_folder(str(path))
    return inside.trouble is None and not inside.names


def _kind_of(path: Path) -> str:
    if path.is_symlink():
        return "a link"
    return "a folder without a receipt" if path.is_dir() else "a file"


def _as_users(spec: PackSpec) -> str:
    pin = spec.pin
    return pin.commit if isinstance(pin, GitPin) else f"{pin.id.lower()}@{pin.version}"


def _users_own(path: Path) -> str | None:
    """The commit or version of a pack that the user or ComfyUI-Manager installed."""
    git = look_at_git(str(path))
    if git is not None:
        return git.commit
    if not os.path.isfile(path / TRACKING):
        return None
    text = read_text(str(path / "pyproject.toml")) or ""
    found = (project_value(text, key) for key in ("name", "version"))
    return "@".join(value.strip().lower() for value in found if value) or None


def read_receipt(pack: Path) -> PackReceipt | None:
    """The receipt of a pack that we fetched; None if there is none, or it cannot be read."""
    path = pack / RECEIPT
    try:
        if path.is_symlink():
            return None
        data = json.loads(read_regular(path, _MOST_RECEIPT))
        return PackReceipt(str(data["source"]), {str(k): str(v) for k, v in data["files"].items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def write_receipt(
    pack: Path, pin: RegistryPin | GitPin, names: Sequence[str], stop: threading.Event
) -> None:
    """Note what a fetched pack holds; `names` are its files, for ComfyUI-Manager. Raises OSError
    and Stopped."""
    files = {str(path.relative_to(pack)): hash_file(path, stop) for path in files_in(pack)}
    if isinstance(pin, RegistryPin):
        (pack / TRACKING).write_text("\n".join(names), "utf-8")
    (pack / RECEIPT).write_text(json.dumps(PackReceipt(str(pin), files).as_dict()), "utf-8")


def saved_in(old: Path, new: Path) -> list[str]:
    """Files of a replaced pack that were not fetched: a running ComfyUI has saved them. Empty if
    the old pack or the new one has no receipt. Raises OSError."""
    before, now = read_receipt(old), read_receipt(new)
    if before is None or now is None:
        return []
    fetched = {RECEIPT, TRACKING, *before.files, *now.files}
    return [name for p in files_in(old) if (name := str(p.relative_to(old))) not in fetched]


@dataclass(frozen=True)
class Changes:
    """How a pack differs from its receipt: files by name. `added` are files that it or the user
    created; bytecode does not count."""

    changed: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    added: tuple[str, ...] = ()


def compare(path: Path, receipt: PackReceipt) -> Changes:
    """Read all files of a pack that we fetched. Raises OSError."""
    there = {str(p.relative_to(path)) for p in files_in(path)} - {RECEIPT, TRACKING}
    changed = [
        name
        for name, digest in receipt.files.items()
        if name in there and _digest(path / name) != digest
    ]
    gone = [name for name in receipt.files if name not in there]
    added = [name for name in sorted(there) if name not in receipt.files]
    return Changes(tuple(changed), tuple(gone), tuple(added))


def _digest(path: Path) -> str:
    return hash_file(path) if path.is_file() and not path.is_symlink() else ""


def files_in(folder: Path) -> Iterator[Path]:
    """All files and links, except in `__pycache__`."""
    for home, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(home, name))]
        folders[:] = [name for name in folders if name != "__pycache__" and name not in links]
        yield from (Path(home, name) for name in (*files, *links))


def occupied(spec: PackSpec, found: PackOnDisk) -> DownloadError:
    """Another pack of the user's has the name."""
    return DownloadError(
        "nodes.occupied",
        f"{found.path} is there but is not {spec.pin}: it is {found.what}.",
        "It is left alone. Correct the manifest, or move it to custom_nodes/.disabled and have the "
        "wanted one: `comfyui-worker nodes pull --force`.",
    )


def edited(spec: PackSpec, found: PackOnDisk, files: Sequence[str]) -> DownloadError:
    """An update would lose the changes in `files`."""
    return DownloadError(
        "nodes.edited",
        f"{found.path} would be replaced by {spec.pin}, but was changed since it was fetched: "
        f"{summarize_list(files)}.",
        "It is left alone. To have it moved to custom_nodes/.disabled and the wanted one fetched: "
        "`comfyui-worker nodes pull --force`.",
    )


def verify(spec: PackSpec, nodes: Path) -> tuple[bool, str, DownloadError | None]:
    """(as listed, in words, what is wrong) for a pack on disk, reading all of it. Raises
    OSError."""
    found = look_at_pack(spec, nodes)
    if found.state is Presence.MISSING:
        return False, "not there", None
    if found.state is Presence.OCCUPIED:
        return False, "another pack", occupied(spec, found)
    if found.state is Presence.OTHER:
        return False, f"another version, {found.what}", None
    if found.receipt is None:
        return True, f"yours, {found.what}; what it should hold is not known", None
    changes = compare(found.path, found.receipt)
    wrong = [*changes.changed, *(f"{name} (gone)" for name in changes.gone)]
    more = f", {pluralize(len(changes.added), 'file')} added" if changes.added else ""
    if wrong:
        problem = DownloadError(
            "nodes.edited",
            f"{found.path} was changed since it was fetched: {summarize_list(wrong)}.",
            "If that was not meant, remove the folder, then pull again: "
            f"`{shell_quote('rm', '-r', str(found.path))}`.",
        )
        return False, f"changed: {summarize_list(wrong)}", problem
    return True, f"{pluralize(len(found.receipt.files), 'file')} as fetched{more}", None


def has_pack(url: str, nodes: Path, repositories: frozenset[str]) -> bool:
    """Is this repository cloned or fetched, or its folder's name taken? `repositories` are those of
    `repositories_in(nodes)`. Raises OSError."""
    name = url.rpartition("/")[2]
    if not fault_of(name) and os.path.lexists(nodes / name):
        return True
    return url.casefold() in repositories


def repositories_in(nodes: Path) -> frozenset[str]:
    """The addresses, in lower case, of everything fetched or cloned into custom_nodes. Raises
    OSError."""
    packs = nodes.iterdir() if nodes.is_dir() else ()
    return frozenset(_repository_of(pack).casefold() for pack in packs)


def _repository_of(pack: Path) -> str:
    if receipt := read_receipt(pack):
        return receipt.source.rpartition("@")[0]
    git = look_at_git(str(pack))
    try:
        return repository_url(git.origin, True) if git and git.origin else ""
    except DownloadError:
        return ""
