"""A wall clock that can be moved under running processes; the monotonic clock is left alone."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("clock.c")


class MovedClock:
    """The clock of every process that is started with `env`; correct until `move` is called."""

    def __init__(self, folder: Path) -> None:
        """Compile the library into `folder`. Raises CalledProcessError, and FileNotFoundError
        if there is no `cc`."""
        self._file = folder / "clock"
        self._file.write_bytes(struct.pack("=q", 0))
        self._library = folder / "clock.so"
        command = ["cc", "-shared", "-fPIC", "-O2", "-o", str(self._library), str(SOURCE), "-ldl"]
        subprocess.run(command, check=True, capture_output=True)

    @property
    def env(self) -> dict[str, str]:
        """Variables for the processes."""
        return {"LD_PRELOAD": str(self._library), "MOVED_CLOCK": str(self._file)}

    def move(self, seconds: int) -> None:
        """From now on the clock is that many seconds ahead of the real one, everywhere."""
        with open(self._file, "r+b") as file:
            file.write(struct.pack("=q", seconds))
