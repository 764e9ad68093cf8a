"""A folder seen as a network volume: builds and mounts the FUSE pass-through in `volume.c`.

    with mounted(folder, mountpoint) as volume:
        ...                                   # every call under `mountpoint` is delayed

Needs Linux with /dev/fuse, a C compiler, pkg-config and libfuse3 with its headers
(`apt-get install gcc pkg-config fuse3 libfuse3-dev`).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

SOURCE = Path(__file__).with_name("volume.c")
BUILD = Path(__file__).with_name("build")
MOUNT_SECONDS = 10.0
UNMOUNT_SECONDS = 5.0


class CannotSimulate(RuntimeError):
    """No volume can be simulated here; the message says what is missing."""


@dataclass(frozen=True)
class Delays:
    """How slow the volume is; the defaults are as reported of real ones. 0 MB/s means no limit.

    `metadata_ms` for each metadata call; `read_ms` for each read, which also waits for its turn on
    a line of `stream_mb` MB/s for each open file and on one of `total_mb` that all files being read
    share; for `server_ms` of `read_ms`, the reads of one file also wait for each other. One stream
    then gets 270 MB/s, four 700, eight 1,000, sixteen 1,300.
    `attr_seconds` is how long the kernel caches names and attributes.
    """

    metadata_ms: float = 1.5
    read_ms: float = 0.3
    server_ms: float = 0.06
    stream_mb: float = 400.0
    total_mb: float = 1500.0
    read_ahead_kb: int = 128
    attr_seconds: float = 1.0
    threads: int = 192

    def arguments(self) -> list[str]:
        """As flags of the program in `volume.c`."""
        pairs = ((f.name.replace("_", "-"), getattr(self, f.name)) for f in fields(self))
        return [f"--{name}={value}" for name, value in pairs]


def why_not() -> str | None:
    """Why no volume can be simulated here, in words; None where it should work."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse is missing or this user may not open it"
    missing = [tool for tool in ("gcc", "pkg-config", "fusermount3") if not shutil.which(tool)]
    if missing:
        return f"{' and '.join(missing)} not installed"
    found = subprocess.run(["pkg-config", "--exists", "fuse3"], check=False)
    return None if found.returncode == 0 else "libfuse3's headers (libfuse3-dev) not installed"


def build(folder: Path = BUILD) -> Path:
    """The program, compiled first if it does not exist or its source is newer.

    Raises CannotSimulate with what the compiler or pkg-config said.
    """
    program = folder / "simulated-volume"
    if program.exists() and program.stat().st_mtime > SOURCE.stat().st_mtime:
        return program
    folder.mkdir(parents=True, exist_ok=True)
    flags = _output_of(["pkg-config", "--cflags", "--libs", "fuse3"]).split()
    fresh = folder / f"simulated-volume.{os.getpid()}"
    _output_of(["gcc", "-O2", "-Wall", "-Wextra", str(SOURCE), "-o", str(fresh), *flags])
    os.replace(fresh, program)
    return program


@contextmanager
def mounted(
    folder: Path, mountpoint: Path, delays: Delays | None = None
) -> Iterator[SimulatedVolume]:
    """`folder` seen through a simulated network at `mountpoint`, unmounted at the end.

    Raises CannotSimulate if that does not work.
    """
    volume = SimulatedVolume(folder, mountpoint, delays or Delays())
    volume.mount()
    try:
        yield volume
    finally:
        volume.unmount()


class SimulatedVolume:
    """One mount and the process that serves it."""

    def __init__(self, folder: Path, mountpoint: Path, delays: Delays) -> None:
        self.folder = folder
        self.mountpoint = mountpoint
        self.delays = delays
        self._server: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The serving process; 0 if there is none."""
        return self._server.pid if self._server is not None else 0

    def mount(self) -> None:
        """Serve the folder and wait until it is mounted. Raises CannotSimulate."""
        reason = why_not()
        if reason:
            raise CannotSimulate(reason)
        self.mountpoint.mkdir(parents=True, exist_ok=True)
        command = [str(build()), *self.delays.arguments(), str(self.folder), str(self.mountpoint)]
        self._server = subprocess.Popen(command, start_new_session=True)
        end = time.monotonic() + MOUNT_SECONDS
        while not _is_mounted(self.mountpoint):
            if self._server.poll() is not None or time.monotonic() > end:
                self.unmount()
                raise CannotSimulate(f"mounting failed: {' '.join(command)}")
            time.sleep(0.01)

    def unmount(self) -> None:
        """Unmount, even while the volume is in use; harmless when repeated."""
        end = time.monotonic() + UNMOUNT_SECONDS
        while _is_mounted(self.mountpoint):
            late = time.monotonic() > end
            _fusermount("-uz" if late else "-u", self.mountpoint)
            if late:
                break
            time.sleep(0.02)
        self._end_server()

    def kill(self) -> None:
        """Kill the server: every call then fails with ENOTCONN until `unmount`."""
        self._end_server(signal.SIGKILL)

    def forget(self, files: Iterable[Path] | None = None) -> None:
        """Drop the pages of files (all under the mountpoint if not given) from the page cache."""
        for path in files if files is not None else self.mountpoint.rglob("*"):
            if path.is_file():
                forget_pages(path)

    def _end_server(self, with_signal: int = signal.SIGTERM) -> None:
        if self._server is None:
            return
        if self._server.poll() is None:
            self._server.send_signal(with_signal)
            try:
                self._server.wait(UNMOUNT_SECONDS)
            except subprocess.TimeoutExpired:
                self._server.kill()
                self._server.wait()
        self._server = None


def forget_pages(path: Path) -> None:
    """Drop one file's pages from the page cache, so that the next read asks the volume."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(file)


def _is_mounted(path: Path) -> bool:
    """By the kernel's mount table: a stat of the path itself fails when the server is dead."""
    wanted = os.path.realpath(path.parent) + "/" + path.name
    with open("/proc/self/mounts", encoding="utf-8") as table:
        places = (line.split(" ")[1] for line in table)
        return any(_unescaped(place) == wanted for place in places)


def _unescaped(text: str) -> str:
    """Undo the octal escapes of /proc/self/mounts (fstab(5))."""
    for code in ("040", "011", "012", "134"):
        text = text.replace("\\" + code, chr(int(code, 8)))
    return text


def _fusermount(flag: str, path: Path) -> None:
    """Try; the mount table shows whether it worked."""
    subprocess.run(["fusermount3", flag, str(path)], check=False, stderr=subprocess.DEVNULL)


def _output_of(command: list[str]) -> str:
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError as problem:
        raise CannotSimulate(f"{command[0]} not installed") from problem
    except subprocess.CalledProcessError as problem:
        raise CannotSimulate(f"{command[0]} failed: {problem.stderr.strip()}") from problem
    return done.stdout
