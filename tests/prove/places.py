"""Where a patient runs: on a volume that can fall silent, in a container with little memory."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.simulated_volume import CannotSimulate, Delays, SimulatedVolume, mounted
from bootstrap.core.container_limits import group_folders, read_integer, read_table

_NO_DELAYS = Delays(metadata_ms=0, read_ms=0, server_ms=0, stream_mb=0, total_mb=0)


class CannotInject(Exception):
    """This machine does not allow the fault; `str()` says why."""


@dataclass(frozen=True)
class Place:
    """Where a patient runs: with its volume on a mount or in a plain folder, in a container with
    `memory` bytes or in none (0)."""

    mount: bool = False
    memory: int = 0


class Mount:
    """A network volume: a folder served at a mount."""

    def __init__(self, volume: SimulatedVolume) -> None:
        self.path = volume.mountpoint
        self._volume = volume

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Every call to it hangs until the end of the block."""
        os.kill(self._volume.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self._volume.pid, signal.SIGCONT)


@contextmanager
def mount_of(folder: Path) -> Iterator[Mount]:
    """`folder` served at a mount. Raises CannotInject."""
    try:
        with mounted(folder, folder.with_name("mounted"), _NO_DELAYS) as volume:
            yield Mount(volume)
    except CannotSimulate as problem:
        raise CannotInject(str(problem)) from None


class Container:
    """A control group with a memory limit."""

    def __init__(self, folder: Path, version: int) -> None:
        self._folder = folder
        self._names = ("memory.max", "memory.current") if version == 2 else (
            "memory.limit_in_bytes", "memory.usage_in_bytes"
        )  # fmt: skip
        self._total = "" if version == 2 else "total_"

    def limit(self, size: int) -> None:
        """Limit the bytes that all processes in it may use together."""
        (self._folder / self._names[0]).write_text(str(size))
        for swap in ("memory.swap.max", "memory.memsw.limit_in_bytes"):
            with contextlib.suppress(OSError):
                (self._folder / swap).write_text("0" if swap.endswith("max") else str(size))

    def around(self, command: Sequence[str]) -> list[str]:
        """`command`, so that it and all it starts run in here."""
        enter = 'echo $$ > "$0" && exec "$@"'
        return ["sh", "-c", enter, str(self._folder / "cgroup.procs"), *command]

    def megabytes_until(self, percent: float) -> int:
        """What is missing until `percent` of the limit is in use, page cache not counted."""
        limit, used = (read_integer(self._folder / name) or 0 for name in self._names)
        table = read_table(self._folder / "memory.stat")
        pages = sum(table.get(f"{self._total}{kind}_file", 0) for kind in ("inactive", "active"))
        return int((limit * percent / 100 - (used - pages)) / 1e6)

    def remove(self) -> None:
        """Remove it once nothing runs in it; the kernel takes a moment to notice."""
        for _ in range(100):
            with contextlib.suppress(OSError):
                self._folder.rmdir()
                return
            time.sleep(0.05)


@contextmanager
def black_hole(process: int, port: int) -> Iterator[int]:
    """A process's connections to a local port lose all packets both ways, without an error; new
    ones are fine. Yields how many they are. Raises CannotInject."""
    ends = {
        connection.laddr.port
        for connection in psutil.Process(process).net_connections("tcp4")
        if connection.raddr and connection.raddr.port == port
    }
    ways = [way for end in ends for way in ((end, port), (port, end))]
    with contextlib.ExitStack() as stack:
        for source, target in ways:
            rule = f"INPUT -i lo -p tcp --sport {source} --dport {target} -j DROP".split()
            try:
                subprocess.run(["iptables", "-A", *rule], check=True, capture_output=True)
            except (OSError, subprocess.CalledProcessError) as problem:
                raise CannotInject(f"packets cannot be dropped: {problem}") from None
            stack.callback(subprocess.run, ["iptables", "-D", *rule], check=True)
        yield len(ends)


@contextmanager
def container(size: int) -> Iterator[Container]:
    """A control group with `size` bytes of memory, below our own. Raises CannotInject."""
    for version, own in group_folders(Path("/"), "memory"):
        if not (own / "memory.stat").is_file():
            continue
        folder = own / f"fault-suite-{uuid.uuid4().hex[:8]}"
        made = Container(folder, version)
        try:
            folder.mkdir()
            made.limit(size)
        except OSError as problem:
            made.remove()
            raise CannotInject(f"no control group can be made in {own}: {problem}") from None
        try:
            yield made
        finally:
            made.remove()
        return
    raise CannotInject("this machine has no control groups for memory")
