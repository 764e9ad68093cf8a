"""A copy that appears on the volume complete or not at all, and never replaces anything."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import uuid
from pathlib import Path
from typing import BinaryIO

from bootstrap.fetch.disk import NO_LINKS


def publish_copy(source: Path, folder: Path, name: str) -> Path:
    """Copy `source` to `folder`/`name`, or to `name` with a number if that is taken.

    The bytes are on the volume before the final name is. Raises OSError, leaving nothing behind.
    """
    folder.mkdir(parents=True, exist_ok=True)
    part = part_beside(folder / name)
    try:
        _copy_synced(source, part)
        return _give_free_name(part, folder, name)
    finally:
        part.unlink(missing_ok=True)


def publish_new(source: Path, final: Path) -> bool:
    """Copy `source` to `final`, in a folder that is there; False when the name is taken.

    Raises OSError, leaving nothing behind.
    """
    part = part_beside(final)
    try:
        _copy_synced(source, part)
        _link_or_move(part, final)
        return True
    except FileExistsError:
        return False
    finally:
        part.unlink(missing_ok=True)


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading. Raises OSError, also for a FIFO or a device, of which an
    ordinary open would wait for a writer, maybe for ever."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def part_beside(final: Path) -> Path:
    """A name for what is not whole yet; facts/leftovers.py knows it, should we be killed."""
    return final.parent / f".{uuid.uuid4().hex}.part"


def _copy_synced(source: Path, part: Path) -> None:
    """Copy and flush: a full disk or quota can show as late as at fsync or close."""
    with open_regular(source) as reader, open(part, "xb") as writer:
        shutil.copyfileobj(reader, writer, 8 * 1024 * 1024)
        writer.flush()
        os.fsync(writer.fileno())


def _give_free_name(part: Path, folder: Path, name: str) -> Path:
    stem, suffix = os.path.splitext(name)
    number = 1
    while True:
        final = folder / (name if number == 1 else f"{stem}-{number}{suffix}")
        try:
            _link_or_move(part, final)
            return final
        except FileExistsError:
            number += 1


def _link_or_move(part: Path, final: Path) -> None:
    """`os.link` fails when the name is taken. Where links are unsupported the name is claimed by
    a hidden file beside it, so that of several workers only one looks and moves. Nobody breaks
    that claim, as is done for models, which are alike (fetch/publish.py): its maker may be frozen
    between look and move, and must not replace another result when it goes on."""
    try:
        os.link(part, final)
    except OSError as problem:
        if problem.errno not in NO_LINKS:
            raise
        _move_under_claim(part, final)


def _move_under_claim(part: Path, final: Path) -> None:
    claim = final.with_name(f".{final.name}.claim")
    os.close(os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
    try:
        if os.path.lexists(final):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(final))
        os.rename(part, final)
    finally:
        claim.unlink(missing_ok=True)
