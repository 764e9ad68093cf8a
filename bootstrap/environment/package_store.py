"""Kept package sets: one file each on the volume, there completely or not at all.

Thousands of small files would cost a round trip each on a network volume, so a set is one zip
without compression, and is read in large blocks by several threads straight into place. Each file,
and each part of a large one, has a checksum.
"""

from __future__ import annotations

import csv
import json
import os
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bootstrap.core.files import publish_new
from bootstrap.core.temp_files import look_at_leftover
from bootstrap.environment.requirements import Judgement, RequirementState, Verdict

#: A set's folders: ahead of the interpreter's packages (they replace some of them), and behind.
BEFORE, AFTER = "before", "after"
#: Days that a set is kept after the last start that used it, and how many are kept for longer
#: than one day.
KEPT_DAYS = 30
KEPT_SETS = 4
_DAY = 24 * 3600
_RECORD = "packages.json"
_MOST_RECORD = 4 << 20
BLOCK = 8 << 20
# Folders that many distributions put something into.
_SHARED = ("bin", "share", "etc", "include", "lib", "__pycache__")
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
        data = {**asdict(record), "parts": parts, "groups": _groups(folder)}
        archive.writestr(_RECORD, json.dumps(data, indent=1))
    publish_new(packed, kept)


@dataclass(frozen=True)
class Contents:
    """A kept set as it lies on the volume: its `entries` without the record; for a large file the
    checksums of its `parts`; `groups` of top-level names that belong together."""

    record: Record
    entries: Sequence[zipfile.ZipInfo]
    parts: Mapping[str, Sequence[int]]
    groups: Sequence[Sequence[str]]


def read_record(kept: Path) -> Record:
    """What a kept set holds, without unpacking it. Raises BadSet, OSError."""
    return read_contents(kept).record


def read_contents(kept: Path) -> Contents:
    """The record and where everything lies. Raises BadSet, OSError."""
    try:
        with zipfile.ZipFile(kept) as archive:
            if archive.getinfo(_RECORD).file_size > _MOST_RECORD:
                raise BadSet("its record is too long")
            data: dict[str, Any] = json.loads(archive.read(_RECORD))
            entries = [e for e in archive.infolist() if e.filename != _RECORD]
        return Contents(_record(data), entries, dict(data["parts"]), list(data["groups"]))
    except (KeyError, ValueError, TypeError, zipfile.BadZipFile, zlib.error) as problem:
        raise BadSet(f"its record is not understood ({problem})") from problem


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
        while block := file.read(BLOCK):
            sums.append(zlib.crc32(block))
            out.write(block)
    return sums


def _record(data: Mapping[str, Any]) -> Record:
    unmet = [Verdict(**{**v, "state": RequirementState(v["state"])}) for v in data["unmet"]]
    return Record(
        dict(data["installed"]),
        dict(data["replaced"]),
        tuple(data["modules"]),
        dict(data["refused"]),
        tuple(unmet),
        float(data["seconds"]),
    )


def _groups(folder: Path) -> list[list[str]]:
    """Top-level names that a distribution brings together, such as a module and its libraries, as
    its RECORD says; those with a name in common are one group."""
    groups: list[set[str]] = []
    for file in folder.glob("*/*.dist-info/RECORD"):
        with open(file, encoding="utf-8", errors="replace", newline="") as rows:
            own = {row[0].partition("/")[0] for row in csv.reader(rows) if row}
        own = {name for name in own if name not in _SHARED and not name.startswith("..")}
        for other in [group for group in groups if group & own]:
            groups.remove(other)
            own |= other
        groups.append(own)
    return [sorted(group) for group in groups]
