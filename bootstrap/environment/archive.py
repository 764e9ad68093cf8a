"""Packages in one file on the volume: written and read in one go, where thousands of small files
would cost a round trip each, and there completely or not at all.

It is a zip without compression: each file has a checksum, and no name can lead out of the folder.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from bootstrap.core.concurrency import Crew
from bootstrap.core.temp_names import look_at_leftover
from bootstrap.environment.judge import Wanted, is_archive_name, name_for, wanted_by
from bootstrap.environment.packs import Pack
from bootstrap.environment.site_packages import Package, PackagesFacts
from bootstrap.volume.layout import OWN_FOLDER

_RECORD = ".node-packages.json"
_BLOCK = 8 * 1024 * 1024
_STREAMS = 8
_MOST_RECORD = 1 << 20
#: Days that an archive is kept after the last start that used it.
KEPT_DAYS = 30


class BadArchive(Exception):
    """It cannot be read; the message completes "… cannot be used: …"."""


@dataclass(frozen=True)
class Record:
    """What is in an archive. `requirements` is what was asked for, `installed` versions by
    normalised name, `refused` the reason by requirement."""

    requirements: tuple[str, ...] = ()
    installed: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)


def archive_at(volume: Path, wanted: Wanted, packages: PackagesFacts) -> Path:
    """Where the archive for these requirements and this interpreter is kept."""
    libc = os.confstr("CS_GNU_LIBC_VERSION") or ""
    return volume / OWN_FOLDER / "packages" / f"{name_for(wanted, packages, libc)}.zip"


def pack(folder: Path, record: Record, archive: Path) -> None:
    """Make the file `archive` of what is in `folder`. Raises OSError."""
    with zipfile.ZipFile(archive, "x", strict_timestamps=False) as packed:
        packed.writestr(_RECORD, json.dumps({"version": 1, **asdict(record)}, indent=1))
        for parent, names, files in os.walk(folder):
            names.sort()
            for name in sorted(files):
                path = os.path.join(parent, name)
                packed.write(path, os.path.relpath(path, folder))


def read_record(archive: Path) -> Record:
    """What is in an archive, without unpacking it. Raises BadArchive, OSError."""
    try:
        with zipfile.ZipFile(archive) as packed:
            return _record(packed)
    except (zipfile.BadZipFile, zlib.error) as problem:
        raise BadArchive(str(problem)) from problem


def unpack(archive: Path, folder: Path, timeout: float) -> Record:
    """Unpack into the new folder `folder` on local disk, leaving nothing when it fails or the
    volume does not hand it over within `timeout` seconds.

    Raises BadArchive when the archive itself is at fault, and OSError.
    """
    copy = folder.with_name(f"{folder.name}.zip")
    try:
        _copy(archive, copy, timeout)
        with zipfile.ZipFile(copy) as packed:
            record = _record(packed)
            for entry in packed.infolist():
                _extract(packed, entry, folder)
        return record
    except (zipfile.BadZipFile, zlib.error) as problem:
        shutil.rmtree(folder, ignore_errors=True)
        raise BadArchive(str(problem)) from problem
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        copy.unlink(missing_ok=True)


def mark_used(archive: Path) -> None:
    """Tell all workers by its time of change that the archive is in use. Raises OSError."""
    os.utime(archive)


def sweep(kept: Path, now: float) -> None:
    """Remove from the folder of the archive `kept` the others that no start has used for
    `KEPT_DAYS`, and what killed workers left half copied. `now` is in seconds by the volume's
    clock. Raises OSError.

    Endpoints with other images or node packs share the folder, and none knows of the others: age
    alone says that nobody needs an archive, and a start that does so later makes it anew. Each
    start marks its archive before it opens it, so what is being read is never old. Should one be
    removed between our look and our unlink, its reader goes on, or on NFS is told that it is gone
    (ESTALE) and makes it anew.
    """
    for path in list(kept.parent.iterdir()):
        leftover = look_at_leftover(str(path), now)
        half = leftover is not None and leftover.stale and leftover.removable
        if half or (path != kept and _is_forgotten(path, now)):
            path.unlink(missing_ok=True)


def _is_forgotten(path: Path, now: float) -> bool:
    if not is_archive_name(path.name):
        return False
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISREG(found.st_mode) and now - found.st_mtime > KEPT_DAYS * 24 * 3600


def _copy(archive: Path, copy: Path, timeout: float) -> None:
    """Side by side: a network volume gives one stream a third of what it gives several."""
    source = os.open(archive, os.O_RDONLY)
    target = os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    size = os.fstat(source).st_size
    blocks = [partial(_copy_block, source, target, at) for at in range(0, size, _BLOCK)]
    # Descriptors that a silent volume still holds are left to it.
    if not Crew(_STREAMS).run(blocks, timeout):
        raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT), str(archive))
    os.close(source)
    os.close(target)


def _copy_block(source: int, target: int, position: int) -> None:
    end = position + _BLOCK
    while position < end and (data := os.pread(source, end - position, position)):
        position += os.pwrite(target, data, position)


def _extract(packed: zipfile.ZipFile, entry: zipfile.ZipInfo, folder: Path) -> None:
    """Some packages bring programs, which must stay executable."""
    place = packed.extract(entry, folder)
    if (entry.external_attr >> 16) & 0o100:
        os.chmod(place, 0o755)


def _record(packed: zipfile.ZipFile) -> Record:
    try:
        if packed.getinfo(_RECORD).file_size > _MOST_RECORD:
            raise BadArchive("its record is too long")
        told: dict[str, Any] = json.loads(packed.read(_RECORD))
        return Record(
            tuple(map(str, told["requirements"])),
            {str(k): str(v) for k, v in dict(told["installed"]).items()},
            {str(k): str(v) for k, v in dict(told["refused"]).items()},
        )
    except (KeyError, ValueError, TypeError) as problem:
        raise BadArchive(f"its record is not understood ({problem})") from problem


def with_added(packages: PackagesFacts, packs: Iterable[Pack], volume: Path) -> PackagesFacts:
    """`packages`, and behind them those of the archive on the volume that a worker would use for
    `packs`."""
    if not packages.usable:
        return packages
    wanted = wanted_by(packs, packages)
    archive = archive_at(volume, wanted, packages)
    try:
        record = read_record(archive)
    except (OSError, BadArchive):
        return packages
    added = [Package(name, version, str(archive)) for name, version in record.installed.items()]
    return replace(packages, packages=(*packages.packages, *added))
