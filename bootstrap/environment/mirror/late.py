"""Folders of site-packages that a start does not look into. They are links as a whole at first, and
become folders of links while ComfyUI starts.

For whoever reads, a link to a folder is as good, and tens of thousands of files in it need not be
listed and linked before ComfyUI starts. But pip would write and delete through it, on the volume.
So each is listed as it is now, made beside, and exchanged for its link in one step.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

from bootstrap.core.concurrency import Crew
from bootstrap.environment.mirror.links import make_links
from bootstrap.environment.mirror.tree import Tree
from bootstrap.environment.mirror.walk import Walk

_THREADS = 16
_NICE = 10
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # linux/fs.h


class LateFolders:
    """Those of `tree`, a mirror of `source` at `place`; made in the new folder `scratch`, on the
    same disk. One that cannot be made stays a link."""

    def __init__(self, source: Path, place: Path, scratch: Path, tree: Tree, tag: str) -> None:
        self._source = str(source)
        self._place = str(place)
        self._scratch = str(scratch)
        self._tree = tree
        self._tag = tag

    def start(self, timeout: float) -> threading.Thread:
        """Make them in the background, within `timeout` seconds. Nothing is raised."""
        thread = threading.Thread(
            target=self._make, args=(timeout,), name="late-folders", daemon=True
        )
        thread.start()
        return thread

    def _make(self, timeout: float) -> None:
        end = time.monotonic() + timeout
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        with suppress(OSError):
            made = self._listed(timeout)
            left = end - time.monotonic()
            links = list(made.linked_files()) if made is not None else []
            if made is not None and make_links(
                links, self._source, self._scratch, max(0.0, left), _NICE
            ):
                for path in sorted(self._tree.late & made.folders.keys()):
                    self._put(path, made)
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _listed(self, timeout: float) -> Tree | None:
        """Folders without their files, at the scratch place; None where there was no time."""
        made, crew = Tree(), Crew(_THREADS)
        walk = Walk(self._source, self._scratch, made, self._tag, crew, names_only=True)
        for path in self._tree.late:
            os.makedirs(os.path.join(self._scratch, path))
        tasks = [partial(walk.look_at, path) for path in sorted(self._tree.late)]
        return made if crew.run(tasks, timeout) else None

    def _put(self, path: str, made: Tree) -> None:
        with suppress(OSError):
            _exchange(os.path.join(self._scratch, path), os.path.join(self._place, path))
            self._tree.folders.update({p: made.folders[p] for p in (path, *made.below(path))})
            self._tree.late.discard(path)


def _exchange(folder: str, link: str) -> None:
    """A folder takes the place of a link. Where the file system cannot exchange two names
    (renameat2(2)), neither is there for some microseconds."""
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = _AT_FDCWD, os.fsencode(folder), _AT_FDCWD, os.fsencode(link)
    if not hasattr(libc, "renameat2") or libc.renameat2(*arguments, _RENAME_EXCHANGE) != 0:
        if ctypes.get_errno() not in (0, errno.EINVAL, errno.ENOSYS):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), link)
        if os.path.islink(link):
            os.unlink(link)
            os.rename(folder, link)
