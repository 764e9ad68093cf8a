"""One folder of a volume, listed once; bounded, and never raising."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from itertools import islice

# More names than this in one of the folders looked at are not looked at.
MOST_NAMES = 5000


@dataclass(frozen=True)
class Trouble:
    """What the system said: `name` is the error's symbol (`EACCES`), `text` its sentence."""

    name: str
    text: str


@dataclass(frozen=True)
class Folder:
    """The names in a folder by what they are, links not followed; `trouble` when unreadable."""

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
    """List `path`, following a link that stands there."""
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
    """What to keep of an OSError."""
    name = errno.errorcode.get(problem.errno or 0, "unknown")
    return Trouble(name, problem.strerror or str(problem))
