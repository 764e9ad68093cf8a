"""What workers kept in `ComfyUI/output/` on the volume, and its removal when it is old or much.

Every worker writes a record of its own beside the results: one line for each file it kept, with
the file's size and time. Only a file that a record names, and that still has that size and time,
is ever removed; what people put there, or changed, is theirs.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bootstrap.core.log import say

FOLDER = ".kept-by-workers"
_ABANDONED_SECONDS = 3600.0
_SWEEP_SECONDS = 3600.0


@dataclass(frozen=True)
class Kept:
    """A file that a worker kept: `path` below the output folder, `at` in seconds since 1970."""

    path: str
    size: int
    modified: int
    at: float


class VolumeRecord:
    """The record of one worker in `output`, and the limits all workers' results are held to."""

    def __init__(self, output: Path, worker: str, days: float | None, gb: float | None) -> None:
        self._output = output
        self._file = output / FOLDER / f"{worker}.jsonl"
        self._days = days
        self._gb = gb
        self._swept: float | None = None

    def add(self, files: Iterable[Path]) -> None:
        """Note files that were just kept. Raises OSError."""
        lines = "".join(self._lines(files))
        if not lines:
            return
        try:
            self._append(lines)
        except FileNotFoundError:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._append(lines)

    def sweep_if_due(self) -> threading.Thread | None:
        """Now and then, in a thread that nobody has to wait for, remove what is too old, then the
        oldest of what is too much."""
        due = self._swept is None or time.monotonic() - self._swept > _SWEEP_SECONDS
        if not due or (self._days is None and self._gb is None):
            return None
        self._swept = time.monotonic()
        sweeping = threading.Thread(target=self._sweep_and_tell, name="old-results", daemon=True)
        sweeping.start()
        return sweeping

    def _append(self, lines: str) -> None:
        with open(self._file, "a", encoding="utf-8") as record:
            record.write(lines)

    def _sweep_and_tell(self) -> None:
        """Never raises: a volume that is gone is told elsewhere."""
        try:
            count, size = self.sweep()
        except OSError as problem:
            say(f"old results could not be removed: {problem}")
            return
        if count:
            say(f"removed {count} old results ({size / 1e6:.1f} MB) from the volume")

    def sweep(self) -> tuple[int, int]:
        """Number and bytes of the files removed. Raises OSError."""
        kept = {record: list(_entries(record)) for record in self._records()}
        known = {entry.path: entry for entries in kept.values() for entry in entries}
        ours = sorted(filter(self._is_ours, known.values()), key=lambda entry: entry.at)
        removed: set[str] = set()
        for entry in _too_many(ours, self._days, self._gb, time.time()):
            (self._output / entry.path).unlink(missing_ok=True)
            removed.add(entry.path)
        left = {entry.path for entry in ours} - removed
        for record, entries in kept.items():
            if not any(entry.path in left for entry in entries):
                self._forget(record)
        return len(removed), sum(entry.size for entry in ours if entry.path in removed)

    def _lines(self, files: Iterable[Path]) -> Iterator[str]:
        for file in files:
            try:
                status = file.stat()
            except FileNotFoundError:  # somebody removed it already
                continue
            path = str(file.relative_to(self._output))
            kept = Kept(path, status.st_size, status.st_mtime_ns, round(time.time(), 3))
            yield json.dumps(kept.__dict__) + "\n"

    def _records(self) -> list[Path]:
        try:
            return sorted(self._file.parent.glob("*.jsonl"))
        except FileNotFoundError:
            return []

    def _is_ours(self, entry: Kept) -> bool:
        """The very file that was kept: inside the folder, no link, not written to since."""
        path = self._output / entry.path
        if ".." in Path(entry.path).parts or Path(entry.path).is_absolute():
            return False
        try:
            real = Path(os.path.realpath(path.parent))
            status = path.lstat()
        except OSError:
            return False
        inside = real.is_relative_to(os.path.realpath(self._output))
        same = (status.st_size, status.st_mtime_ns) == (entry.size, entry.modified)
        return inside and same and not path.is_symlink()

    def _forget(self, record: Path) -> None:
        """Drop a record of which nothing is left, unless its worker may be about to add to it."""
        if record != self._file and time.time() - record.stat().st_mtime > _ABANDONED_SECONDS:
            record.unlink(missing_ok=True)


def _too_many(ours: list[Kept], days: float | None, gb: float | None, now: float) -> Iterator[Kept]:
    """Of files sorted by age, oldest first, those beyond the limits."""
    over = 0.0 if gb is None else sum(entry.size for entry in ours) - gb * 1e9
    for entry in ours:
        too_old = days is not None and now - entry.at > days * 86400
        if not too_old and not (gb is not None and over > 0):
            continue
        over -= entry.size
        yield entry


def _entries(record: Path) -> Iterator[Kept]:
    """A record's lines; one that was cut off when its worker was killed is left out."""
    for line in record.read_text("utf-8", "replace").splitlines():
        try:
            given = json.loads(line)
            yield Kept(
                str(given["path"]), int(given["size"]), int(given["modified"]), float(given["at"])
            )
        except (ValueError, TypeError, KeyError):
            continue
