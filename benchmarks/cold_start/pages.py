"""Drops what a start reads from the page cache, and checks that; touches free memory that the host
may have reclaimed."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

import psutil

from benchmarks.simulated_volume import forget_pages as forget_file

__all__ = ["forget", "forget_file", "share_in_memory", "touch_free_memory"]

_PAGE = mmap.PAGESIZE
_LEFT_ALONE = 2 * 2**30


def forget(trees: Iterable[Path]) -> None:
    """Drop the pages of all files below these folders. Pages that a running process has mapped
    stay, and so do names and attributes: unlike writing to /proc/sys/vm/drop_caches, this needs no
    root and leaves other programs alone."""
    os.sync()  # dirty pages cannot be dropped
    for tree in trees:
        for folder, _, names in os.walk(tree):
            for path in (Path(folder, name) for name in names):
                if path.is_file() and not path.is_symlink():
                    forget_file(path)


def share_in_memory(path: Path) -> float:
    """The share, 0 to 1, of a file's pages that are in the page cache. Raises OSError."""
    size = path.stat().st_size
    if not size:
        return 0.0
    libc = ctypes.CDLL(None, use_errno=True)
    count = (size + _PAGE - 1) // _PAGE
    seen = (ctypes.c_ubyte * count)()
    with open(path, "rb") as file, mmap.mmap(file.fileno(), size, mmap.MAP_PRIVATE) as view:
        start = (ctypes.c_char * size).from_buffer(view)
        try:
            failed = libc.mincore(ctypes.byref(start), ctypes.c_size_t(size), ctypes.byref(seen))
        finally:
            del start  # a view with references cannot be closed
    if failed:
        raise OSError(ctypes.get_errno(), f"mincore failed for {path}")
    return sum(page & 1 for page in bytes(seen)) / count


def touch_free_memory(size: int) -> None:
    """Touch `size` bytes of free memory, or less if less is free, and release them.

    A virtual machine may return free memory to its host (virtio's free page reporting); whoever
    touches it next waits for it, 1 s for 1 GB where this was observed. Dropping a file from the
    page cache frees its memory, so the next reader would pay for that too.
    """
    size = min(size, psutil.virtual_memory().available - _LEFT_ALONE)
    if size > 0:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
        mmap.mmap(-1, size, flags=flags).close()
