"""What of a file lies in the kernel's page cache: asked, and read into it.

A page that is cached costs a reader nothing, wherever the file lies: FUSE, NFS, local disk. Readers
of safetensors map the file and touch it in small pieces, each a round trip on a network volume;
a few threads with blocks of megabytes get the same bytes several times as fast.
"""

from __future__ import annotations

import ctypes
import mmap
import os

BLOCK = 8 * 1024 * 1024
_PAGE = mmap.PAGESIZE
_NOTHING_MAPPED = ctypes.c_void_p(-1).value


def missing_blocks(path: str, block: int = BLOCK) -> list[int]:
    """Offsets of the blocks of a file of which any page is not cached, in order.

    Every block where the system cannot tell. Raises OSError when the file cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        facts = os.fstat(descriptor)
        size = facts.st_size
        # Of a file that is neither ours nor ours to write, mincore claims every page (Linux 5.2).
        ours = facts.st_uid == os.geteuid() or os.access(path, os.W_OK)
        pages = _resident(descriptor, size) if ours else None
    finally:
        os.close(descriptor)
    blocks = range(0, size, block)
    if pages is None:
        return list(blocks)
    each = block // _PAGE
    return [o for o in blocks if 0 in pages[o // _PAGE : o // _PAGE + each]]


def read_block(descriptor: int, offset: int, buffer: bytearray) -> int:
    """Read one block into the page cache by way of `buffer`; bytes read. Raises OSError."""
    return os.preadv(descriptor, [buffer], offset)


def _resident(descriptor: int, size: int) -> bytes | None:
    """A byte for each page, 0 for one that is not cached, by mincore(2); None where it fails.

    The file is mapped for the question only, which reads nothing.
    """
    if size == 0:
        return b""
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        libc.mmap.restype = ctypes.c_void_p
        place = libc.mmap(
            None,
            ctypes.c_size_t(size),
            mmap.PROT_READ,
            mmap.MAP_SHARED,
            descriptor,
            ctypes.c_long(0),
        )
    except AttributeError:
        return None
    if place == _NOTHING_MAPPED:
        return None
    try:
        vector = (ctypes.c_ubyte * (-(-size // _PAGE)))()
        if libc.mincore(ctypes.c_void_p(place), ctypes.c_size_t(size), vector) != 0:
            return None
        return bytes(vector).translate(_LOWEST_BIT)
    finally:
        libc.munmap(ctypes.c_void_p(place), ctypes.c_size_t(size))


# Only the lowest bit of mincore's bytes means anything.
_LOWEST_BIT = bytes(value & 1 for value in range(256))
