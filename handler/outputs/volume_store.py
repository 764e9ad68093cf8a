"""Copies results to `ComfyUI/output/` on the volume: complete or not at all, and durably.

Each worker writes its own record beside the results: a line for each kept file, with its size and
time. Files that are too old or too many are removed, but only those in a record with unchanged size
and time; what people put there, or changed, is theirs.
"""

from __future__ import annotations

import json
import logging
import math
import os
import stat
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bootstrap.config import Settings
from bootstrap.core.files import open_regular, publish_copy
from bootstrap.core.text import pluralize
from bootstrap.volume import Layout
from handler.common.blocking import TimeUp, VolumeWatchdog

_log = logging.getLogger(__name__)

FOLDER = ".kept-by-workers"
_ABANDONED_SECONDS = 3600.0
_SWEEP_SECONDS = 3600.0
_RECORD_SECONDS = 30.0


@dataclass(frozen=True)
class Kept:
    """A file that a worker kept: `path` below the output folder, `at` in seconds since 1970."""

    path: str
    size: int
    modified: int
    at: float


class VolumeRecord:
    """One worker's record in `output`, and the limits for all workers' results."""

    def __init__(self, output: Path, worker: str, days: float | None, gb: float | None) -> None:
        self._output = output
        self._file = output / FOLDER / f"{worker}.jsonl"
        self._days = days
        self._gb = gb
        self._swept: float | None = None
        self._reported: set[Path] = set()

    def add(self, files: Iterable[Path]) -> None:
        """Record files that were just kept. Raises OSError."""
        lines = "".join(self._lines(files))
        if not lines:
            return
        try:
            self._append(lines)
        except FileNotFoundError:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._append(lines)

    def sweep_if_due(self) -> threading.Thread | None:
        """Once an hour, in its own thread, remove files that are too old, then the oldest until the
        rest is small enough."""
        due = self._swept is None or time.monotonic() - self._swept > _SWEEP_SECONDS
        if not due or (self._days is None and self._gb is None):
            return None
        self._swept = time.monotonic()
        sweeping = threading.Thread(target=self._sweep_and_log, name="old-results", daemon=True)
        sweeping.start()
        return sweeping

    def _append(self, lines: str) -> None:
        with open(self._file, "a", encoding="utf-8") as record:
            record.write(lines)

    def _sweep_and_log(self) -> None:
        """Never raises: a missing volume is reported elsewhere."""
        try:
            count, size = self.sweep()
        except OSError as problem:
            _log.warning("old results could not be removed: %s", problem)
            return
        if count:
            _log.info("removed %d old results (%.1f MB) from the volume", count, size / 1e6)

    def sweep(self) -> tuple[int, int]:
        """Remove files; returns their number and bytes. Raises OSError."""
        kept = {record: list(self._entries(record)) for record in self._records()}
        known = {entry.path: entry for entries in kept.values() for entry in entries}
        ours = sorted(filter(self._is_ours, known.values()), key=lambda entry: entry.at)
        removed: set[str] = set()
        for entry in _too_many(ours, self._days, self._gb, time.time()):
            try:
                (self._output / entry.path).unlink(missing_ok=True)
            except OSError as problem:
                self._report(self._output / entry.path, f"could not be removed: {problem.strerror}")
            else:
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
            except FileNotFoundError:  # removed already
                continue
            path = str(file.relative_to(self._output))
            kept = Kept(path, status.st_size, status.st_mtime_ns, round(time.time(), 3))
            yield json.dumps(kept.__dict__) + "\n"

    def _records(self) -> list[Path]:
        try:
            return sorted(self._file.parent.glob("*.jsonl"))
        except FileNotFoundError:
            return []

    def _entries(self, record: Path) -> Iterator[Kept]:
        """A record's entries. Invalid lines, such as one cut off when its worker was killed, are
        skipped, and reported once."""
        try:
            with open_regular(record) as file:
                lines = file.read().decode("utf-8", "replace").split("\n")
        except OSError as problem:
            self._report(record, f"cannot be read: {problem.strerror}")
            return
        bad = 0
        for line in filter(None, lines):
            try:
                yield _entry(line)
            except ValueError:
                bad += 1
        if bad:
            self._report(record, f"{pluralize(bad, 'line')} skipped, not in a worker's format")

    def _report(self, path: Path, what: str) -> None:
        """Log it once for each file; the sweep continues with the others."""
        if path not in self._reported:
            self._reported.add(path)
            _log.warning("%s: %s", path, what)

    def _is_ours(self, entry: Kept) -> bool:
        """Is it exactly the kept file: inside the folder, no link, unchanged?"""
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
        """Delete an empty record, unless its worker may still add to it."""
        with suppress(OSError):
            status = record.lstat()
            abandoned = time.time() - status.st_mtime > _ABANDONED_SECONDS
            if record != self._file and abandoned and stat.S_ISREG(status.st_mode):
                record.unlink(missing_ok=True)


def _too_many(ours: list[Kept], days: float | None, gb: float | None, now: float) -> Iterator[Kept]:
    """Of files sorted oldest first, those beyond the limits."""
    over = 0.0 if gb is None else sum(entry.size for entry in ours) - gb * 1e9
    for entry in ours:
        too_old = days is not None and now - entry.at > days * 86400
        if not too_old and not (gb is not None and over > 0):
            continue
        over -= entry.size
        yield entry


def _entry(line: str) -> Kept:
    """Parse a line. Raises ValueError if no worker wrote it."""
    try:
        given = json.loads(line)
        entry = Kept(
            str(given["path"]), int(given["size"]), int(given["modified"]), float(given["at"])
        )
        os.fsencode(entry.path)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        raise ValueError(line[:100]) from None
    if "\0" in entry.path or not math.isfinite(entry.at):
        raise ValueError(line[:100])
    return entry


class NotSaved(Exception):
    """A file could not be saved; `str()` is the reason."""


class VolumeStore:
    """Saves files for one worker. Returned paths are relative to the volume, which a Pod mounts
    elsewhere."""

    def __init__(self, settings: Settings, layout: Layout, volume: VolumeWatchdog) -> None:
        self._layout = layout
        self._volume = volume
        self._record = VolumeRecord(
            layout.output, uuid.uuid4().hex, settings.keep_outputs_days, settings.keep_outputs_gb
        )
        self._lock = threading.Lock()
        self._new: list[Path] = []

    async def save(self, local: Path, subfolder: Path, name: str, seconds: float) -> str:
        """Copy a file to `subfolder`/`name`; returns its path on the volume. Raises NotSaved, after
        `seconds` at the latest."""
        folder = self._layout.output
        try:
            path = await self._volume.call(
                lambda: self._publish(local, folder / subfolder, name), seconds
            )
        except OSError as problem:
            why = problem.strerror or str(problem)
        except TimeUp:
            why = f"that took more than {seconds:.0f} s"
        else:
            return str(path.relative_to(self._layout.root))
        raise NotSaved(f"{local.name} could not be kept in {folder}: {why}")

    async def delete(self, path: str) -> None:
        """Remove a file that `save` has just saved, if possible."""
        saved = self._layout.root / path
        with self._lock:
            self._new = [new for new in self._new if new != saved]
        with suppress(OSError, TimeUp):
            await self._volume.call(lambda: saved.unlink(missing_ok=True), _RECORD_SECONDS)

    async def flush_record(self) -> None:
        """Record what was saved since the last call, and enforce the limits. If the volume fails
        now, these files are just never removed."""
        with self._lock:
            new, self._new = self._new, []
        with suppress(OSError, TimeUp):
            await self._volume.call(lambda: self._record.add(new), _RECORD_SECONDS)
            self._record.sweep_if_due()

    def _publish(self, local: Path, folder: Path, name: str) -> Path:
        if not self._layout.root.is_dir():
            raise FileNotFoundError(f"there is no volume at {self._layout.root}")
        path = publish_copy(local, folder, name)
        with self._lock:
            self._new.append(path)
        return path
