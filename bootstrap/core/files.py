"""Lists folders, and writes and publishes files: complete or not at all, never replacing another.

The few file system calls that correctness depends on are in one place (`Disk`): a network file
system may lack hard links or not honour O_EXCL, and tests replace it with such a disk.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain, count, islice
from pathlib import Path, PurePath
from typing import BinaryIO, NamedTuple

from bootstrap.core.text import size_text

# More names than this in one folder are ignored.
MOST_NAMES = 5000
NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS})
_BLOCK, _SMALL_BLOCK = 1 << 20, 1 << 16
_RENAME_NOREPLACE = 1  # linux/fs.h
_AT_FDCWD = -100
_CANNOT = NO_LINKS | {errno.EINVAL}
# A publisher holds the marker for a few system calls; an older one belongs to a dead process.
_MARKER_SECONDS = 10.0
# The system's own folders: never a volume, and nothing is ever created in them. There is no volume
# below the latter ones either.
_SYSTEM = frozenset("/ /dev /home /opt /run /tmp /var".split())
_ALL_SYSTEM = frozenset(
    "bin boot etc lib lib32 lib64 libx32 lost+found proc sbin snap sys usr".split()
)


@dataclass(frozen=True)
class Trouble:
    """An OSError: `name` is its symbol (`EACCES`), `text` its message."""

    name: str
    text: str


@dataclass(frozen=True)
class Folder:
    """The names in a folder by type, links not followed; `trouble` if it is unreadable."""

    path: str
    folders: frozenset[str] = frozenset()
    files: frozenset[str] = frozenset()
    links: frozenset[str] = frozenset()
    trouble: Trouble | None = None

    @property
    def names(self) -> frozenset[str]:
        """All of them."""
        return self.folders | self.files | self.links

    @property
    def exists(self) -> bool:
        """Is it there and a folder, readable or not?"""
        return self.trouble is None or self.trouble.name not in ("ENOENT", "ENOTDIR", "ELOOP")

    def paths(self, names: frozenset[str]) -> list[str]:
        """Full paths of some of the names, sorted."""
        return [os.path.join(self.path, name) for name in sorted(names)]


def list_folder(path: str) -> Folder:
    """List `path`, which may be a link."""
    folders, files, links = set(), set(), set()
    try:
        with os.scandir(path) as entries:
            for entry in islice(entries, MOST_NAMES):
                if entry.is_symlink():
                    links.add(entry.name)
                elif entry.is_dir(follow_symlinks=False):
                    folders.add(entry.name)
                else:
                    files.add(entry.name)
    except OSError as problem:
        return Folder(path, trouble=trouble_of(problem))
    return Folder(path, frozenset(folders), frozenset(files), frozenset(links))


def trouble_of(problem: OSError) -> Trouble:
    """The `Trouble` of an OSError."""
    name = errno.errorcode.get(problem.errno or 0, "unknown")
    return Trouble(name, problem.strerror or str(problem))


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
        """A new file, open for reading and writing; FileExistsError if it exists."""
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
        """Make the data durable; an exceeded quota can show here first."""
        os.fsync(descriptor)

    def close(self, descriptor: int) -> None:
        """Close; on NFS an exceeded quota can show here first."""
        os.close(descriptor)

    def flush_folder(self, folder: Path) -> None:
        """Make names durable, if the file system can flush folders."""
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        except OSError:
            pass
        finally:
            os.close(descriptor)

    def free_bytes(self, folder: Path) -> int:
        """Free space for an ordinary user. Quotas do not show here: expect ENOSPC and EDQUOT
        anyway."""
        facts = os.statvfs(folder)
        return facts.f_bavail * facts.f_frsize


class Stamp(NamedTuple):
    """Identifies a version of a file: its size in bytes, and when it changed."""

    size: int
    changed_ns: int

    @classmethod
    def of(cls, path: Path) -> Stamp | None:
        """With the modification time, which a copy has from its source; None if there is no such
        file."""
        try:
            found = os.stat(path)
        except OSError:
            return None
        return cls(found.st_size, found.st_mtime_ns)


@contextmanager
def replacing(path: Path, scratch: Path | None = None) -> Iterator[Path]:
    """A temporary name beside `path` to write to; it replaces `path` at the end of the block, and
    is removed if that fails. Raises OSError."""
    part = scratch or part_beside(path)
    try:
        yield part
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_whole(path: Path, text: str, scratch: Path | None = None) -> None:
    """Write `text` to `path`, completely or not at all, keeping its permissions. Raises OSError."""
    with replacing(path, scratch) as part:
        part.write_text(text, encoding="utf-8")
        with suppress(OSError):
            shutil.copymode(path, part)


def publish(part: Path, final: Path, disk: Disk) -> bool:
    """Give `part` the name `final`. False if the name is taken: that file stays, and `part` is left
    to the caller. Raises OSError.

    Hard link first, which every POSIX file system does atomically; then renameat2; without either,
    a check and a rename behind a marker made with O_EXCL. If O_EXCL does not exclude either, two
    may rename one after the other: both files are checked and identical.
    """
    try:
        return _name_it(part, final, disk, breaks_markers=True)
    finally:
        disk.flush_folder(final.parent)


def _name_it(part: Path, final: Path, disk: Disk, breaks_markers: bool) -> bool:
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
    return _behind_marker(part, final, disk, breaks_markers)


def _behind_marker(part: Path, final: Path, disk: Disk, breaks_markers: bool) -> bool:
    """A stale marker is broken only for identical files: the owner of another result may be frozen
    between check and rename, and must not replace ours when it resumes."""
    marker = final.with_name(lease_name(final.name, "publishing"))
    deadline = time.monotonic() + _MARKER_SECONDS
    while True:
        try:
            disk.close(disk.create(marker))
            break
        except FileExistsError:
            if final.exists() or not breaks_markers:
                return False
            if time.monotonic() > deadline:  # its maker is dead
                marker.unlink(missing_ok=True)
            time.sleep(0.05)
    try:
        if os.path.lexists(final):
            return False
        disk.rename(part, final)
        return True
    finally:
        marker.unlink(missing_ok=True)


def publish_copy(source: Path, folder: Path, name: str) -> Path:
    """Copy `source` to `folder`/`name`, or to `name` with a number if that is taken.

    The bytes are on the volume before the final name is. Raises OSError, leaving nothing behind.
    """
    folder.mkdir(parents=True, exist_ok=True)
    part = part_beside(folder / name)
    stem, suffix = os.path.splitext(name)
    try:
        _copy_synced(source, part)
        names = (folder / f"{stem}-{number}{suffix}" for number in count(2))
        return next(f for f in chain((folder / name,), names) if _publish_result(part, f))
    finally:
        part.unlink(missing_ok=True)


def publish_new(source: Path, final: Path) -> bool:
    """Copy `source` to `final`, in a folder that is there; False when the name is taken.

    Raises OSError, leaving nothing behind.
    """
    part = part_beside(final)
    try:
        _copy_synced(source, part)
        return _publish_result(part, final)
    finally:
        part.unlink(missing_ok=True)


def link_text(path: str | PurePath) -> str | None:
    """A link's text; None if there is no link."""
    try:
        return os.readlink(path)
    except OSError:
        return None


def remove_if(place: PurePath, aside: PurePath, is_meant: Callable[[PurePath], bool]) -> bool:
    """Remove `place` if it is what is meant; else it stays. It is moved `aside` before it is looked
    at, since between a check and an unlink another process could put a real file in its place.
    Raises OSError."""
    try:
        os.rename(place, aside)
    except FileNotFoundError:
        return False
    if is_meant(aside):
        os.unlink(aside)
        return True
    text = link_text(aside)
    if text is not None and text == link_text(place):
        os.unlink(aside)  # another worker has made it again
        return False
    if os.path.lexists(place):
        raise OSError(errno.EBUSY, f"changed under us; what stood there is kept at {aside}")
    os.rename(aside, place)
    return False


def read_regular(path: str | Path, most: int) -> bytes:
    """The content of a regular file. Raises OSError, also for one of more than `most` bytes."""
    with open_regular(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"it has more than {size_text(most)}", str(path))
    return data


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading. Raises OSError, also for a FIFO or a device, where an
    ordinary open could wait for a writer forever."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def copy_opened(source: int, found: os.stat_result, place: str) -> Stamp:
    """Copy an open file, whatever size `found` says, to a new one with its time and permissions;
    the copy's stamp. Raises OSError."""
    step = min(max(found.st_size + 1, _SMALL_BLOCK), _BLOCK)
    blocks = iter(partial(os.read, source, step), b"")
    return write_new(place, blocks, found.st_mode & 0o777, found.st_mtime_ns)


def write_new(place: str, blocks: Iterable[bytes | memoryview], mode: int, mtime_ns: int) -> Stamp:
    """A new file, which its owner may change, with the time of its source. Raises OSError."""
    size = 0
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    target = os.open(place, flags, mode | stat.S_IWUSR)
    try:
        for block in blocks:
            rest = memoryview(block)
            size += len(rest)
            while rest:  # a full disk accepts a part, and fails at the next write
                rest = rest[os.write(target, rest) :]
        os.utime(target, ns=(mtime_ns, mtime_ns))
    finally:
        os.close(target)
    return Stamp(size, mtime_ns)


def key_of(name: str) -> str:
    """16 hex digits for a model's file name."""
    return hashlib.sha256(name.encode()).hexdigest()[:16]


def lease_name(name: str, what: str = "lease") -> str:
    """The name of the lease that all who want a model share."""
    return f".model-{key_of(name)}.{what}"


def part_beside(final: Path) -> Path:
    """A name for an incomplete file; core/temp_files.py cleans it up if we are killed."""
    return final.parent / f".{uuid.uuid4().hex}.part"


def _copy_synced(source: Path, part: Path) -> None:
    """Copy and flush: a full disk or quota can show as late as at fsync or close."""
    with open_regular(source) as reader, open(part, "xb") as writer:
        shutil.copyfileobj(reader, writer, 8 * 1024 * 1024)
        writer.flush()
        os.fsync(writer.fileno())


def _publish_result(part: Path, final: Path) -> bool:
    return _name_it(part, final, Disk(), breaks_markers=False)


def stays_within(path: str | os.PathLike[str], root: str | os.PathLike[str]) -> bool:
    """Is `path`, with links in its parents resolved, below `root`? `path` itself is not
    followed."""
    return contains(os.path.realpath(root), os.path.realpath(os.path.dirname(path)))


def is_system_folder(path: str | os.PathLike[str]) -> bool:
    """Is `path` (absolute) one of the system's own folders? Does not touch the disk."""
    plain = "/" + os.path.normpath(path).lstrip("/")
    return plain in _SYSTEM or plain.split("/")[1] in _ALL_SYSTEM


def contains(folder: str, path: str) -> bool:
    """Is `path` the folder or below it? Compares the strings only."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")
