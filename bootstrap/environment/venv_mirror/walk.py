"""Mirrors site-packages folder by folder: what ComfyUI's start may import is copied, the rest
linked. Also for folders that have changed since they were recorded, and for deferred ones
(deferred.py).
"""

from __future__ import annotations

import os
import shutil
import stat
from functools import partial

from bootstrap.core.concurrency import WorkerPool
from bootstrap.core.files import copy_opened
from bootstrap.environment.venv_mirror.layout import (
    BYTECODE,
    LARGE,
    FileState,
    ListedFolder,
    MirrorTree,
    bytecode_of,
    children,
    join,
)

# Folders and files with such names are not imported by a start.
_SELDOM_FOLDERS = frozenset({"test", "tests", "include", "docs", "examples"})
_SELDOM_FILES = tuple(".h .hpp .cuh .cu .c .cpp .f .f90 .pyx .pxd .pyi .a .lib .cmake".split())
_LIBRARY = ".so"


class FullCopy:
    """Makes `place` match `source`, except where `tree` says that it already does; `tree` is
    updated. Bytecode of interpreters other than `tag` is linked. With `names_only`, files are
    neither copied nor linked.
    """

    def __init__(
        self,
        source: str,
        place: str,
        tree: MirrorTree,
        tag: str,
        pool: WorkerPool,
        names_only: bool = False,
    ) -> None:
        self._source = source
        self._place = place
        self._tree = tree
        self._tag = tag
        self._pool = pool
        self._names_only = names_only
        self._children = children(tree)

    def look_at(self, folder: str) -> None:
        """List one folder; its subfolders become tasks of their own. Raises OSError, except for a
        folder that was just removed."""
        try:
            self._look_at(folder)
        except FileNotFoundError:
            if not folder:
                raise

    def _look_at(self, folder: str) -> None:
        known = self._tree.folders.get(folder)
        path = os.path.join(self._source, folder)
        # Read before listing, so that a change in between is seen next time.
        mtime = 0 if folder.endswith(BYTECODE) else os.stat(path).st_mtime_ns
        with os.scandir(path) as entries:
            found = list(entries)
        now = ListedFolder(mtime)
        now.files = {e.name for e in found if e.is_file(follow_symlinks=False)}
        now.links = {e.name: self._text(folder, e.name) for e in found if e.is_symlink()}
        folders = {e.name for e in found if e.is_dir(follow_symlinks=False)}
        if known is not None:
            self._remove_gone(folder, known, now, folders)
        self._tree.folders[folder] = now
        self._add(folder, known or ListedFolder(0), folders)

    def copy_again(self, path: str) -> None:
        """Copy a file whose content has changed on the volume."""
        self._remove(path)
        self._tree.copied.pop(path, None)
        self._tree.large.pop(path, None)
        self._copy(path)

    def drop_bytecode(self, source: str) -> None:
        """Drop bytecode of an earlier version of a file; the volume's replaces it."""
        path = bytecode_of(source, self._tag)
        if path is not None and path in self._tree.copied:
            self._tree.copied.pop(path)
            self._remove(path)
            if self._tree.holds(path):
                self._link(path)

    def _remove_gone(
        self, folder: str, known: ListedFolder, now: ListedFolder, folders: set[str]
    ) -> None:
        gone = [name for name in known.files if name not in now.files]
        gone += [name for name, text in known.links.items() if now.links.get(name) != text]
        gone += [name for name in self._children[folder] if name not in folders]
        for name in gone:
            self._remove(join(folder, name))
            self._tree.forget(join(folder, name))

    def _add(self, folder: str, known: ListedFolder, folders: set[str]) -> None:
        now = self._tree.folders[folder]
        for name in folders - self._children.get(folder, set()):
            self._add_folder(join(folder, name))
        for name in now.links.keys() - known.links.keys():
            os.symlink(now.links[name], os.path.join(self._place, join(folder, name)))
        if self._names_only:
            return
        added = [join(folder, name) for name in sorted(now.files - known.files)]
        chosen = [path for path in added if self._is_likely(path)]
        for path in set(added).difference(chosen):
            self._link(path)
        self._pool.add_each(self._copy, chosen)

    def _add_folder(self, path: str) -> None:
        if os.path.basename(path) in _SELDOM_FOLDERS and not self._names_only:
            self._link(path)
            self._tree.deferred.add(path)
        else:
            os.mkdir(os.path.join(self._place, path))
            self._pool.add([partial(self.look_at, path)])

    def _is_likely(self, path: str) -> bool:
        if path.endswith(".pyc"):
            return path.endswith(f".{self._tag}.pyc")
        return not path.endswith(_SELDOM_FILES)

    def _text(self, folder: str, name: str) -> str:
        """A link's text, made absolute if it leads out of site-packages."""
        text = os.readlink(os.path.join(self._source, folder, name))
        leads = os.path.normpath(os.path.join(folder, text))
        if text.startswith("/") or not leads.startswith(".."):
            return text
        return os.path.normpath(os.path.join(self._source, leads))

    def _copy(self, path: str) -> None:
        """Copy a file; one that is large or cannot be read is linked."""
        try:
            source = os.open(os.path.join(self._source, path), os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            self._link(path)
            return
        try:
            found = os.fstat(source)
            if found.st_size >= LARGE or not stat.S_ISREG(found.st_mode):
                self._link(path)
                if _LIBRARY in os.path.basename(path):
                    self._tree.large[path] = found.st_size
                return
            copy_opened(source, found, os.path.join(self._place, path))
            self._tree.copied[path] = FileState.of(found)
        finally:
            os.close(source)

    def _link(self, path: str) -> None:
        os.symlink(os.path.join(self._source, path), os.path.join(self._place, path))

    def _remove(self, path: str) -> None:
        place = os.path.join(self._place, path)
        if os.path.islink(place) or path not in self._tree.folders:
            os.unlink(place)
        else:
            shutil.rmtree(place)
