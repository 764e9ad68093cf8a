"""The worker's own folder on local disk: what must never lie on a volume that others share.

ComfyUI's SQLite database, its temp folder (wiped at every start) and its user folder collide when
two workers share them; input files of one job must not be seen by another worker.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bootstrap.core.findings import Finding, host_error

CODES = {"disk.local_unusable": "The worker's own folder on local disk cannot be made"}
_PREFIX = "comfyui-worker-"
_LOCK = ".lock"


@dataclass(frozen=True)
class WorkDir:
    """Folders of this worker, all below `root`, and the open lock that says it is in use. A further
    ComfyUI of the same worker has a `root` of its own below `shared`, the first one's, and shares
    what no ComfyUI writes."""

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
        """ComfyUI makes (and wipes) `temp` in here."""
        return self.root

    @property
    def temp(self) -> Path:
        return self.root / "temp"

    @property
    def stage(self) -> Path:
        """For a copy of ComfyUI's code and links to its neighbours; not there until it is made."""
        return self.root / "stage"

    @property
    def view(self) -> Path:
        """A models folder of links, where the volume's takes none; see volume/links.py."""
        return (self.shared or self.root) / "volume-models"

    @property
    def front_end(self) -> Path:
        """A page in place of ComfyUI's front end, which a worker has no use for."""
        return (self.shared or self.root) / "front-end"

    @property
    def models(self) -> Path:
        """Links to models of the platform's cache; see models/installed.py."""
        return (self.shared or self.root) / "models"

    @property
    def model_paths(self) -> Path:
        """What tells ComfyUI of `models`."""
        return self.root / "extra_model_paths.yaml"

    @property
    def database(self) -> str:
        """SQLAlchemy address of ComfyUI's database."""
        return f"sqlite:///{self.root / 'comfyui.db'}"

    def further(self, number: int) -> WorkDir:
        """New folders for another ComfyUI of this worker. Raises OSError."""
        other = WorkDir(self.root / f"instance-{number}", self.lock, self.root)
        for folder in (other.input, other.output, other.user):
            folder.mkdir(parents=True)
        return other

    def remove(self) -> None:
        """Delete the folder; what cannot be deleted is left for the next worker's sweep."""
        shutil.rmtree(self.root, ignore_errors=True)
        os.close(self.lock)


def make_workdir(parent: Path | None) -> WorkDir | Finding:
    """A new folder in `parent` (None: the system's temp folder), or why there is none.

    Folders left behind by workers that were killed are removed first.
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
            f"No folder for this worker's own files can be made in {where}: {problem.strerror}.",
            "Set WORK_DIR to a folder on the container's disk that can be written to, or give the "
            "endpoint a larger container disk (Edit Endpoint → Container Disk).",
        )


def _take_lock(root: Path) -> int:
    """It gets its name when it is held: another worker's sweep must not take it for abandoned."""
    descriptor = os.open(root / f"{_LOCK}.new", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.rename(root / f"{_LOCK}.new", root / _LOCK)
    return descriptor


def _sweep(where: Path) -> None:
    for leftover in where.glob(_PREFIX + "*"):
        try:
            lock = _take_lock_if_abandoned(leftover)
        except OSError:
            continue
        shutil.rmtree(leftover, ignore_errors=True)
        os.close(lock)


def _take_lock_if_abandoned(leftover: Path) -> int:
    descriptor = os.open(leftover / _LOCK, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
