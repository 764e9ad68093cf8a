"""Kept package sets: one file each on the volume, there completely or not at all.

Thousands of small files would cost a round trip each on a network volume, so a set is one zip
without compression, and is read in large blocks by several threads straight into place. Each file,
and each part of a large one, has a checksum.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from bootstrap.core.concurrency import Crew
from bootstrap.core.files import publish_new
from bootstrap.core.temp_names import look_at_leftover
from bootstrap.environment.judge import Judgement, RequirementState, Verdict

#: A set's folders: ahead of the interpreter's packages (they replace some of them), and behind.
BEFORE, AFTER = "before", "after"
#: Days that a set is kept after the last start that used it, and how many are kept for longer
#: than one day.
KEPT_DAYS = 30
KEPT_SETS = 4
_DAY = 24 * 3600
_RECORD = "packages.json"
_MOST_RECORD = 4 << 20
_BLOCK = 8 << 20
_STREAMS = 8
_HEADER = 30  # of an entry, before its name; APPNOTE.TXT 4.3.7
_NAME = re.compile(r"[A-Za-z0-9._+-]+-torch[A-Za-z0-9._+-]+-[0-9a-f]{16}\.zip")


class BadSet(Exception):
    """A kept set cannot be read; the message completes "… cannot be used: …"."""


@dataclass(frozen=True)
class Record:
    """What a set holds. `installed` are versions by normalised name, `replaced` what they stand in
    for, `modules` what can be imported from it, `refused` the reason by requirement, `unmet` what
    is judged so with the set in place, and `seconds` how long it took to make. Logins in addresses
    are masked."""

    installed: Mapping[str, str] = field(default_factory=dict)
    replaced: Mapping[str, str] = field(default_factory=dict)
    modules: Sequence[str] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    unmet: Sequence[Verdict] = ()
    seconds: float = 0.0

    def on(self, judgement: Judgement) -> Judgement:
        """What is judged with the set in place."""
        return judgement.with_packages(self.installed, self.unmet, self.modules)


def keep(folder: Path, record: Record, scratch: Path, kept: Path) -> None:
    """Pack the set in `folder` and give it the name `kept` on the volume, where another worker's
    may be by now. Raises OSError."""
    packed = scratch / "set.zip"
    parts: dict[str, list[int]] = {}
    with zipfile.ZipFile(packed, "x", strict_timestamps=False) as archive:
        for path in _files(folder):
            name = path.relative_to(folder).as_posix()
            sums = _add(archive, path, name)
            if len(sums) > 1:
                parts[name] = sums
        told = {"version": 1, **asdict(record), "parts": parts}
        archive.writestr(_RECORD, json.dumps(told, indent=1))
    publish_new(packed, kept)


def read_record(kept: Path) -> Record:
    """What a kept set holds, without unpacking it. Raises BadSet, OSError."""
    with _opened(kept) as archive:
        return _record(archive)[0]


def load(kept: Path, folder: Path, timeout: float) -> Record:
    """Unpack a kept set into the new folder `folder` on local disk, leaving nothing when it fails
    or the volume does not hand it over within `timeout` seconds.

    Raises BadSet when the set itself is at fault, and OSError.
    """
    with _opened(kept) as archive:
        record, parts = _record(archive)
        entries = [e for e in archive.infolist() if e.filename != _RECORD]
    # A thread that is still writing after a failure writes where nothing looks.
    part = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        _make_folders(part, entries)
        # A descriptor that a silent volume still holds is left to it.
        source = os.open(kept, os.O_RDONLY)
        if not Crew(_STREAMS).run(_tasks(source, part, entries, parts), timeout):
            raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT), str(kept))
        os.close(source)
        os.rename(part, folder)
        return record
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def mark_used(kept: Path) -> None:
    """Tell all workers by its time of change that a set is in use. Raises OSError."""
    os.utime(kept)


def sweep(kept: Path, now: float) -> None:
    """Remove from the folder of `kept` what has gone stale, and what killed workers left half
    copied. `now` is in seconds by the volume's clock. Raises OSError.

    Endpoints with other images or nodes share the folder, and none knows of the others, so age
    decides: a set that no start has used for `KEPT_DAYS`, or for a day where `KEPT_SETS` others
    were used since. Each start marks its set before opening it; should one be removed in between,
    its reader makes it again.
    """
    sets = []
    for path in kept.parent.iterdir():
        leftover = look_at_leftover(str(path), now)
        if leftover is not None and leftover.stale and leftover.removable:
            path.unlink(missing_ok=True)
        elif _NAME.fullmatch(path.name) and path != kept and (found := _stat(path)) is not None:
            sets.append((now - found.st_mtime, path))
    for rank, (age, path) in enumerate(sorted(sets), start=1):
        if age > KEPT_DAYS * _DAY or (rank >= KEPT_SETS and age > _DAY):
            path.unlink(missing_ok=True)


def _stat(path: Path) -> os.stat_result | None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    return found if stat.S_ISREG(found.st_mode) else None


def _files(folder: Path) -> Iterator[Path]:
    """Wheels bring no links; one that a build made would not survive elsewhere."""
    for parent, names, files in os.walk(folder):
        names.sort()
        for name in sorted(files):
            path = Path(parent, name)
            if path.is_file() and not path.is_symlink():
                yield path


def _add(archive: zipfile.ZipFile, path: Path, name: str) -> list[int]:
    """Add one file; the checksum of each of its blocks."""
    size = path.stat().st_size
    entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    entry.external_attr = (path.stat().st_mode & 0o777) << 16
    entry.file_size = size
    sums = []
    with open(path, "rb") as file, archive.open(entry, "w", force_zip64=size >= 1 << 31) as out:
        while block := file.read(_BLOCK):
            sums.append(zlib.crc32(block))
            out.write(block)
    return sums


def _opened(kept: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(kept)
    except (zipfile.BadZipFile, zlib.error) as problem:
        raise BadSet(str(problem)) from problem


def _record(archive: zipfile.ZipFile) -> tuple[Record, dict[str, list[int]]]:
    try:
        if archive.getinfo(_RECORD).file_size > _MOST_RECORD:
            raise BadSet("its record is too long")
        told: dict[str, Any] = json.loads(archive.read(_RECORD))
        unmet = [Verdict(**{**v, "state": RequirementState(v["state"])}) for v in told["unmet"]]
        record = Record(
            dict(told["installed"]),
            dict(told["replaced"]),
            tuple(told["modules"]),
            dict(told["refused"]),
            tuple(unmet),
            float(told["seconds"]),
        )
        return record, dict(told["parts"])
    except (KeyError, ValueError, TypeError, zipfile.BadZipFile, zlib.error) as problem:
        raise BadSet(f"its record is not understood ({problem})") from problem


def _make_folders(folder: Path, entries: Sequence[zipfile.ZipInfo]) -> None:
    wanted = {os.path.dirname(entry.filename) for entry in entries} | {BEFORE, AFTER}
    for name in wanted:
        parts = name.split("/")
        if parts[0] not in (BEFORE, AFTER) or ".." in parts or "" in parts:
            raise BadSet(f"{name!r} is not a folder of a set")
    for name in sorted(wanted):
        os.makedirs(folder / name, exist_ok=True)


def _tasks(
    source: int,
    folder: Path,
    entries: Sequence[zipfile.ZipInfo],
    parts: Mapping[str, Sequence[int]],
) -> list[partial[None]]:
    """Small files by the block, large ones in blocks."""
    tasks = []
    batch: list[zipfile.ZipInfo] = []
    for entry in sorted(entries, key=lambda e: e.header_offset):
        if sums := parts.get(entry.filename):
            data = _data_offset(os.pread(source, _HEADER, entry.header_offset), entry.header_offset)
            for index, checksum in enumerate(sums):
                tasks.append(partial(_load_part, source, folder, entry, data, index, checksum))
            continue
        if batch and entry.header_offset + entry.file_size - batch[0].header_offset > _BLOCK:
            tasks.append(partial(_load_batch, source, folder, batch))
            batch = []
        batch.append(entry)
    return [*tasks, partial(_load_batch, source, folder, batch)] if batch else tasks


def _load_batch(source: int, folder: Path, batch: Sequence[zipfile.ZipInfo]) -> None:
    start, last = batch[0].header_offset, batch[-1]
    # A name in UTF-8 and a further field at most, both of 16 bits.
    length = last.header_offset + last.file_size + _HEADER + (2 << 16) - start
    data = memoryview(os.pread(source, length, start))
    for entry in batch:
        at = entry.header_offset - start
        begin = _data_offset(data[at : at + _HEADER], at)
        content = data[begin : begin + entry.file_size]
        if len(content) != entry.file_size or zlib.crc32(content) != entry.CRC:
            raise BadSet(f"{entry.filename} is damaged")
        with open(folder / entry.filename, "wb") as file:
            file.write(content)
        _set_mode(folder, entry)


def _load_part(
    source: int, folder: Path, entry: zipfile.ZipInfo, data: int, index: int, checksum: int
) -> None:
    at = index * _BLOCK
    content = os.pread(source, min(_BLOCK, entry.file_size - at), data + at)
    if zlib.crc32(content) != checksum:
        raise BadSet(f"{entry.filename} is damaged")
    target = os.open(folder / entry.filename, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.pwrite(target, content, at)
    finally:
        os.close(target)
    if index == 0:
        _set_mode(folder, entry)


def _data_offset(header: bytes | memoryview, at: int) -> int:
    """Where an entry's content begins, from its own header at `at`."""
    if bytes(header[:4]) != b"PK\x03\x04" or len(header) < _HEADER:
        raise BadSet("an entry is not where it should be")
    name, further = struct.unpack_from("<HH", header, 26)
    return at + _HEADER + int(name) + int(further)


def _set_mode(folder: Path, entry: zipfile.ZipInfo) -> None:
    """Some packages bring programs, which must stay executable."""
    if (entry.external_attr >> 16) & 0o100:
        os.chmod(folder / entry.filename, 0o755)
