"""What lies under the model folders: which file is what, how large, whether its header holds.

One parallel walk, which opens weights files as it comes by and reads their headers, within a
bounded memory.
"""

from __future__ import annotations

import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import nlargest
from pathlib import Path
from typing import Any

from bootstrap.core.concurrency import ByteSemaphore, Task, WorkerPool
from bootstrap.core.files import contains
from bootstrap.core.text import POD, SERVERLESS
from bootstrap.doctor.facts.volume_facts import Leads, LinkFact
from bootstrap.doctor.facts.walk import (
    LIMIT,
    THREADS,
    Entry,
    EntryKind,
    LinkTarget,
    Walk,
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

# What holds weights in folders of custom nodes too.
WEIGHTS = PT_EXTENSIONS | {GGUF, ".onnx"}
# Bounds of `as_dict`: with these it stays under half a megabyte, whatever the volume holds.
MOST_CATEGORIES = 60
MOST_LARGEST = 5
MOST_PATH = 200
# Text of headers held at once by all threads; parsed, a header takes about four times its text.
MOST_HELD = 32 << 20
# Copies of smaller files waste nothing worth a word.
LEAST_DUPLICATE = 1 << 20
_LOST = {LinkTarget.BROKEN: WeightsState.BROKEN_LINK, LinkTarget.LOOP: WeightsState.LOOPING_LINK}
_LEADS = {WeightsState.BROKEN_LINK: Leads.NOWHERE, WeightsState.LOOPING_LINK: Leads.LOOP}
Progress = Callable[[int], None]


@dataclass(frozen=True)
class ModelFile:
    """One file, or a link that ComfyUI lists as one, under a model folder.

    `path` is relative to `root`, `category` what ComfyUI reads its folder as (None: a custom
    node's). `size` in bytes, `mtime` in seconds since 1970; `inode` is None where a link leads
    nowhere. `examined` is `WeightsState.UNREAD` for what is not a weights file or was not opened.
    `relative` is the text for a broken link that names another mount point of the volume, where the
    volume has what it means.
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
    relative: str | None = None

    @property
    def state(self) -> WeightsState:
        """What examining it came to."""
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
        """The path as the system opens it."""
        return os.path.join(self.root, self.path)

    @property
    def is_weights(self) -> bool:
        """Does its name end like a model's?"""
        return is_weights(self.path)

    @property
    def is_model(self) -> bool:
        """Would a loader list it: ComfyUI's, or that of the node the folder is for?"""
        if self.category is not None and self.category.name == CONFIGS:
            return False
        if self.category is None or not self.category.extensions:
            return bool(self.folder) and self.is_weights
        return self.category.accepts(self.name)


@dataclass(frozen=True)
class Inventory:
    """What lies under the model folders `roots`.

    `files` are ordered by root and path; `folders` are all folders (root, path), those that a
    link leads to included. `escaping` are links that lead out of the volume. `same` are groups
    of files that look the same by size, header and samples of their contents. `complete` is
    False when a limit in number or time ended the look; `headers` tells whether weights files
    were opened; `seconds` is what all of it took.
    """

    roots: tuple[Path, ...] = ()
    files: tuple[ModelFile, ...] = ()
    folders: tuple[tuple[Path, str], ...] = ()
    escaping: tuple[Entry, ...] = ()
    same: tuple[tuple[ModelFile, ...], ...] = ()
    problems: tuple[WalkProblem, ...] = ()
    problem_count: int = 0
    complete: bool = True
    headers: bool = True
    seconds: float = 0.0

    @property
    def models(self) -> tuple[ModelFile, ...]:
        """The files that a loader would list."""
        return tuple(f for f in self.files if f.is_model)

    @property
    def present(self) -> tuple[ModelFile, ...]:
        """Those of them that are there: not a broken link."""
        return tuple(f for f in self.models if f.inode is not None)

    @property
    def links(self) -> tuple[LinkFact, ...]:
        """Links that are broken, lead back to where they lie, or out of the volume."""
        lost = [f for f in self.files if f.state in _LEADS]
        escaping = [LinkFact(e.full_path, e.link or "", Leads.OUT) for e in self.escaping]
        return (*map(_link_fact, lost), *escaping)

    @property
    def size(self) -> int:
        """Bytes of all files, each counted once however many links lead to it."""
        return size_of(self.files)

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
            "headers": self.headers,
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True)
class Holding:
    """What is there for one category, over all its folders; `known` to ComfyUI, or a node's.

    `count` and `size` (bytes) are of models, `other_count` and `other_size` of what lies beside
    them (previews, notes, archives).
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


def _link_fact(file: ModelFile) -> LinkFact:
    text = file.link or ""
    home = next((mount for mount in (SERVERLESS, POD) if contains(mount, text)), None)
    return LinkFact(file.full_path, text, _LEADS[file.state], home, file.relative)


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
    """Does the name end like a model's?"""
    return extension_of(path.rpartition("/")[2]) in WEIGHTS


def count_of(files: Iterable[ModelFile]) -> int:
    """How many files these are on the volume, each counted once however many links lead to it."""
    given = list(files)
    return len({f.inode for f in given if f.inode is not None}) + sum(
        f.inode is None for f in given
    )


def size_of(files: Iterable[ModelFile]) -> int:
    """Bytes of these files on the volume, each inode counted once."""
    return sum({f.inode: f.size for f in files if f.inode is not None}.values())


def gather_models(
    model_roots: Sequence[Path],
    headers: bool = True,
    threads: int = THREADS,
    progress: Progress | None = None,
    inside: Sequence[Path] | None = None,
    limit: int = LIMIT,
    timeout: float | None = None,
    most_headers: int | None = None,
    extra_roots: Mapping[Path, str] | None = None,
) -> Inventory:
    """Look at everything under `model_roots` (each a `models` folder), and under `extra_roots`:
    folders of a single category each, as extra_model_paths.yaml names them.

    `headers` also opens each weights file, `most_headers` of them at most: two more round trips
    each, and most of the time where there are many. Links that lead
    out of `inside` (the volume; the roots where not given) are reported. `progress` is called a few
    times a second with the number of names looked at; `timeout` (seconds) bounds the whole.
    What cannot be read is reported; nothing is raised.
    """
    started = time.monotonic()
    examined: dict[tuple[Path, str], Examined] = {}
    allowance = ByteSemaphore(MOST_HELD)

    def open_weights(entry: Entry) -> None:
        if is_weights(entry.path) and (most_headers is None or len(examined) < most_headers):
            examined[entry.root, entry.path] = examine(entry.full_path, entry.size, allowance)

    visit = open_weights if headers else None
    extra_roots = _not_within(extra_roots or {}, model_roots)
    roots = [*model_roots, *extra_roots]
    found = walk(roots, threads, progress, limit, inside, timeout, visit)
    known = examined.copy()
    left = None if timeout is None else started + timeout - time.monotonic()
    texts = _relative_texts(found.entries, inside, threads, left)
    files = [_file(e, known, extra_roots, texts) for e in found.entries if _is_listed(e)]
    left = None if timeout is None else started + timeout - time.monotonic()
    same = _find_same(files, threads, left)
    found = replace(found, entries=tuple(e for e in found.entries if e.root not in extra_roots))
    return _inventory(roots, found, files, same, headers, started)


def _not_within(extra_roots: Mapping[Path, str], roots: Sequence[Path]) -> dict[Path, str]:
    """Those that are not looked at already, as a part of one of the roots."""
    real = [_real(root) for root in roots]
    return {
        path: name
        for path, name in extra_roots.items()
        if not any(_real(path).is_relative_to(root) for root in real)
    }


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _inventory(
    roots: Sequence[Path],
    found: Walk,
    files: list[ModelFile],
    same: tuple[tuple[ModelFile, ...], ...],
    headers: bool,
    started: float,
) -> Inventory:
    return Inventory(
        roots=tuple(roots),
        files=tuple(files),
        folders=tuple((e.root, e.path) for e in found.entries if _is_entered(e)),
        escaping=tuple(e for e in found.entries if e.target is LinkTarget.ESCAPES),
        same=same,
        problems=found.problems,
        problem_count=found.problem_count,
        complete=found.complete,
        headers=headers,
        seconds=time.monotonic() - started,
    )


def _find_same(
    files: list[ModelFile], threads: int, timeout: float | None
) -> tuple[tuple[ModelFile, ...], ...]:
    """Groups of files with the same size, header and samples, those that waste most first."""
    candidates = [f for group in _alike(files) for f in group]
    samples: dict[int, bytes] = {}

    def sampling(index: int, file: ModelFile) -> Task:
        def task() -> None:
            try:
                samples[index] = sample_hash(file.full_path, file.size)
            except OSError:
                pass  # it was readable a moment ago; then it has no twin

        return task

    WorkerPool(threads).run([sampling(i, f) for i, f in enumerate(candidates)], timeout)
    groups: dict[bytes, list[ModelFile]] = defaultdict(list)
    for index, sample in sorted(samples.copy().items()):
        groups[candidates[index].examined.fingerprint + sample].append(candidates[index])
    twins = [tuple(group) for group in groups.values() if len(group) > 1]
    return tuple(sorted(twins, key=lambda group: -group[0].size * (len(group) - 1)))


def _alike(files: Iterable[ModelFile]) -> list[list[ModelFile]]:
    """Groups of different inodes of which size and beginning are equal."""
    groups: dict[bytes, dict[tuple[int, int] | None, ModelFile]] = defaultdict(dict)
    for file in files:
        if file.examined.fingerprint and file.size >= LEAST_DUPLICATE:
            groups[file.examined.fingerprint].setdefault(file.inode, file)
    return [list(group.values()) for group in groups.values() if len(group) > 1]


def _file(
    entry: Entry,
    examined: Mapping[tuple[Path, str], Examined],
    extra_roots: Mapping[Path, str],
    texts: Mapping[tuple[Path, str], str],
) -> ModelFile:
    unopened = Examined(
        _LOST.get(entry.target, WeightsState.UNREAD) if entry.target else WeightsState.UNREAD
    )
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
        relative=texts.get((entry.root, entry.path)),
    )


def _relative_texts(
    entries: Sequence[Entry], inside: Sequence[Path] | None, threads: int, timeout: float | None
) -> dict[tuple[Path, str], str]:
    """For each broken link that names another mount point of the volume, which is the first of
    `inside`, the text with which it leads to what it means; where that is there."""
    root = os.path.realpath(inside[0]) if inside else ""
    texts: dict[tuple[Path, str], str] = {}

    def asking(entry: Entry, here: str) -> Task:
        def task() -> None:
            if os.path.exists(here):
                folder = os.path.realpath(os.path.dirname(entry.full_path))
                texts[entry.root, entry.path] = os.path.relpath(here, folder)

        return task

    broken = [entry for entry in entries if entry.target is LinkTarget.BROKEN]
    places = [(entry, here) for entry in broken if (here := _on_volume(entry.link or "", root))]
    if places:
        WorkerPool(threads).run([asking(*place) for place in places], timeout)
    return texts.copy()


def _on_volume(text: str, root: str) -> str:
    """The place on the volume at `root` that a link means which names another mount point of it."""
    for mount in (SERVERLESS, POD):
        if root and root != mount and contains(mount, text):
            here = os.path.normpath(os.path.join(root, os.path.relpath(text, mount)))
            return here if contains(root, here) else ""
    return ""


def _is_listed(entry: Entry) -> bool:
    """A file, or a link that leads to one, to nothing, or round in a circle."""
    lost = entry.target in (LinkTarget.BROKEN, LinkTarget.LOOP)
    return entry.is_file or (entry.kind is EntryKind.LINK and lost)


def _is_entered(entry: Entry) -> bool:
    followed = entry.to_folder and entry.target is not LinkTarget.LOOP
    return entry.kind is EntryKind.FOLDER or followed
