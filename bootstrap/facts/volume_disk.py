"""Room on the volume, whether it takes a file, and who may do what in its folders."""

from __future__ import annotations

import os
import stat
import time
import uuid
from dataclasses import dataclass

from bootstrap.core.files import Trouble, trouble_of


@dataclass(frozen=True)
class Space:
    """What statvfs says, in bytes and inodes. A network file system often tells what its whole
    cluster has, not this volume's quota; `inodes_total` is 0 where they are not counted."""

    total: int
    free: int
    inodes_total: int
    inodes_free: int


@dataclass(frozen=True)
class Writing:
    """Making, flushing and removing a tiny file: seconds it took, or what went wrong.

    `now` is the file's time, so the volume's own clock, in seconds since 1970.
    """

    seconds: float
    now: float | None = None
    trouble: Trouble | None = None


@dataclass(frozen=True)
class Access:
    """Who owns a path and what this process may do there. `mode` holds the permission bits;
    a folder that cannot be entered counts as not readable."""

    path: str
    mode: int
    owner: int
    group: int
    is_folder: bool
    readable: bool
    writable: bool


def look_at_space(path: str) -> Space:
    """Raises OSError."""
    found = os.statvfs(path)
    return Space(
        total=found.f_blocks * found.f_frsize,
        free=found.f_bavail * found.f_frsize,
        inodes_total=found.f_files,
        inodes_free=found.f_favail,
    )


def try_writing(folder: str) -> Writing:
    """Make a file in `folder`, flush it to the disk, remove it.

    Its name is one of those that `leftovers` sweeps, should this process be killed meanwhile.
    """
    path = os.path.join(folder, f".{uuid.uuid4().hex}.part")
    started = time.monotonic()
    try:
        now = _write_and_remove(path)
    except OSError as problem:
        return Writing(time.monotonic() - started, trouble=trouble_of(problem))
    return Writing(time.monotonic() - started, now)


def _write_and_remove(path: str) -> float:
    """A full disk or quota can show as late as at fsync or close."""
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        try:
            os.write(descriptor, b"a probe of the doctor\n")
            os.fsync(descriptor)
            return os.fstat(descriptor).st_mtime
        finally:
            os.close(descriptor)
    finally:
        os.unlink(path)


def look_at_access(path: str) -> Access | None:
    """None when there is nothing at `path`, or it cannot be asked."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    is_folder = stat.S_ISDIR(found.st_mode)
    return Access(
        path=path,
        mode=stat.S_IMODE(found.st_mode),
        owner=found.st_uid,
        group=found.st_gid,
        is_folder=is_folder,
        readable=os.access(path, os.R_OK | os.X_OK if is_folder else os.R_OK),
        writable=os.access(path, os.W_OK | os.X_OK if is_folder else os.W_OK),
    )
