"""The few calls of the file system on which correctness stands, in one place.

A network file system may lack hard links, or take O_EXCL lightly; tests put such a disk in.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Sequence
from pathlib import Path

NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS})
_RENAME_NOREPLACE = 1  # linux/fs.h
_AT_FDCWD = -100


class Disk:
    """The real one. Every method raises OSError."""

    def link(self, source: Path, target: Path) -> None:
        """A second name for a file; FileExistsError when `target` is taken."""
        os.link(source, target)

    def rename_to_free_name(self, source: Path, target: Path) -> None:
        """renameat2(RENAME_NOREPLACE): FileExistsError when `target` is taken; ENOSYS or EINVAL
        where the kernel or the file system cannot."""
        try:
            renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
        except (OSError, AttributeError):
            raise OSError(errno.ENOSYS, "no renameat2") from None
        source_bytes, target_bytes = os.fsencode(source), os.fsencode(target)
        flags = ctypes.c_uint(_RENAME_NOREPLACE)
        if renameat2(_AT_FDCWD, source_bytes, _AT_FDCWD, target_bytes, flags) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(target))

    def rename(self, source: Path, target: Path) -> None:
        """Rename, replacing `target`."""
        os.rename(source, target)

    def create(self, path: Path) -> int:
        """A new file, open for reading and writing; FileExistsError when there is one."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)

    def write_at(self, descriptor: int, data: memoryview, position: int) -> None:
        """Write all of `data` at `position`."""
        while data:
            written = os.pwrite(descriptor, data, position)
            data, position = data[written:], position + written

    def read_at(self, descriptor: int, buffers: Sequence[memoryview], position: int) -> int:
        """Read into `buffers` from `position`; number of bytes, 0 at the end."""
        return os.preadv(descriptor, list(buffers), position)

    def flush(self, descriptor: int) -> None:
        """Make what was written durable; a quota can show here first."""
        os.fsync(descriptor)

    def close(self, descriptor: int) -> None:
        """Close; a quota on NFS can show here first."""
        os.close(descriptor)

    def flush_folder(self, folder: Path) -> None:
        """Make names durable, where the file system lets folders be flushed."""
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        except OSError:
            pass
        finally:
            os.close(descriptor)

    def free_bytes(self, folder: Path) -> int:
        """Room for an ordinary user. Quotas do not show here: expect ENOSPC and EDQUOT anyway."""
        facts = os.statvfs(folder)
        return facts.f_bavail * facts.f_frsize


def write_whole(path: Path, text: str, scratch: Path) -> None:
    """Put `text` at `path`, whole or not at all, by way of `scratch`. Raises OSError."""
    try:
        with open(scratch, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(scratch, path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
