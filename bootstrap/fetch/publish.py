"""A checked part gets its final name, once. A file that has that name is never replaced."""

from __future__ import annotations

import errno
import time
from pathlib import Path

from bootstrap.fetch.disk import NO_LINKS, Disk
from bootstrap.fetch.names import lease_name

_CANNOT = NO_LINKS | {errno.EINVAL}
# A publisher holds the marker for a few system calls; one that is older belongs to a dead one.
_MARKER_SECONDS = 10.0


def publish(part: Path, final: Path, disk: Disk) -> bool:
    """Give `part` the name `final`. False when the name is taken: the winner's file stays, and
    `part` is left to the caller. Raises OSError.

    Hard link first, which every POSIX file system does atomically; renameat2 next; and where
    there is neither, a look and a rename behind a marker made with O_EXCL. If that does not
    exclude either, two may rename one after the other: both files are checked and alike.
    """
    try:
        return _name_it(part, final, disk)
    finally:
        disk.flush_folder(final.parent)


def _name_it(part: Path, final: Path, disk: Disk) -> bool:
    for give_name in (disk.link, disk.rename_to_free_name):
        try:
            give_name(part, final)
        except FileExistsError:
            return False
        except OSError as problem:
            if problem.errno not in _CANNOT:
                raise
        else:
            part.unlink(missing_ok=True)
            return True
    return _behind_marker(part, final, disk)


def _behind_marker(part: Path, final: Path, disk: Disk) -> bool:
    marker = final.with_name(lease_name(final.name, "publishing"))
    deadline = time.monotonic() + _MARKER_SECONDS
    while True:
        try:
            disk.close(disk.create(marker))
            break
        except FileExistsError:
            if final.exists():
                return False
            if time.monotonic() > deadline:  # its maker is dead
                marker.unlink(missing_ok=True)
            time.sleep(0.05)
    try:
        if final.exists() or final.is_symlink():
            return False
        disk.rename(part, final)
        return True
    finally:
        marker.unlink(missing_ok=True)
