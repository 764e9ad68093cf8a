"""The worker's own folder on local disk, and writing back to the volume.

Some things must never be on a shared volume: ComfyUI's SQLite database, its temp folder (wiped at
every start) and its user folder collide if two workers share them, and another worker must not see
a job's input files.

What is written into the local copy of ComfyUI's code goes back: custom nodes download models into
their folders, save settings and keep indexes; Python writes bytecode. Run from the volume, all of
that would be there for the next start and other workers. So new files are put on the volume,
complete or not at all, never replacing another; a changed file replaces its original, unless that
has changed as well.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bootstrap.comfyui.copy_code import PRIVATE, Staged
from bootstrap.core.concurrency import WorkerPool
from bootstrap.core.files import Stamp, publish_new, replacing, stays_within
from bootstrap.core.findings import Finding, host_error
from bootstrap.core.text import summarize_list

_log = logging.getLogger(__name__)

CODES = {"disk.local_unusable": "The worker's own folder on local disk cannot be created"}
_PREFIX = "comfyui-worker-"
_LOCK = ".lock"
# How long a start waits for the removal of killed workers' leftovers, and above how many free bytes
# it does not wait longer.
_SWEEP_SECONDS = 1.0
_ROOMY = 8 << 30
# A file that changed more recently may still be in use.
_SETTLED_SECONDS = 2.0
# After so many attempts a file that keeps changing is left to the next call.
_MOST_LOOKS = 10
_THREADS = 16
_BYTECODE = ".pyc"
# Python writes bytecode under this name first (importlib._bootstrap_external).
_HALF_BYTECODE = re.compile(r"\.pyc\.\d+$")


@dataclass(frozen=True)
class WorkDir:
    """This worker's folders, all below `root`, and the open lock that marks it as in use. A further
    ComfyUI of the same worker has its own `root` below `shared`, the first one's, and shares what
    ComfyUI does not write."""

    root: Path
    lock: int
    shared: Path | None = None

    @property
    def input(self) -> Path:
        return self.root / "input"

    @property
    def output(self) -> Path:
        return self.root / "output"

    @property
    def user(self) -> Path:
        return self.root / "user"

    @property
    def temp_parent(self) -> Path:
        """ComfyUI creates and wipes `temp` in here."""
        return self.root

    @property
    def temp(self) -> Path:
        return self.root / "temp"

    @property
    def stage(self) -> Path:
        """For the copy of ComfyUI's code and links to its neighbours; created by the copy."""
        return self.root / "stage"

    @property
    def view(self) -> Path:
        """A models folder of links, if none can be made on the volume; see volume/links.py."""
        return (self.shared or self.root) / "volume-models"

    @property
    def front_end(self) -> Path:
        """A page in place of ComfyUI's front end, which a worker does not need."""
        return (self.shared or self.root) / "front-end"

    @property
    def models(self) -> Path:
        """Links to models in the platform's cache; see models/provisioner.py."""
        return (self.shared or self.root) / "models"

    @property
    def model_paths(self) -> Path:
        """The file that lists `models` for ComfyUI."""
        return self.root / "extra_model_paths.yaml"

    @property
    def database(self) -> str:
        """SQLAlchemy address of ComfyUI's database."""
        return f"sqlite:///{self.root / 'comfyui.db'}"

    def further(self, number: int) -> WorkDir:
        """Create folders for another ComfyUI of this worker. Raises OSError."""
        other = WorkDir(self.root / f"instance-{number}", self.lock, self.root)
        for folder in (other.input, other.output, other.user):
            folder.mkdir(parents=True)
        return other

    def remove(self) -> None:
        """Delete the folder; what cannot be deleted is left for the next worker's sweep."""
        shutil.rmtree(self.root, ignore_errors=True)
        os.close(self.lock)


def make_workdir(parent: Path | None) -> WorkDir | Finding:
    """A new folder in `parent` (None: the system's temp folder), or why there is none. Folders of
    killed workers are removed first; if there is enough space, a start waits for that only briefly.
    """
    where = parent or Path(tempfile.gettempdir())
    try:
        where.mkdir(parents=True, exist_ok=True)
        _sweep(where)
        root = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=where))
        work = WorkDir(root, _take_lock(root))
        for folder in (work.input, work.output, work.user, work.front_end):
            folder.mkdir()
        (work.front_end / "index.html").write_text("<!doctype html><title>worker</title>\n")
        return work
    except OSError as problem:
        return host_error(
            "disk.local_unusable",
            f"No folder for this worker's own files can be created in {where}: {problem.strerror}.",
            "Set WORK_DIR to a folder on the container's disk that can be written to, or give the "
            "endpoint a larger container disk (Edit Endpoint → Container Disk).",
        )


def _take_lock(root: Path) -> int:
    """It gets its name once it is held: another worker's sweep must not take it for abandoned."""
    descriptor = os.open(root / f"{_LOCK}.new", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.rename(root / f"{_LOCK}.new", root / _LOCK)
    return descriptor


def _sweep(where: Path) -> None:
    abandoned = []
    for leftover in where.glob(_PREFIX + "*"):
        with suppress(OSError):
            abandoned.append((leftover, _take_lock_if_abandoned(leftover)))
    if abandoned:
        sweep = threading.Thread(target=_remove_all, args=(abandoned,), name="sweep", daemon=True)
        sweep.start()
        is_roomy = shutil.disk_usage(where).free > _ROOMY
        sweep.join(_SWEEP_SECONDS if is_roomy else None)


def _remove_all(abandoned: Sequence[tuple[Path, int]]) -> None:
    """Slow parts first, the lock file last: without it a half-removed folder would not be swept
    again."""
    for folder, lock in abandoned:
        for entry in folder.glob("*/"):
            shutil.rmtree(entry, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _take_lock_if_abandoned(leftover: Path) -> int:
    descriptor = os.open(leftover / _LOCK, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


class WriteBack:
    """Writes changes of copies back, in a thread that waits for `soon`. It measures no time between
    calls, so a freeze does not matter.
    """

    def __init__(self, copies: Sequence[Staged]) -> None:
        self._copies = [_Copy(staged) for staged in copies]
        self._wanted = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def soon(self) -> None:
        """Write changes back in the background; returns at once."""
        self._wanted.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="write-back", daemon=True)
            self._thread.start()

    def now(self, settled: float = 0.0) -> list[str]:
        """Write back everything that changed, except within the last `settled` seconds; returns the
        relative paths. What cannot be kept is logged once."""
        with self._lock:
            return [path for copy in self._copies for path in copy.carry_back(settled)]

    def _work(self) -> None:
        while True:
            self._wanted.wait()
            self._wanted.clear()
            for _ in range(_MOST_LOOKS):
                self.now(_SETTLED_SECONDS)
                if not any(copy.unsettled for copy in self._copies):
                    break
                time.sleep(_SETTLED_SECONDS)


class _Copy:
    """One copy, and what we know of its files on the volume."""

    def __init__(self, staged: Staged) -> None:
        self._staged = staged
        self._here = dict(staged.stamps)
        self._there = dict(staged.stamps)
        self._told: set[str] = set()
        self.unsettled = False

    def carry_back(self, settled: float) -> list[str]:
        kept: list[str] = []

        def carry(path: str, stamp: Stamp) -> None:
            try:
                if self._carry(path):
                    kept.append(path)
                self._here[path] = stamp
            except OSError as problem:
                self._tell(path, problem.strerror or str(problem))

        WorkerPool(_THREADS).run([partial(carry, *changed) for changed in self._changed(settled)])
        other = sorted(path for path in kept if not path.endswith(_BYTECODE))
        if other:
            _log.info("kept on the volume: %s", summarize_list(other))
        return kept

    def _changed(self, settled: float) -> Iterator[tuple[str, Stamp]]:
        place = os.fspath(self._staged.place)
        newest = time.time() - settled
        self.unsettled = False
        for folder, names, files in os.walk(place):
            names[:] = [n for n in names if not os.path.islink(os.path.join(folder, n))]
            for name in files:
                full = os.path.join(folder, name)
                path = os.path.relpath(full, place)
                if (
                    not self._is_ours(path)
                    or name.endswith(PRIVATE)
                    or _HALF_BYTECODE.search(name)
                    or os.path.islink(full)
                ):
                    continue
                try:
                    facts = os.stat(full)
                except OSError:
                    continue
                stamp = Stamp(facts.st_size, facts.st_mtime_ns)
                if self._here.get(path) == stamp:
                    continue
                if facts.st_mtime > newest:
                    self.unsettled = True
                else:
                    yield path, stamp

    def _is_ours(self, path: str) -> bool:
        keep = self._staged.keep
        return keep is None or path.partition("/")[0] in keep

    def _carry(self, path: str) -> bool:
        """Put one file on the volume; False if another file is there."""
        local, target = self._staged.place / path, self._staged.source / path
        if not stays_within(target, self._staged.source):
            self._tell(path, "a link on the volume leads elsewhere there")
            return False
        there = Stamp.of(target)
        if there is None:
            target.parent.mkdir(parents=True, exist_ok=True)
        if path.endswith(_BYTECODE) or (there is not None and there == self._there.get(path)):
            with replacing(target) as part:
                shutil.copy2(local, part)
        elif there is not None or not publish_new(local, target):
            self._tell(path, "another file of that name is there now")
            return False
        self._there[path] = Stamp.of(target) or Stamp(0, 0)
        return True

    def _tell(self, path: str, why: str) -> None:
        if path not in self._told and not path.endswith(_BYTECODE):
            self._told.add(path)
            _log.warning(
                "%s was written by ComfyUI or a node, but not kept on the volume: %s", path, why
            )
