"""This machine as the container sees it: GPU, memory, CPU, disks, limits, clock.

Facts are gathered again each time: a worker can be frozen and thawed on another day. A failed probe
leaves None and a sentence in `problems`; the others still run. No host name.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import resource
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from bootstrap.core.container_limits import CpuFacts, MemoryFacts, gather_cpu, gather_memory
from bootstrap.doctor.facts.gpu import PROBE_TIMEOUT, GpuFacts, gather_gpu
from bootstrap.environment import TorchBuild

T = TypeVar("T")
_PROJECT = Path(__file__).resolve().parents[3]
# Where the loader looks for a preloaded library without a path: ld.so(8).
_LIBRARY_FOLDERS = ("lib", "usr/lib", "usr/local/lib", "lib64", "usr/lib64")


@dataclass(frozen=True)
class DiskFacts:
    """A local file system: bytes and inodes in total and free for us, and whether it is read-only.
    `device` is its st_dev: two paths with the same one are on one disk. `inodes_total` is 0 if the
    file system does not count them (btrfs).
    """

    path: str
    total: int
    free: int
    inodes_total: int
    inodes_free: int
    read_only: bool
    device: int


@dataclass(frozen=True)
class ClockFacts:
    """Wall clock and the newest time of this project's files, in seconds since 1970."""

    now: float
    newest_file: float | None


@dataclass(frozen=True)
class Preload:
    """A library in LD_PRELOAD, and whether it exists."""

    name: str
    exists: bool


@dataclass(frozen=True)
class MachineFacts:
    """All facts; None for a failed probe, with the reason in `problems`. `shm` is /dev/shm, `locks`
    why processes cannot share a lock (empty: they can), `temp` the folder that the worker writes to
    (WORK_DIR or the system's), `open_files` the soft and hard limit (None: no limit).
    `comfyui_running`: our own ComfyUI was using the GPU.
    """

    gpu: GpuFacts | None = None
    memory: MemoryFacts | None = None
    cpu: CpuFacts | None = None
    shm: DiskFacts | None = None
    locks: str = ""
    root_disk: DiskFacts | None = None
    temp: DiskFacts | None = None
    open_files: tuple[int | None, int | None] | None = None
    clock: ClockFacts | None = None
    preloads: tuple[Preload, ...] = ()
    torch: TorchBuild | None = None
    python: str = ""
    kernel: str = ""
    architecture: str = ""
    comfyui_running: bool = False
    problems: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The facts as JSON-ready data."""
        return asdict(self)


def gather_machine(
    root: Path = Path("/"),
    env: Mapping[str, str] | None = None,
    *,
    work_dir: Path | None = None,
    comfyui_running: bool = False,
) -> MachineFacts:
    """Examine this machine; takes 0.1 s on a healthy one, at most `PROBE_TIMEOUT`. `root` replaces
    `/` in tests. `env` is the worker's environment, empty by default. `work_dir` is
    `Settings.work_dir`. With `comfyui_running` the GPU is queried but not used. torch is left to
    the caller, since it depends on ComfyUI's interpreter.
    """
    env = {} if env is None else env
    problems: list[str] = []

    def attempt(what: str, probe: Callable[[], T]) -> T | None:
        try:
            return probe()
        except Exception as problem:  # noqa: BLE001 - one broken probe must not spoil the others
            problems.append(f"{what}: {type(problem).__name__}: {problem}")
            return None

    touch = not comfyui_running
    return MachineFacts(
        gpu=attempt("GPU", lambda: gather_gpu(env, root, touch, PROBE_TIMEOUT)),
        memory=attempt("memory", lambda: gather_memory(root)),
        cpu=attempt("CPU", lambda: gather_cpu(root)),
        shm=attempt("/dev/shm", lambda: look_at_disk(root / "dev/shm", "/dev/shm")),
        locks=attempt("locks", look_at_locks) or "",
        root_disk=attempt("disk /", lambda: look_at_disk(root, "/")),
        temp=attempt("temp folder", lambda: _temp_disk(work_dir)),
        open_files=attempt("open files", _open_files),
        clock=attempt("clock", lambda: look_at_clock(_PROJECT)),
        preloads=attempt("LD_PRELOAD", lambda: look_at_preloads(env, root)) or (),
        python=platform.python_version(),
        kernel=platform.release(),
        architecture=platform.machine(),
        comfyui_running=comfyui_running,
        problems=tuple(problems),
    )


def look_at_disk(path: Path, shown: str | None = None) -> DiskFacts:
    """Space on the file system of `path`. Raises OSError."""
    stat = os.statvfs(path)
    return DiskFacts(
        path=shown or str(path),
        total=stat.f_blocks * stat.f_frsize,
        free=stat.f_bavail * stat.f_frsize,
        inodes_total=stat.f_files,
        inodes_free=stat.f_favail,
        read_only=bool(stat.f_flag & os.ST_RDONLY),
        device=os.stat(path).st_dev,
    )


def look_at_locks() -> str:
    """Why processes cannot share a lock; these are in /dev/shm (sem_open(3)), and the SDK makes
    one. Empty if they can."""
    try:
        multiprocessing.get_context().Lock()
    except (OSError, ImportError) as problem:
        return str(getattr(problem, "strerror", None) or problem)
    return ""


def _temp_disk(work_dir: Path | None) -> DiskFacts:
    """WORK_DIR need not exist yet: then its nearest existing parent counts."""
    folder = work_dir or Path(tempfile.gettempdir())
    while not os.path.exists(folder) and folder != folder.parent:
        folder = folder.parent
    return look_at_disk(folder)


def look_at_clock(project: Path) -> ClockFacts:
    """The time, and that of the newest source file, which cannot be in the future."""
    times = [path.stat().st_mtime for path in project.glob("bootstrap/**/*.py")]
    return ClockFacts(time.time(), max(times, default=None))


def look_at_preloads(env: Mapping[str, str], root: Path = Path("/")) -> tuple[Preload, ...]:
    """The libraries in LD_PRELOAD. The loader only warns, on stderr, about a missing one."""
    names = env.get("LD_PRELOAD", "").replace(":", " ").split()
    searched = env.get("LD_LIBRARY_PATH", "").split(":")
    folders = [root / folder.lstrip("/") for folder in searched if folder]
    return tuple(Preload(name, _library_exists(name, root, folders)) for name in names)


def _library_exists(name: str, root: Path, folders: list[Path]) -> bool:
    if "/" in name:
        return os.path.exists(root / name.lstrip("/"))
    machine = f"{platform.machine()}-linux-gnu"
    for folder in _LIBRARY_FOLDERS:
        folders = [*folders, root / folder, root / folder / machine]
    return any(os.path.exists(folder / name) for folder in folders)


def _open_files() -> tuple[int | None, int | None]:
    soft, hard = (
        None if limit == resource.RLIM_INFINITY else limit
        for limit in resource.getrlimit(resource.RLIMIT_NOFILE)
    )
    return soft, hard
