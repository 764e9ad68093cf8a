"""Which listed packs are in custom_nodes, and whether they are unchanged since they were fetched.

    custom_nodes/NAME/.comfyui-worker.json   receipt: which pack it is, and each file's SHA-256

A pack without a receipt is the user's: it counts if it is the listed commit or version.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from bootstrap.core.files import read_regular
from bootstrap.core.text import pluralize, shell_quote, summarize_list
from bootstrap.environment.node_packs import look_at_git
from bootstrap.models.download.verify import hash_file
from bootstrap.models.manifest_entry import fault_of
from bootstrap.net import DownloadError
from bootstrap.nodes.manifest import GitPin, PackSpec, repository_url

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
_PROJECT = re.compile(r"^\[project\]\s*\n((?:(?!\[).*\n?)*)", re.MULTILINE)
_KEYS = ("name", "version")
_FIELD = r"""^{}\s*=\s*["']([^"'\n]+)"""


class State(str, Enum):
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
class FoundPack:
    """The state of a pack at `path`; `what` says it in words."""

    state: State
    path: Path
    what: str = ""
    receipt: PackReceipt | None = None


def look(spec: PackSpec, nodes: Path) -> FoundPack:
    """The state of a pack, without reading its files. Raises OSError."""
    path = nodes / spec.name
    if not os.path.lexists(path):
        return FoundPack(State.MISSING, path)
    receipt = read_receipt(path)
    is_wanted, is_link = receipt is not None and receipt.source == str(spec.pin), path.is_symlink()
    if receipt is not None and (is_wanted or not is_link):
        state = State.THERE if is_wanted else State.OTHER
        return FoundPack(state, path, receipt.source, receipt)
    if not is_link and os.path.isdir(path) and not os.listdir(path):
        return FoundPack(State.MISSING, path)
    what = _users_own(path)
    same = what is not None and what == _as_users(spec)
    return FoundPack(State.THERE if same else State.OCCUPIED, path, what or _kind_of(path))


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
    try:
        if not os.path.isfile(path / TRACKING):
            return None
        text = (path / "pyproject.toml").read_text("utf-8", "replace")
    except OSError:
        return None
    project = _PROJECT.search(text)
    fields = project[1] if project else ""
    found = [re.search(_FIELD.format(key), fields, re.MULTILINE) for key in _KEYS]
    return "@".join(match[1].strip().lower() for match in found if match) or None


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


def occupied(spec: PackSpec, found: FoundPack) -> DownloadError:
    """Another pack of the user's has the name."""
    return DownloadError(
        "nodes.occupied",
        f"{found.path} is there but is not {spec.pin}: it is {found.what}.",
        "It is left alone. Correct the manifest, or move it to custom_nodes/.disabled and have the "
        "wanted one: `comfyui-worker nodes pull --force`.",
    )


def edited(spec: PackSpec, found: FoundPack, files: Sequence[str]) -> DownloadError:
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
    found = look(spec, nodes)
    if found.state is State.MISSING:
        return False, "not there", None
    if found.state is State.OCCUPIED:
        return False, "another pack", occupied(spec, found)
    if found.state is State.OTHER:
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
