"""A ComfyUI as its files show it: version, completeness, what it requires, its node packs."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bootstrap.core.concurrency import BoundedCaller, VolumeTimeout
from bootstrap.core.files import list_folder
from bootstrap.environment.packs import (
    PROJECT_FILE,
    VERSION_FILE,
    Git,
    Pack,
    Requirements,
    files_of,
    gather_packs,
    look_at_git,
    read_version,
)
from bootstrap.environment.requirement_files import RequirementFile, comfyui_file, read_text

GATHER_SECONDS = 15.0
MOST_LISTED = 200
# There in every version since early 2023.
_ALWAYS = frozenset(
    {"main.py", "nodes.py", "execution.py", "server.py", "folder_paths.py", "comfy", "comfy_extras"}
)
# Came and went: needed where one of the files below imports them.
_SOMETIMES = frozenset(
    "alembic_db api_server app comfy_api comfy_api_nodes comfy_config comfy_execution "
    "comfyui_version cuda_malloc latent_preview middleware node_helpers protocol utils".split()
)
_IMPORTING = ("main.py", "nodes.py", "execution.py", "server.py")
_IMPORT = re.compile(r"^(?:from|import)\s+(\w+)", re.MULTILINE)


@dataclass(frozen=True)
class ComfyUIFacts:
    """What is there. `version` comes from `version_source` (a file's name, or `git`).

    `missing` are files and folders that it needs and that are absent or empty. `own` are its own
    requirements (None without a requirements.txt). `silent_after` is how many seconds the
    volume was given, when it did not answer.
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
        """What it and its active packs ask for."""
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
    comfyui: Path,
    nodes: Path | None = None,
    arguments: Sequence[str] = (),
    timeout: float = GATHER_SECONDS,
) -> ComfyUIFacts:
    """Look at the ComfyUI in a folder, started with `arguments`, and at further custom nodes in
    `nodes`, for `timeout` seconds at most; never raises OSError."""
    start = time.monotonic()
    path = str(comfyui)
    try:
        found = _gather(
            path, None if nodes is None else str(nodes), arguments, BoundedCaller(timeout)
        )
    except VolumeTimeout:
        found = {"silent_after": timeout}
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
    """Needed and absent: a file, or a folder that is not there or empty."""
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
