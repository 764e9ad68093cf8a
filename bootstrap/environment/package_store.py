"""Package sets on the volume: one file each, complete or not at all.

Thousands of small files would cost a round trip each on a network volume, so a set is one
uncompressed zip that several threads read in large blocks directly into place. Each file, and each
part of a large one, has a checksum.
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
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bootstrap.core.files import open_regular, publish_new
from bootstrap.core.temp_files import look_at_leftover
from bootstrap.environment.requirements import Judgement, RequirementState, Verdict

#: A set's folders: before the interpreter's packages (replacing some), and after them.
BEFORE, AFTER = "before", "after"
#: Days that a set is kept after its last use, and how many are kept longer than one day.
KEPT_DAYS = 30
KEPT_SETS = 4
_DAY = 24 * 3600
_RECORD = "packages.json"
_MOST_RECORD = 4 << 20
BLOCK = 8 << 20
# Folders that many distributions share.
_SHARED = ("bin", "share", "etc", "include", "lib", "__pycache__")
_NAME = re.compile(r"[A-Za-z0-9._+-]+-[0-9a-f]{16}\.zip")


class BadSet(Exception):
    """A kept set cannot be read; the message completes "… cannot be used: …"."""


@dataclass(frozen=True)
class Record:
    """What a set contains. `installed` are versions by normalised name, `replaced` the versions
    they replace, `modules` what can be imported from it, `refused` the reasons by requirement,
    `unmet` what is still unmet with the set, `seconds` its build time. Logins in addresses are
    masked."""

    installed: Mapping[str, str] = field(default_factory=dict)
    replaced: Mapping[str, str] = field(default_factory=dict)
    modules: Sequence[str] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    unmet: Sequence[Verdict] = ()
    seconds: float = 0.0

    def on(self, judgement: Judgement) -> Judgement:
        """The judgement with the set in place."""
        return judgement.with_packages(self.installed, self.unmet, self.modules)


def keep(folder: Path, record: Record, scratch: Path, kept: Path) -> None:
    """Pack the set in `folder` as `kept` on the volume, where another worker's may be by now.
    Raises OSError."""
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
    """A set's file on the volume: its `entries` without the record; the checksums of large files'
    `parts`; `groups` of top-level names that belong together."""

    record: Record
    entries: Sequence[zipfile.ZipInfo]
    parts: Mapping[str, Sequence[int]]
    groups: Sequence[Sequence[str]]


def read_record(kept: Path) -> Record:
    """A set's record, without unpacking it. Raises BadSet, OSError."""
    return read_contents(kept).record


def read_contents(kept: Path) -> Contents:
    """The record and the location of everything. Raises BadSet, OSError."""
    try:
        with open_regular(kept) as file, zipfile.ZipFile(file) as archive:
            if archive.getinfo(_RECORD).file_size > _MOST_RECORD:
                raise BadSet("its record is too long")
            data: dict[str, Any] = json.loads(archive.read(_RECORD))
            entries = [e for e in archive.infolist() if e.filename != _RECORD]
        return Contents(_record(data), entries, dict(data["parts"]), list(data["groups"]))
    except (KeyError, ValueError, TypeError, zipfile.BadZipFile, zlib.error) as problem:
        raise BadSet(f"its record could not be parsed ({problem})") from problem


def mark_used(kept: Path) -> None:
    """Mark a set as in use by its modification time. Raises OSError."""
    os.utime(kept)


def discard(kept: Path) -> None:
    """Remove a damaged set, which no worker could use; a read-only volume keeps it."""
    with suppress(OSError):
        kept.unlink()


def sweep(kept: Path, now: float) -> None:
    """Remove stale sets beside `kept`, and partial files of killed workers. `now` is in seconds by
    the volume's clock. Raises OSError.

    Endpoints with other images or nodes share the folder without knowing of each other, so age
    decides: a set is removed if no start has used it for `KEPT_DAYS`, or for a day if `KEPT_SETS`
    others were used since. Each start marks its set before opening it; if one is removed in
    between, its reader builds it again.
    """
    sets = []
    for path in kept.parent.iterdir():
        leftover = look_at_leftover(str(path), now)
        if leftover is not None and leftover.stale and leftover.removable:
            path.unlink(missing_ok=True)
        elif (
            _NAME.fullmatch(path.name)
            and "-torch" in path.name
            and path != kept
            and (found := _stat(path)) is not None
        ):
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
    """Wheels contain no links; one made by a build would break elsewhere."""
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
    """Top-level names of one distribution, such as a module and its libraries, by its RECORD;
    distributions that share a name are one group."""
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
