"""A ComfyUI by its files: version, completeness, requirements, node packs."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from bootstrap.config import Settings
from bootstrap.core.concurrency import BoundedCaller, VolumeTimeout
from bootstrap.core.files import list_folder
from bootstrap.core.findings import Finding
from bootstrap.environment.node_packs import (
    PROJECT_FILE,
    VERSION_FILE,
    Git,
    Pack,
    RequirementFile,
    Requirements,
    comfyui_file,
    files_of,
    gather_packs,
    look_at_git,
    read_text,
    read_version,
)
from bootstrap.nodes.manifest import NodeManifest, nodes_wanted_here
from bootstrap.nodes.node_map import map_path, nodes_in, where_nodes_are
from bootstrap.nodes.presence import PackOnDisk, Presence, look_at_pack
from bootstrap.volume import Layout

GATHER_SECONDS = 15.0
MOST_LISTED = 200
_MOST_WORKFLOW = 16 << 20
# In every version since early 2023.
_ALWAYS = frozenset(
    {"main.py", "nodes.py", "execution.py", "server.py", "folder_paths.py", "comfy", "comfy_extras"}
)
# Not in all versions: needed if one of the files below imports them.
_SOMETIMES = frozenset(
    "alembic_db api_server app comfy_api comfy_api_nodes comfy_config comfy_execution "
    "comfyui_version cuda_malloc latent_preview middleware node_helpers protocol utils".split()
)
_IMPORTING = ("main.py", "nodes.py", "execution.py", "server.py")
_IMPORT = re.compile(r"^(?:from|import)\s+(\w+)", re.MULTILINE)


@dataclass(frozen=True)
class ComfyUIFacts:
    """A ComfyUI. `version` comes from `version_source` (a file's name, or `git`).

    `missing` are files and folders that it needs and that are absent or empty. `own` are its own
    requirements (None without a requirements.txt). `silent_after` is the time limit in seconds, if
    the volume did not answer.
    """

    path: str
    version: str | None = None
    version_source: str | None = None
    git: Git | None = None
    missing: tuple[str, ...] = ()
    own: RequirementFile | None = None
    packs: tuple[Pack, ...] = ()
    silent_after: float | None = None
    seconds: float = 0.0

    @property
    def active(self) -> tuple[Pack, ...]:
        """The packs that ComfyUI tries to import."""
        return tuple(pack for pack in self.packs if not pack.disabled)

    @property
    def asked(self) -> Requirements:
        """Its requirements and those of its active packs."""
        return Requirements(self.version, files_of(self.own, self.packs))

    def as_dict(self) -> dict[str, Any]:
        """The facts as JSON-ready data of bounded size."""
        return {
            "path": self.path,
            "version": self.version,
            "version_source": self.version_source,
            "git": vars(self.git) if self.git else None,
            "missing": list(self.missing),
            "requirements": list(self.own.lines) if self.own else None,
            "pack_count": len(self.packs),
            "packs": [_described(pack) for pack in self.packs[:MOST_LISTED]],
            "silent_after": self.silent_after,
            "seconds": round(self.seconds, 3),
        }


def gather_comfyui(
    comfyui: Path, nodes: Path | None = None, arguments: Sequence[str] = ()
) -> ComfyUIFacts:
    """Examine the ComfyUI in a folder, started with `arguments`, and further custom nodes in
    `nodes`, for at most `GATHER_SECONDS`; never raises OSError."""
    start = time.monotonic()
    path = str(comfyui)
    try:
        found = _gather(
            path, None if nodes is None else str(nodes), arguments, BoundedCaller(GATHER_SECONDS)
        )
    except VolumeTimeout:
        found = {"silent_after": GATHER_SECONDS}
    return ComfyUIFacts(path, seconds=time.monotonic() - start, **found)


def _gather(
    path: str, nodes: str | None, arguments: Sequence[str], caller: BoundedCaller
) -> dict[str, Any]:
    names = (*_IMPORTING, VERSION_FILE, PROJECT_FILE)
    read = caller.each(lambda name: read_text(os.path.join(path, name)), names)
    texts = {name: text for name, text in zip(names, read, strict=True) if text is not None}
    git = caller.one(lambda: look_at_git(path))
    version, source = read_version(path, caller, git)
    return {
        "version": version,
        "version_source": source,
        "git": git,
        "missing": _missing(path, texts, caller),
        "own": caller.one(lambda: comfyui_file(path, arguments)),
        "packs": gather_packs(path, caller, nodes, arguments),
    }


def _missing(path: str, texts: Mapping[str, str], caller: BoundedCaller) -> tuple[str, ...]:
    """Missing files, and folders that are missing or empty."""
    needed = set(_ALWAYS)
    for name in _IMPORTING:
        needed |= _SOMETIMES & set(_IMPORT.findall(texts.get(name, "")))
    top = caller.one(lambda: list_folder(path))
    if top.trouble is not None:
        return ()
    gone = {n for n in needed if not {n, f"{n}.py"} & top.names}
    folders = sorted(needed & (top.folders | top.links))
    listed = caller.each(lambda name: list_folder(os.path.join(path, name)), folders)
    empty = {n for n, f in zip(folders, listed, strict=True) if _is_empty(f.names, f.trouble)}
    blank = {name for name, text in texts.items() if name in needed and not text.strip()}
    return tuple(sorted(gone | empty | blank))


def _is_empty(names: frozenset[str], trouble: object) -> bool:
    return trouble is None and not names - {"__pycache__"}


def _described(pack: Pack) -> dict[str, Any]:
    return {
        "name": pack.name.encode("utf-8", "replace").decode(),
        "state": pack.state.value,
        "disabled": pack.disabled,
        "requirements": len(pack.requirements.lines) if pack.requirements else 0,
        "install_script": pack.install_script,
    }


@dataclass(frozen=True)
class WantedNodes:
    """The packs in the node manifest (`listed`), its faults, and the state of those that are not
    there (`absent`). `lacking` has, by workflow path, the node classes of missing packs, and the
    pack of each, by the map of `date` (empty: none is kept)."""

    listed: int = 0
    findings: tuple[Finding, ...] = ()
    absent: tuple[PackOnDisk, ...] = ()
    lacking: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    date: str = ""


def gather_wanted_nodes(settings: Settings, layout: Layout) -> WantedNodes:
    """Look for the listed packs, and for those that the volume's workflows need; empty after
    `GATHER_SECONDS`. Never raises OSError."""
    caller = BoundedCaller(GATHER_SECONDS)
    try:
        return caller.one(lambda: _wanted(settings, layout, caller))
    except (VolumeTimeout, OSError):
        return WantedNodes()


def _wanted(settings: Settings, layout: Layout, caller: BoundedCaller) -> WantedNodes:
    nodes = layout.custom_nodes
    manifest = nodes_wanted_here(settings, layout) or NodeManifest()
    looked = caller.each(lambda spec: look_at_pack(spec, nodes), manifest.packs)
    absent = tuple(found for found in looked if found.state is not Presence.THERE)
    files = caller.one(lambda: _workflows(layout.root))
    used = dict(zip(files, caller.each(_classes_in, files), strict=True))
    names = {name for classes in used.values() for name in classes}
    date, origins = where_nodes_are(layout.root, nodes, names) if names else ("", {})
    away = {n: o.packs[0] for n, o in origins.items() if o.packs and not o.installed}
    lacking = {
        os.path.relpath(file, layout.root): {n: away[n] for n in classes if n in away}
        for file, classes in used.items()
    }
    lacking = {file: classes for file, classes in lacking.items() if classes}
    return WantedNodes(len(manifest.packs), manifest.findings, absent, lacking, date)


def _workflows(root: Path) -> list[str]:
    """The named workflows on the volume; none without a map of nodes, which is needed to use
    them."""
    if not map_path(root).exists():
        return []
    found = (
        os.path.join(home, name)
        for home, _, names in os.walk(root / "workflows")
        for name in names
        if name.endswith(".json") and not name.startswith(".")
    )
    return sorted(islice(found, MOST_LISTED))


def _classes_in(file: str) -> tuple[str, ...]:
    try:
        data = json.loads(read_text(file, _MOST_WORKFLOW) or "")
    except (ValueError, RecursionError):
        return ()
    return tuple(needed.name for needed in nodes_in(data))
