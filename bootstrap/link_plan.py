"""Pure: what a plan of links is made of, and what it asks of a file system."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import PurePosixPath as Pure
from typing import Protocol


class Kind(Enum):
    """What a folder entry is, before any link is followed."""

    FILE = "file"
    FOLDER = "folder"
    LINK = "link"


class Tree(Protocol):
    """The questions a plan asks of a file system."""

    def entries(self, folder: Pure) -> Mapping[str, Kind]:
        """The entries of a folder; empty when it does not exist."""
        ...

    def kind(self, path: Pure) -> Kind | None:
        """What is at `path`; None for nothing. Links are not followed."""
        ...

    def leads_to(self, path: Pure) -> Kind | None:
        """What is at `path` after all links; None when they lead nowhere."""
        ...

    def link_text(self, path: Pure) -> str:
        """What the link at `path` reads."""
        ...

    def alike(self, one: Pure, other: Pure) -> bool:
        """Are both the same file or folder, or files with the same content?"""
        ...


@dataclass(frozen=True)
class Link:
    """Make `place` a symlink that reads `text`."""

    place: Pure
    text: str


@dataclass(frozen=True)
class Folder:
    """Make a real folder at `place`, for links from several sources."""

    place: Pure


@dataclass(frozen=True)
class Unlink:
    """Remove our own link at `place`, which reads `text` and leads nowhere."""

    place: Pure
    text: str


Action = Link | Folder | Unlink


@dataclass(frozen=True)
class Conflict:
    """`source` cannot be seen at `place`; `reason` completes the sentence. `dead_link`: what
    stands at `place` is a link that leads nowhere and is not ours to remove."""

    place: Pure
    source: Pure
    reason: str
    dead_link: bool = False


@dataclass(frozen=True)
class LinkPlan:
    """What to do, in order, and what cannot be done."""

    actions: tuple[Action, ...] = ()
    conflicts: tuple[Conflict, ...] = ()
