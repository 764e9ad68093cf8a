"""Pure: which links make the volume's models visible in ComfyUI's own models folder.

Whole folders, categories or single files, whichever loses nothing: a link is planned only where
there is nothing yet, and only as deep as needed. If ComfyUI has a real folder of the same name, the
plan goes into it, also through a link to one on the volume, never through a link out of it. A real
file or folder is never replaced. A link is *ours* if its text is exactly what this plan would
write; only such links are removed, and only when they are broken.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import PurePosixPath as Pure
from posixpath import relpath
from typing import Protocol

from bootstrap.volume.categories import ALIASES


class EntryKind(Enum):
    """The type of a folder entry, links not followed. A plan sees `OTHER` as a file."""

    FILE = "file"
    FOLDER = "folder"
    LINK = "link"
    OTHER = "other"


class Tree(Protocol):
    """What a plan needs from a file system."""

    def entries(self, folder: Pure) -> Mapping[str, EntryKind]:
        """The entries of a folder; empty when it does not exist."""
        ...

    def kind(self, path: Pure) -> EntryKind | None:
        """The type of `path`; None if it does not exist. Links are not followed."""
        ...

    def leads_to(self, path: Pure) -> EntryKind | None:
        """The type of `path` after all links; None if they are broken."""
        ...

    def link_text(self, path: Pure) -> str:
        """The text of the link at `path`."""
        ...

    def real(self, path: Pure) -> Pure | None:
        """`path` with links resolved; None if broken."""
        ...

    def alike(self, one: Pure, other: Pure) -> bool:
        """Are both the same file or folder, or files with equal content?"""
        ...


@dataclass(frozen=True)
class MakeLink:
    """Make `place` a symlink with the text `text`."""

    place: Pure
    text: str


@dataclass(frozen=True)
class MakeFolder:
    """Make a real folder at `place`, for links from several sources."""

    place: Pure


@dataclass(frozen=True)
class RemoveLink:
    """Remove our own broken link at `place`, with the text `text`."""

    place: Pure
    text: str


Action = MakeLink | MakeFolder | RemoveLink


@dataclass(frozen=True)
class Conflict:
    """`source` cannot be shown at `place`; `reason` completes the sentence. `dead_link`: a broken
    link that is not ours is in the way."""

    place: Pure
    source: Pure
    reason: str
    dead_link: bool = False


@dataclass(frozen=True)
class LinkPlan:
    """What to do, in order, and what cannot be done."""

    actions: tuple[Action, ...] = ()
    conflicts: tuple[Conflict, ...] = ()


def plan_links(
    tree: Tree,
    sources: Iterable[Pure],
    target: Pure,
    volume: Pure,
    known: frozenset[str] = frozenset(),
) -> LinkPlan:
    """Plan links in `target` (ComfyUI's models folder) to everything in `sources`. All paths are
    absolute, without links in their parents. Links on `volume` that lead to it are relative, since
    a Pod mounts the volume elsewhere. `known` are the folders that this ComfyUI reads; models in an
    unknown folder are also shown under its other name (`text_encoders` under `clip`). A source that
    is gone still identifies our links.
    """
    planner = _Planner(tree, volume, target, known)
    sources = list(dict.fromkeys(sources))
    roots = [
        s for s in sources if tree.leads_to(s) is EntryKind.FOLDER and not tree.alike(s, target)
    ]
    planner.target = target = planner.through(target, sources)
    planner.clear(sources)
    planner.visit(roots, target)
    planner.report_shadows([*roots, target])
    return LinkPlan(tuple(planner.actions), tuple(planner.conflicts))


class _Planner:
    def __init__(self, tree: Tree, volume: Pure, target: Pure, known: frozenset[str]) -> None:
        self.tree = tree
        self.volume = volume
        self.target = target
        self.known = known
        self.actions: list[Action] = []
        self.conflicts: list[Conflict] = []
        self.cleared: set[Pure] = set()
        self.inside: list[Pure] = []  # the folders on the way to the current place

    def through(self, place: Pure, sources: list[Pure]) -> Pure:
        """`place`; where that is a link to a real folder on the volume, that folder, so that links
        are made in it. Not one that holds a source or lies in one, and none twice on one way."""
        if (
            self.tree.kind(place) is not EntryKind.LINK
            or self.tree.leads_to(place) is not EntryKind.FOLDER
        ):
            return place
        real = self.tree.real(place)
        if real is None or not real.is_relative_to(self.volume) or real in self.inside:
            return place
        # A source that another worker is removing still counts, by its name.
        homes = {home for s in sources for home in (s, self.tree.real(s)) if home is not None}
        if any(real.is_relative_to(home) or home.is_relative_to(real) for home in homes):
            return place
        return real

    def clear(self, sources: list[Pure]) -> None:
        """Remove our broken links, wherever in the target they are."""
        if self.tree.kind(self.target) is EntryKind.LINK:
            self._clear_if_ours(sources, self.target)
            return
        for name, kind in sorted(self.tree.entries(self.target).items()):
            others = ALIASES.get(name, ())
            linked = [source / n for source in sources for n in (name, *others)]
            linked += [self.target / other for other in others]
            self._clear_below(linked, self.target / name, kind)

    def _clear_below(self, sources: list[Pure], place: Pure, kind: EntryKind) -> None:
        if kind is EntryKind.LINK:
            self._clear_if_ours(sources, place)
            real = self.through(place, sources)
            place, kind = real, kind if real == place else EntryKind.FOLDER
        if kind is EntryKind.FOLDER:
            self.inside.append(place)
            for name, below in sorted(self.tree.entries(place).items()):
                self._clear_below([source / name for source in sources], place / name, below)
            self.inside.pop()

    def _clear_if_ours(self, sources: list[Pure], place: Pure) -> None:
        if self.tree.leads_to(place) is not None:
            return
        text = self.tree.link_text(place)
        if any(text == self._text(place, source) for source in sources):
            self.actions.append(RemoveLink(place, text))
            self.cleared.add(place)

    def visit(self, sources: list[Pure], place: Pure) -> None:
        """Make everything in `sources` visible in the folder `place`."""
        if not sources and place != self.target:
            return
        claims: dict[str, list[Pure]] = {}
        for source in sources:
            for name in self._visible(source):
                claims.setdefault(name, []).append(source / name)
        if place == self.target:
            self._claim_older_names(claims)
        here = self._enter(sources, place, claims)
        if here is None:
            return
        self.inside.append(place)
        for name, claimants in claims.items():
            self._claim(claimants, place / name, here.get(name))
        self.inside.pop()

    def _claim_older_names(self, claims: dict[str, list[Pure]]) -> None:
        """Folders that this ComfyUI does not know also claim the name that it knows, including its
        own real folders."""
        for name, others in ALIASES.items():
            if not self.known or name in self.known:
                continue
            unknown = list(claims.get(name, ()))
            if self.tree.kind(self.target / name) is EntryKind.FOLDER:
                unknown.append(self.target / name)
            for other in others:
                if unknown and other in self.known:
                    claims.setdefault(other, []).extend(unknown)

    def _visible(self, source: Pure) -> list[str]:
        """Entries to show: no hidden ones, no broken links."""
        return [
            name
            for name, kind in sorted(self.tree.entries(source).items())
            if not name.startswith(".")
            and (kind is not EntryKind.LINK or self.tree.leads_to(source / name))
        ]

    def _enter(
        self, sources: list[Pure], place: Pure, claims: Mapping[str, list[Pure]]
    ) -> Mapping[str, EntryKind] | None:
        """The entries of `place` if links belong *in* it; None if it is settled as a whole."""
        kind = None if place in self.cleared else self.tree.kind(place)
        if kind is EntryKind.FOLDER or (
            not sources and self.tree.leads_to(place) is EntryKind.FOLDER
        ):
            entries = self.tree.entries(place)
            return {name: k for name, k in entries.items() if place / name not in self.cleared}
        if not sources:
            return None
        one_source_suffices = len(sources) == 1 and all(
            paths == [sources[0] / name] for name, paths in claims.items()
        )
        if kind is None and not one_source_suffices:
            self.actions.append(MakeFolder(place))
            return {}
        for source in sources:
            self._claim([source], place, kind)
        return None

    def _claim(self, claimants: list[Pure], place: Pure, kind: EntryKind | None) -> None:
        """Show `claimants` at `place`, which is a `kind` now."""
        folders = [c for c in claimants if self.tree.leads_to(c) is EntryKind.FOLDER]
        several = len(claimants) > 1
        if kind is EntryKind.LINK and folders == claimants:
            real = self.through(place, folders)
            if real != place and self.tree.kind(real) is EntryKind.FOLDER:
                place, kind = real, EntryKind.FOLDER
        if folders == claimants and (kind is EntryKind.FOLDER or (several and kind is None)):
            self.visit([f for f in folders if not self.tree.alike(f, place)], place)
            return
        if kind is None:
            first, *claimants = claimants
            self.actions.append(MakeLink(place, self._text(place, first)))
            self._report_others(claimants, place, first)
            return
        for claimant in claimants:
            self._compare(claimant, place, kind)

    def _compare(self, source: Pure, place: Pure, kind: EntryKind) -> None:
        text = self.tree.link_text(place)
        if kind is EntryKind.LINK and text in ("", self._text(place, source)):
            return  # gone meanwhile, or correct
        if self.tree.alike(source, place):
            return
        dead_link = kind is EntryKind.LINK and self.tree.leads_to(place) is None
        if dead_link:
            reason = f"a broken link that is not ours is there ({text})"
        elif kind is EntryKind.LINK:
            reason = f"a link to something else is there ({text})"
        else:
            reason = f"a different {kind.value} has that name"
        self.conflicts.append(Conflict(place, source, reason, dead_link))

    def _report_others(self, claimants: list[Pure], place: Pure, winner: Pure) -> None:
        for other in claimants:
            if not self.tree.alike(other, winner):
                self.conflicts.append(Conflict(place, other, f"{winner} has that name"))

    def _text(self, place: Pure, source: Pure) -> str:
        if place.is_relative_to(self.volume) and source.is_relative_to(self.volume):
            return relpath(str(source), str(place.parent))
        return str(source)

    def report_shadows(self, roots: list[Pure]) -> None:
        """Two folders of one category hold different files with the same name."""
        for name, others in ALIASES.items():
            for other in others:
                if name < other and {name, other} <= self.known:
                    self._report_twins(roots, name, other)

    def _report_twins(self, roots: list[Pure], name: str, other: str) -> None:
        first = {file: root / name / file for root in roots for file in self._visible(root / name)}
        for root in roots:
            for file in self._visible(root / other):
                twin, path = first.get(file), root / other / file
                if twin is None or self.tree.alike(twin, path):
                    continue
                if EntryKind.FOLDER not in (self.tree.leads_to(twin), self.tree.leads_to(path)):
                    reason = f"ComfyUI reads {name} and {other} as one category"
                    self.conflicts.append(Conflict(twin, path, reason))
