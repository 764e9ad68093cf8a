"""What a walk through folders found; `walk.py` does the walking."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import Enum
from pathlib import Path


class Kind(str, Enum):
    """What a name in a folder stands for."""

    FILE = "file"
    FOLDER = "folder"
    LINK = "link"
    OTHER = "other"


class Target(str, Enum):
    """Where a symbolic link leads. `ESCAPES` is there, but outside the trees looked at."""

    OK = "ok"
    BROKEN = "broken"
    LOOP = "loop"
    ESCAPES = "escapes"


@dataclass(frozen=True)
class Entry:
    """One name in a tree.

    `path` is relative to `root`. `size` (bytes), `mtime` (seconds since 1970) and `inode`
    ((device, inode)) are a file's own, or those of the file a link leads to; 0 and None for
    folders, which are not asked. `link` is a link's text; `to_folder` that it leads to a folder,
    whose entries then stand under the link's path unless that would never end.
    """

    root: Path
    path: str
    kind: Kind
    size: int = 0
    mtime: float = 0.0
    inode: tuple[int, int] | None = None
    link: str | None = None
    target: Target | None = None
    to_folder: bool = False

    @property
    def full_path(self) -> str:
        """The path as the system opens it."""
        return os.path.join(self.root, self.path)

    @property
    def is_file(self) -> bool:
        """A regular file, or a link that leads to one."""
        return self.inode is not None and self.kind in (Kind.FILE, Kind.LINK)


@dataclass(frozen=True)
class Problem:
    """A path that could not be looked at, with the system's reason and error number."""

    path: str
    reason: str
    code: int | None = None


@dataclass(frozen=True)
class Walk:
    """Entries by root and path; problems, of which there were `problem_count`, by path.

    `complete` is False when a limit in number or time ended the walk; `seconds` is what it took.
    """

    entries: tuple[Entry, ...]
    problems: tuple[Problem, ...]
    problem_count: int
    complete: bool
    seconds: float
