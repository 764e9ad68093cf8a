"""The files under the model folders: what each is, how large, and whether its header is valid.

One parallel walk that also opens weights files and reads their headers, in bounded memory.
"""

from __future__ import annotations

import itertools
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from heapq import nlargest
from pathlib import Path
from typing import Any

from bootstrap.core.concurrency import ByteSemaphore, WorkerPool
from bootstrap.core.files import contains
from bootstrap.core.text import POD, SERVERLESS
from bootstrap.doctor.facts.volume_facts import LinkFact, LinkTarget, VolumeFacts, look_at_link
from bootstrap.doctor.facts.walk import (
    THREADS,
    Entry,
    WalkProblem,
    walk,
)
from bootstrap.models.weights_file import Examined, WeightsState, examine, sample_hash
from bootstrap.volume.categories import (
    CATEGORIES,
    CONFIGS,
    GGUF,
    PT_EXTENSIONS,
    Category,
    category_of,
    extension_of,
)
from bootstrap.volume.link_plan import EntryKind

# Extensions of weights, in folders of custom nodes too.
WEIGHTS = PT_EXTENSIONS | {GGUF, ".onnx"}
# Limits of `as_dict`, which keep it under half a megabyte.
MOST_CATEGORIES = 60
MOST_LARGEST = 5
MOST_PATH = 200
# Text of headers held at once by all threads; parsed, a header takes about four times its text.
MOST_HELD = 32 << 20
# Copies of smaller files are not worth reporting.
LEAST_DUPLICATE = 1 << 20
_LOST: Mapping[LinkTarget | None, WeightsState] = {
    LinkTarget.BROKEN: WeightsState.BROKEN_LINK,
    LinkTarget.LOOP: WeightsState.LOOPING_LINK,
}
Progress = Callable[[int], None]


@dataclass(frozen=True)
class ModelFile:
    """One file, or a link that ComfyUI lists as one, under a model folder. `path` is relative to
    `root`, `category` is ComfyUI's for its folder (None: a custom node's). `size` in bytes, `mtime`
    in seconds since 1970; `inode` is None for a broken link. `examined` is `WeightsState.UNREAD` if
    it is not a weights file or was not opened.
    """

    root: Path
    path: str
    size: int
    mtime: float
    category: Category | None
    examined: Examined
    inode: tuple[int, int] | None = None
    link: str | None = None
    root_category: str = ""

    @property
    def state(self) -> WeightsState:
        """The result of examining it."""
        return self.examined.state

    @property
    def folder(self) -> str:
        """The folder straight under the root, "" for a file that lies in the root itself; where the
        root is the folder of a single category, that."""
        if self.root_category:
            return self.root_category
        first, slash, _ = self.path.partition("/")
        return first if slash else ""

    @property
    def name(self) -> str:
        """The file's own name."""
        return os.path.basename(self.path)

    @property
    def full_path(self) -> str:
        """The full path."""
        return os.path.join(self.root, self.path)

    @property
    def is_weights(self) -> bool:
        """Does it have a model's extension?"""
        return is_weights(self.path)

    @property
    def is_model(self) -> bool:
        """Would a loader list it, ComfyUI's or the custom node's?"""
        if self.category is not None and self.category.name == CONFIGS:
            return False
        if self.category is None or not self.category.extensions:
            return bool(self.folder) and self.is_weights
        return self.category.accepts(self.name)


@dataclass(frozen=True)
class Inventory:
    """The contents of the model folders `roots`. `files` are ordered by root and path; `folders`
    are all folders (root, path), including link targets. `links` are those that are broken, lead
    to a folder above, or out of the volume. `same` are groups of files that are equal by size,
    header and samples. `complete` is False if a limit in number or time ended the walk, which
    took `seconds`.
    """

    roots: tuple[Path, ...] = ()
    files: tuple[ModelFile, ...] = ()
    folders: tuple[tuple[Path, str], ...] = ()
    links: tuple[LinkFact, ...] = ()
    same: tuple[tuple[ModelFile, ...], ...] = ()
    problems: tuple[WalkProblem, ...] = ()
    problem_count: int = 0
    complete: bool = True
    seconds: float = 0.0

    @property
    def models(self) -> tuple[ModelFile, ...]:
        """The files that a loader would list."""
        return tuple(f for f in self.files if f.is_model)

    @property
    def present(self) -> tuple[ModelFile, ...]:
        """Those that exist: no broken links."""
        return tuple(f for f in self.models if f.inode is not None)

    @property
    def size(self) -> int:
        """Bytes of all files, each inode counted once."""
        return size_of(self.files)

    def further_links(self, facts: VolumeFacts) -> list[LinkFact]:
        """Those that `facts` does not have yet."""
        seen = {link.path for link in facts.links}
        return [link for link in self.links if link.path not in seen]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready and bounded: per category folders, counts, sizes and the largest files."""
        holdings = sorted(holdings_of(self), key=lambda h: (-h.size, h.name))
        return {
            "roots": [str(root) for root in self.roots],
            "files": len(self.files),
            "models": count_of(self.models),
            "size": self.size,
            "states": dict(Counter(f.state.value for f in self.models)),
            "categories": [holding.as_dict() for holding in holdings[:MOST_CATEGORIES]],
            "categories_left_out": max(0, len(holdings) - MOST_CATEGORIES),
            "unreadable": self.problem_count,
            "complete": self.complete,
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True)
class Holding:
    """The contents of one category, over all its folders; `known` to ComfyUI, or a node's. `count`
    and `size` (bytes) are of models, `other_count` and `other_size` of other files (previews,
    notes, archives).
    """

    name: str
    known: bool
    folders: tuple[str, ...]
    count: int
    size: int
    other_count: int
    other_size: int
    largest: tuple[ModelFile, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready data."""
        return {
            "name": self.name[:MOST_PATH],
            "known": self.known,
            "folders": [folder[:MOST_PATH] for folder in self.folders[:4]],
            "count": self.count,
            "size": self.size,
            "other_count": self.other_count,
            "other_size": self.other_size,
            "largest": [
                {"path": f.path[-MOST_PATH:], "size": f.size, "state": f.state.value}
                for f in self.largest
            ],
        }


def holdings_of(inventory: Inventory) -> list[Holding]:
    """The inventory by category, in order of appearance; empty folders included. Files straight
    under a root are the holding named ""."""
    folders: dict[str, list[str]] = {}
    files: dict[str, list[ModelFile]] = {}
    for root, path in inventory.folders:
        if "/" not in path:
            folders.setdefault(_holding_name(path), []).append(os.path.join(root, path))
    for file in inventory.files:
        files.setdefault(_holding_name(file.folder), []).append(file)
    names = dict.fromkeys((*folders, *files))
    return [_holding(name, folders.get(name, []), files.get(name, [])) for name in names]


def _holding_name(folder: str) -> str:
    category = category_of(folder)
    return category.name if category else folder


def _holding(name: str, folders: list[str], files: list[ModelFile]) -> Holding:
    models = [f for f in files if f.is_model]
    others = [f for f in files if not f.is_model]
    return Holding(
        name=name,
        known=name in CATEGORIES,
        folders=tuple(folders),
        count=count_of(models),
        size=size_of(models),
        other_count=len(others),
        other_size=size_of(others),
        largest=tuple(nlargest(MOST_LARGEST, models, key=lambda f: f.size)),
    )


def is_weights(path: str) -> bool:
    """Does the name have a model's extension?"""
    return extension_of(path.rpartition("/")[2]) in WEIGHTS


def count_of(files: Iterable[ModelFile]) -> int:
    """The number of these files on the volume, each inode counted once."""
    given = list(files)
    return len({f.inode for f in given if f.inode is not None}) + sum(
        f.inode is None for f in given
    )


def size_of(files: Iterable[ModelFile]) -> int:
    """Bytes of these files on the volume, each inode counted once."""
    return sum({f.inode: f.size for f in files if f.inode is not None}.values())


def gather_models(
    model_roots: Sequence[Path],
    progress: Progress | None = None,
    inside: Sequence[Path] | None = None,
    timeout: float | None = None,
    most_headers: int | None = None,
    extra_roots: Mapping[Path, str] | None = None,
) -> Inventory:
    """List everything under `model_roots` (each a `models` folder), and under `extra_roots`:
    single-category folders from extra_model_paths.yaml. At most `most_headers` weights files are
    opened: two more round trips each, and most of the time if there are many. Links that lead out
    of `inside` (the volume; default: the roots) are reported. `progress` is called a few times a
    second with the number of names seen; `timeout` (seconds) is for everything. Unreadable paths
    are reported; nothing is raised.
    """
    started = time.monotonic()
    examined: dict[tuple[Path, str], Examined] = {}
    allowance, numbers = ByteSemaphore(MOST_HELD), itertools.count()

    def open_weights(entry: Entry) -> None:
        if is_weights(entry.path) and (most_headers is None or next(numbers) < most_headers):
            examined[entry.root, entry.path] = examine(entry.full_path, entry.size, allowance)

    def left() -> float | None:
        return None if timeout is None else started + timeout - time.monotonic()

    extra_roots = _not_within(extra_roots or {}, model_roots)
    roots = [*model_roots, *extra_roots]
    found = walk(roots, progress=progress, inside=inside, timeout=timeout, visit=open_weights)
    known = examined.copy()
    files = [_file(e, known, extra_roots) for e in found.entries if _is_listed(e)]
    own = [e for e in found.entries if e.root not in extra_roots]
    bad = [
        e
        for e in found.entries
        if e.target in _LOST or (e.target is LinkTarget.OUTSIDE and e.root not in extra_roots)
    ]
    return Inventory(
        roots=tuple(roots),
        files=tuple(files),
        folders=tuple((e.root, e.path) for e in own if _is_entered(e)),
        links=_link_facts(bad, inside, left()),
        same=_find_same(files, left()),
        problems=found.problems,
        problem_count=found.problem_count,
        complete=found.complete,
        seconds=time.monotonic() - started,
    )


def _not_within(extra_roots: Mapping[Path, str], roots: Sequence[Path]) -> dict[Path, str]:
    """Those that are not already part of one of the roots."""
    real = [os.path.realpath(root) for root in roots]
    return {
        path: name
        for path, name in extra_roots.items()
        if not any(contains(root, os.path.realpath(path)) for root in real)
    }


def _find_same(files: list[ModelFile], timeout: float | None) -> tuple[tuple[ModelFile, ...], ...]:
    """Groups of files with the same size, header and samples, most wasteful first."""
    candidates = [f for group in _alike(files) for f in group]
    samples: dict[int, bytes] = {}

    def sample(index: int, file: ModelFile) -> None:
        with suppress(OSError):  # it was readable a moment ago; treat it as unique
            samples[index] = sample_hash(file.full_path, file.size)

    WorkerPool(THREADS).run([partial(sample, i, f) for i, f in enumerate(candidates)], timeout)
    groups: dict[bytes, list[ModelFile]] = defaultdict(list)
    for index, digest in sorted(samples.copy().items()):
        groups[candidates[index].examined.fingerprint + digest].append(candidates[index])
    twins = [tuple(group) for group in groups.values() if len(group) > 1]
    return tuple(sorted(twins, key=lambda group: -group[0].size * (len(group) - 1)))


def _alike(files: Iterable[ModelFile]) -> list[list[ModelFile]]:
    """Groups of different inodes with equal size and beginning."""
    groups: dict[bytes, dict[tuple[int, int] | None, ModelFile]] = defaultdict(dict)
    for file in files:
        if file.examined.fingerprint and file.size >= LEAST_DUPLICATE:
            groups[file.examined.fingerprint].setdefault(file.inode, file)
    return [list(group.values()) for group in groups.values() if len(group) > 1]


def _file(
    entry: Entry,
    examined: Mapping[tuple[Path, str], Examined],
    extra_roots: Mapping[Path, str],
) -> ModelFile:
    unopened = Examined(_LOST.get(entry.target, WeightsState.UNREAD))
    folder, slash, _ = entry.path.partition("/")
    root_category = extra_roots.get(entry.root, "")
    return ModelFile(
        root=entry.root,
        path=entry.path,
        size=entry.size,
        mtime=entry.mtime,
        category=category_of(root_category or folder) if root_category or slash else None,
        examined=examined.get((entry.root, entry.path), unopened),
        inode=entry.inode,
        link=entry.link,
        root_category=root_category,
    )


def _link_facts(
    entries: Sequence[Entry], inside: Sequence[Path] | None, timeout: float | None
) -> tuple[LinkFact, ...]:
    """Links that are broken, lead to a folder above, or off the volume, which is the first of
    `inside`; with what repairs one through another mount point of it."""
    root = os.path.realpath(inside[0]) if inside else ""
    mounts = [mount for mount in (SERVERLESS, POD) if root and mount != root]
    found = [LinkFact(e.full_path, e.link or "", e.target) for e in entries if e.target]
    links = {link.path: link for link in found}
    broken = [link for link in found if link.leads is LinkTarget.BROKEN]
    named = [x.path for x in broken if any(contains(mount, x.text) for mount in mounts)]

    def look_again(path: str) -> None:
        links[path] = look_at_link(path, root, root, mounts) or links[path]

    if named:
        WorkerPool(THREADS).run([partial(look_again, path) for path in named], timeout)
    return tuple(links.copy().values())


def _is_listed(entry: Entry) -> bool:
    """A file, or a link to one, a broken link, or a loop."""
    return entry.is_file or entry.target in _LOST


def _is_entered(entry: Entry) -> bool:
    followed = entry.to_folder and entry.target is not LinkTarget.LOOP
    return entry.kind is EntryKind.FOLDER or followed
