"""Which parts of a file are in the kernel's page cache, and reading more into it.

A cached page costs a reader nothing, on FUSE, NFS or local disk. Readers of safetensors map the
file and touch it in small pieces, each a round trip on a network volume; a few threads with blocks
of megabytes get the same bytes several times as fast.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

BLOCK = 8 * 1024 * 1024
_PAGE = mmap.PAGESIZE
_NO_PLACE = ctypes.c_void_p(-1).value
# Linux 5.14; faults pages in as a read would, and answers with an error where a read would fail.
_MADV_POPULATE_READ = 22
# The kernel then reads 2 MB ahead at a time (do_sync_mmap_readahead), not the 128 KB that most
# network file systems are mounted with, so requests to the server are as large as possible.
_MADV_HUGEPAGE = 14
# Only the lowest bit of mincore's bytes means anything.
_LOWEST_BIT = bytes(value & 1 for value in range(256))


class Residence(NamedTuple):
    """A file of `size` bytes; `missing` are the offsets of blocks with uncached pages, in order, or
    all blocks if the system cannot tell."""

    size: int
    missing: list[int]


def residence_of(descriptor: int) -> Residence:
    """Which blocks of an open file are cached. Raises OSError."""
    facts = os.fstat(descriptor)
    size = facts.st_size
    # For a file that we neither own nor may write, mincore reports every page as cached (Linux
    # 5.2).
    ours = facts.st_uid == os.geteuid() or os.access(f"/proc/self/fd/{descriptor}", os.W_OK)
    pages = _resident(descriptor, size) if ours else None
    blocks = range(0, size, BLOCK)
    if pages is None:
        return Residence(size, list(blocks))
    each = BLOCK // _PAGE
    missing = [o for o in blocks if 0 in pages[o // _PAGE : o // _PAGE + each]]
    return Residence(size, missing)


def read_pages(descriptor: int, offsets: Sequence[int]) -> None:
    """Read the page at each offset into the page cache, without read-ahead. Raises OSError."""
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    for offset in offsets:
        os.pread(descriptor, 1, offset)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_NORMAL)


def read_block(descriptor: int, offset: int, size: int) -> None:
    """Read `size` bytes from `offset` (a multiple of BLOCK) into the page cache. Raises OSError.

    Copies nothing into this process if the kernel supports that.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    with _mapped(descriptor, offset, size) as place:
        if place is not None:
            libc.madvise(place, ctypes.c_size_t(size), _MADV_HUGEPAGE)
            if libc.madvise(place, ctypes.c_size_t(size), _MADV_POPULATE_READ) == 0:
                return
            if ctypes.get_errno() not in (errno.EINVAL, errno.ENOSYS, errno.EFAULT):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    os.preadv(descriptor, [bytearray(size)], offset)


def _resident(descriptor: int, size: int) -> bytes | None:
    """A byte per page from mincore(2), 0 if it is not cached; None if that fails. The file is
    mapped only for this, which reads nothing.
    """
    if size == 0:
        return b""
    libc = ctypes.CDLL(None, use_errno=True)
    vector = (ctypes.c_ubyte * (-(-size // _PAGE)))()
    with _mapped(descriptor, 0, size) as place:
        if place is None or libc.mincore(place, ctypes.c_size_t(size), vector) != 0:
            return None
    return bytes(vector).translate(_LOWEST_BIT)


@contextmanager
def _mapped(descriptor: int, offset: int, size: int) -> Iterator[ctypes.c_void_p | None]:
    """A part of a file mapped into memory; None if it cannot be mapped.

    Not `mmap.mmap`, whose `madvise` holds the interpreter's lock while the disk is read.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    place = libc.mmap(
        None,
        ctypes.c_size_t(size),
        mmap.PROT_READ,
        mmap.MAP_SHARED,
        descriptor,
        ctypes.c_long(offset),
    )
    if place in (_NO_PLACE, None):
        yield None
        return
    try:
        yield ctypes.c_void_p(place)
    finally:
        libc.munmap(ctypes.c_void_p(place), ctypes.c_size_t(size))
