"""What a mirror of site-packages holds, by paths below it. Pure."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

#: Folders of bytecode. What is in them stands or falls with the source files beside them.
BYTECODE = "__pycache__"
#: Files from this size on (bytes) are linked and read ahead, not copied.
LARGE = 1 << 20


class FileState(NamedTuple):
    """What tells one version of a file from another: size in bytes, time of change in ns. `mode`
    holds the permissions."""

    size: int
    mtime_ns: int
    mode: int = 0o644

    @classmethod
    def of(cls, found: os.stat_result) -> FileState:
        """From what the system says of a file."""
        return cls(found.st_size, found.st_mtime_ns, found.st_mode & 0o777)

    def same_content(self, other: FileState) -> bool:
        """Permissions aside, the same file?"""
        return self[:2] == other[:2]


@dataclass
class Folder:
    """One folder of the volume as it was listed: names of files, and of links with their text.
    `mtime_ns` is 0 for bytecode, which is not looked at again."""

    mtime_ns: int
    files: set[str] = field(default_factory=set)
    links: dict[str, str] = field(default_factory=dict)


@dataclass
class Tree:
    """A mirror: folders by path ("" is site-packages itself), files that were copied, sizes of
    large ones that ComfyUI's start needs, in the order in which it does, and paths of folders that
    are still links as a whole (late.py)."""

    folders: dict[str, Folder] = field(default_factory=dict)
    copied: dict[str, FileState] = field(default_factory=dict)
    large: dict[str, int] = field(default_factory=dict)
    late: set[str] = field(default_factory=set)

    def holds(self, path: str) -> bool:
        """Is there a plain file of this path on the volume?"""
        parent, name = os.path.split(path)
        return parent in self.folders and name in self.folders[parent].files

    def names_in(self, path: str) -> frozenset[str]:
        """Plain files in one folder; none where there is no such folder."""
        return frozenset(self.folders[path].files) if path in self.folders else frozenset()

    def linked_files(self) -> Iterator[str]:
        """Plain files that were not copied."""
        for parent, folder in self.folders.items():
            for name in folder.files:
                path = join(parent, name)
                if path not in self.copied:
                    yield path

    def below(self, path: str) -> list[str]:
        """Folders in the folder `path`, at any depth."""
        prefix = f"{path}/" if path else ""
        return [p for p in list(self.folders) if p.startswith(prefix) and p != path]

    def forget(self, path: str) -> None:
        """The file or folder is gone."""
        for folder in [path, *self.below(path)] if path in self.folders else ():
            for name in self.folders.pop(folder).files:
                self._forget_file(join(folder, name))
        self.late.discard(path)
        parent, name = os.path.split(path)
        if parent in self.folders:
            self.folders[parent].files.discard(name)
            self.folders[parent].links.pop(name, None)
        self._forget_file(path)

    def _forget_file(self, path: str) -> None:
        self.copied.pop(path, None)
        self.large.pop(path, None)


def join(parent: str, name: str) -> str:
    """A path below site-packages."""
    return f"{parent}/{name}" if parent else name


def source_of(bytecode: str) -> str | None:
    """The source file that `a/__pycache__/b.cpython-311.pyc` was compiled from; None for any other
    path (PEP 3147)."""
    parent, name = os.path.split(bytecode)
    above, folder = os.path.split(parent)
    if folder != BYTECODE or not name.endswith(".pyc"):
        return None
    return join(above, f"{name.partition('.')[0]}.py")


def bytecode_of(source: str, tag: str) -> str | None:
    """Where the bytecode of a source file lies; None for any other file."""
    parent, name = os.path.split(source)
    stem, suffix = os.path.splitext(name)
    return join(join(parent, BYTECODE), f"{stem}.{tag}.pyc") if suffix == ".py" else None


def is_fresh(header: bytes, source: FileState) -> bool:
    """Was bytecode that begins so compiled from this version of its source? PEP 552: magic,
    flags, then time and size of the source; with a hash in their place it is not known."""
    if len(header) < 16 or header[4:8] != bytes(4):
        return False
    seconds = source.mtime_ns // 1_000_000_000 & 0xFFFFFFFF
    size = source.size & 0xFFFFFFFF
    return header[8:16] == seconds.to_bytes(4, "little") + size.to_bytes(4, "little")


def children(tree: Tree) -> Mapping[str, set[str]]:
    """Names of the folders in each folder."""
    found: dict[str, set[str]] = {path: set() for path in tree.folders}
    for path in (*tree.folders, *tree.late):
        if path:
            parent, name = os.path.split(path)
            found.setdefault(parent, set()).add(name)
    return found


def with_late_folders(tree: Tree, needed: Iterable[str]) -> Tree:
    """The tree with those folders only in which there is one of the `needed` files; others in them
    are late. Bytecode goes with its source."""
    kept = {""}
    for path in needed:
        parent = os.path.dirname(path)
        while parent not in kept:
            kept.add(parent)
            parent = os.path.dirname(parent)
    kept |= {join(path, BYTECODE) for path in kept} & tree.folders.keys()
    others = {path for path in (*tree.folders, *tree.late) if path not in kept}
    late = {path for path in others if os.path.dirname(path) in kept}
    folders = {path: folder for path, folder in tree.folders.items() if path in kept}
    return Tree(folders, tree.copied, tree.large, late)
