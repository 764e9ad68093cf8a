"""Copies ComfyUI's code from the volume to local disk, in parallel: thousands of small files cost a
round trip each, one after another when Python imports them, but in parallel when they are copied.

    work/stage/ComfyUI/            a copy of the volume's ComfyUI, and in it
        models input …             links to the volume: what is data stays where it is
        output                     a link to this worker's own; see link_output
        .venv-cu128                a link, as any virtual environment, whatever its name
        custom_nodes/pack/x.bin    a link where a pack is too heavy to copy
    work/stage/<anything else>     links to what lies beside ComfyUI on the volume, so that
                                   relative paths such as ../models mean what they meant

Each boot makes a new copy, so that changes on the volume take effect. What is written into it goes
back to the volume: workdir.py.
"""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from bootstrap.core.concurrency import WorkerPool
from bootstrap.core.files import Stamp, copy_opened

# 64 in flight, as in doctor/facts/walk.py.
_THREADS = 64
# Smaller files are copied at once, larger ones when their pack's size is known.
_LARGE = 4 * 1024 * 1024
# Data folders directly in ComfyUI's folder; deeper ones such as `comfy/ldm/models` are code.
DATA = frozenset({"models", "output", "input", "temp", "user", "venv", ".venv"})
# ComfyUI's own folders of code, 2023 to v0.38. If the volume itself is ComfyUI's folder, all others
# in it are the user's data and are linked.
CODE = frozenset(
    "alembic_db api_server app blueprints comfy comfy_api comfy_api_nodes comfy_config "
    "comfy_execution comfy_extras custom_nodes middleware script_examples tests tests-unit utils "
    "web".split()
)
# At any depth: large, and rarely read.
_LINKED_ANYWHERE = frozenset({".git"})
# PEP 405: a folder with this file is a virtual environment.
_VENV = "pyvenv.cfg"
# ComfyUI-Manager's queue for the next start (its prestartup_script.py), in the user folder or, in
# old versions, in its own. A worker does not run it: many start at once, and each would change the
# shared volume.
_QUEUES = ("startup-scripts/install-scripts.txt", "startup-scripts/restore-snapshot.json")
# Suffixes of a worker's own files: logs, databases, partial files.
PRIVATE = tuple(
    ".log .db .db-journal .db-wal .db-shm .sqlite .lock .tmp .temp .part .incomplete "
    ".download .crdownload .aria2".split()
)
_PACKS = "custom_nodes"
# Bytes that a copy must leave free on the local disk.
_HEADROOM = 256 * 1024 * 1024

_TOO_SLOW = "the volume did not hand it over within {:g} s"


class CannotStage(Exception):
    """The code cannot be copied; the message completes "ComfyUI was not copied: …"."""


@dataclass(frozen=True)
class Staged:
    """A copy at `place` of the ComfyUI at `source`. `stamps` are the copied files' original stamps,
    by relative path; `linked` are files linked for their size, `queued` is ComfyUI-Manager's queue,
    which is left out. Only new files below the folders `keep` are written back to the source; None:
    all."""

    source: Path
    place: Path
    stamps: Mapping[str, Stamp]
    linked: tuple[str, ...]
    bytes: int
    queued: tuple[str, ...] = ()
    keep: frozenset[str] | None = None


@dataclass(frozen=True)
class CopyPlan:
    """Copy the ComfyUI at `comfyui` (a path without links) into the new folder `parent`. In a
    custom node larger than `pack_bytes`, the largest files are linked until the rest is smaller.
    `models` is the models folder to link; `is_volume`: `comfyui` is the volume's root. `nodes` are
    custom nodes elsewhere, which replace those of `comfyui` with the same names."""

    comfyui: Path
    parent: Path
    pack_bytes: int
    timeout: float
    models: Path | None = None
    is_volume: bool = False
    nodes: Path | None = None
    threads: int = _THREADS


def stage(plan: CopyPlan) -> list[Staged]:
    """Copy ComfyUI, then `nodes`, if there are any. Raises CannotStage, leaving nothing behind,
    when it takes longer than `timeout` seconds or the disk is too small."""
    end = time.monotonic() + plan.timeout
    try:
        _link_neighbours(plan.comfyui, plan.parent)
        code = _copier_of(plan).run(plan.timeout)
        _link_models(plan, code.place)
        if plan.nodes is None:
            return [code]
        left = max(0.1, end - time.monotonic())
        place = code.place / _PACKS
        nodes = _Copier(plan.nodes, place, plan.threads, plan.pack_bytes, frozenset())
        nodes.packs_at = ""
        return [code, replace(nodes.run(left), keep=frozenset(os.listdir(plan.nodes)))]
    except OSError as problem:
        shutil.rmtree(plan.parent, ignore_errors=True)
        raise CannotStage(f"{problem.strerror or problem} ({plan.parent})") from problem
    except CannotStage:
        shutil.rmtree(plan.parent, ignore_errors=True)
        raise


def _copier_of(plan: CopyPlan) -> _Copier:
    copier = _Copier(
        plan.comfyui, plan.parent / plan.comfyui.name, plan.threads, plan.pack_bytes, DATA
    )
    if plan.is_volume:
        copier.code = CODE
    if plan.nodes is not None:
        copier.left_out = frozenset(f"{_PACKS}/{name}" for name in os.listdir(plan.nodes))
    return copier


def _link_models(plan: CopyPlan, copy: Path) -> None:
    """Link it now; the models folder itself may be created while the code is copied."""
    models, place = plan.models or plan.comfyui / "models", copy / "models"
    if place.is_symlink() and os.readlink(place) != str(models):
        place.unlink()
    if not place.is_symlink():
        place.symlink_to(models)


def link_output(copy: Path, output: Path) -> None:
    """Many nodes write to `output` beside the code or in the working directory, whatever ComfyUI's
    flags say, so make that a link to its output folder. Raises OSError."""
    place = copy / "output"
    if place.is_symlink():
        place.unlink()
    if not place.exists():
        place.symlink_to(output)


def copy_again(staged: Sequence[Staged], stage: Path, other: Path) -> list[Staged]:
    """Copy everything below the folder `stage` again, below `other`, without reading the volume.
    Raises OSError."""
    shutil.copytree(stage, other, symlinks=True, dirs_exist_ok=True)
    return [replace(copy, place=other / copy.place.relative_to(stage)) for copy in staged]


def copy_user_folder(user: Path, place: Path, timeout: float) -> Staged:
    """Copy settings and workflows from `user`, if there are any, into the folder `place`.

    Logs and databases are not copied. Raises CannotStage.
    """
    copier = _Copier(user, place, 8, None, frozenset(), PRIVATE)
    try:
        return copier.run(timeout) if os.path.isdir(user) else Staged(user, place, {}, (), 0)
    except OSError as problem:
        raise CannotStage(f"{problem.strerror or problem} ({user})") from problem


def _link_neighbours(comfyui: Path, parent: Path) -> None:
    parent.mkdir(parents=True)
    with os.scandir(comfyui.parent) as neighbours:
        for entry in neighbours:
            if entry.name != comfyui.name:
                (parent / entry.name).symlink_to(entry.path)


@dataclass
class _Pack:
    """One custom node, or ComfyUI itself, whose name is empty."""

    bytes: int = 0
    large: list[tuple[int, str]] = field(default_factory=list)


class _Copier:
    def __init__(
        self,
        source: Path,
        place: Path,
        threads: int,
        pack_bytes: int | None,
        data: frozenset[str],
        skipped: tuple[str, ...] = (),
    ) -> None:
        self._source = os.fspath(source)
        self._place = os.fspath(place)
        self._threads = threads
        self._pack_bytes = pack_bytes
        self._data = data
        self._skipped = skipped
        self._pool = WorkerPool(threads)
        self._packs: dict[str, _Pack] = {}
        self._stamps: dict[str, Stamp] = {}
        self._linked: list[str] = []
        self._queued: list[str] = []
        # Folders at the top to copy, None for all; what to leave out; where the packs are.
        self.code: frozenset[str] | None = None
        self.left_out: frozenset[str] = frozenset()
        self.packs_at = _PACKS

    def run(self, timeout: float) -> Staged:
        os.makedirs(self._place, exist_ok=True)
        if not self._pool.run([partial(self._list, "")], timeout):
            raise CannotStage(_TOO_SLOW.format(timeout))
        self._settle_large_files(timeout)
        size = sum(size for size, _ in self._stamps.values())
        linked, queued = tuple(sorted(self._linked)), tuple(sorted(self._queued))
        source, place = Path(self._source), Path(self._place)
        return Staged(source, place, self._stamps, linked, size, queued)

    def _list(self, folder: str) -> None:
        """Copy one folder's files; its subfolders become tasks of their own."""
        files: list[str] = []
        with os.scandir(os.path.join(self._source, folder)) as entries:
            found = list(entries)
        if folder and any(entry.name == _VENV for entry in found):
            os.rmdir(os.path.join(self._place, folder))
            self._link(folder)
            return
        for entry in found:
            path = os.path.join(folder, entry.name)
            if self._is_left_out(path):
                continue
            packs = path == self.packs_at and entry.is_dir()
            if entry.is_symlink() and not packs:
                self._copy_link(path)
            elif not entry.is_dir():
                files.append(path)
            elif entry.name in _LINKED_ANYWHERE or (not folder and self._is_data(entry.name)):
                self._link(path)
            else:
                os.mkdir(os.path.join(self._place, path))
                self._pool.add([partial(self._list, path)])
        self._pool.add_each(self._copy, files)

    def _is_left_out(self, path: str) -> bool:
        if path.endswith(_QUEUES):
            self._queued.append(os.path.join(self._source, path))
            return True
        return path in self.left_out or bool(self._skipped and path.endswith(self._skipped))

    def _is_data(self, name: str) -> bool:
        return name in self._data or (self.code is not None and name not in self.code)

    def _copy(self, path: str, large: bool = False) -> None:
        """Copy a file, unless it is large and its pack's size not known yet. An unreadable file is
        linked, so that opening it gives the volume's own error.
        """
        try:
            source = os.open(os.path.join(self._source, path), os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            self._link(path)
            return
        try:
            facts = os.fstat(source)
            if not stat.S_ISREG(facts.st_mode):
                return  # a leftover socket or pipe
            pack = self._packs.setdefault(self._pack_of(path), _Pack())
            if facts.st_size >= _LARGE and not large:
                pack.large.append((facts.st_size, path))
                return
            self._stamps[path] = copy_opened(source, facts, os.path.join(self._place, path))
            pack.bytes += facts.st_size
        finally:
            os.close(source)

    def _copy_link(self, path: str) -> None:
        """Copy a link; a relative one that would lead elsewhere from here becomes absolute."""
        text = os.readlink(os.path.join(self._source, path))
        above = os.path.dirname(self._source)
        meant = os.path.normpath(os.path.join(self._source, os.path.dirname(path), text))
        if not text.startswith("/") and not meant.startswith(above.rstrip("/") + "/"):
            text = meant
        os.symlink(text, os.path.join(self._place, path))

    def _link(self, path: str) -> None:
        os.symlink(os.path.join(self._source, path), os.path.join(self._place, path))

    def _settle_large_files(self, timeout: float) -> None:
        """Link the largest files of packs that are too large, copy the others."""
        wanted: list[tuple[int, str]] = []
        for pack in self._packs.values():
            weight = pack.bytes + sum(size for size, _ in pack.large)
            for size, path in sorted(pack.large, reverse=True):
                if self._pack_bytes is not None and weight > self._pack_bytes:
                    self._link(path)
                    self._linked.append(path)
                    weight -= size
                else:
                    wanted.append((size, path))
        needed = sum(size for size, _ in wanted)
        if needed > shutil.disk_usage(self._place).free - _HEADROOM:
            raise CannotStage(f"the local disk has no space for {needed / 1e6:.0f} MB more")
        if not WorkerPool(self._threads).run(
            [partial(self._copy, p, True) for _, p in wanted], timeout
        ):
            raise CannotStage(_TOO_SLOW.format(timeout))

    def _pack_of(self, path: str) -> str:
        """The custom node that a file belongs to; empty for ComfyUI's own files."""
        first, _, rest = path.partition("/")
        if not self.packs_at:
            return first if rest else ""
        return rest.partition("/")[0] if first == self.packs_at and "/" in rest else ""
