"""Gathers every file under the model folders: what it is, how large, whether its header holds.

One parallel walk, which opens weights files as it comes by and reads their headers, within a
bounded memory.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from bootstrap.core.concurrency import Allowance, Crew, Task
from bootstrap.facts.inventory import Inventory, ModelFile, is_weights
from bootstrap.facts.tree import Entry, Kind, Target, Walk
from bootstrap.facts.walk import LIMIT, THREADS, walk
from bootstrap.models.weights_file import Examined, State, examine, sample_hash
from bootstrap.volume.categories import category_of

# Text of headers held at once by all threads; parsed, a header takes about four times its text.
MOST_HELD = 32 << 20
# Copies of smaller files waste nothing worth a word.
LEAST_DUPLICATE = 1 << 20
_LOST = {Target.BROKEN: State.BROKEN_LINK, Target.LOOP: State.LOOPING_LINK}

Progress = Callable[[int], None]


def gather_models(
    model_roots: Sequence[Path],
    headers: bool = True,
    threads: int = THREADS,
    progress: Progress | None = None,
    inside: Sequence[Path] | None = None,
    limit: int = LIMIT,
    timeout: float | None = None,
    most_headers: int | None = None,
) -> Inventory:
    """Look at everything under `model_roots` (each a `models` folder).

    `headers` also opens each weights file, `most_headers` of them at most: two more round trips
    each, and most of the time where there are many. Links that lead
    out of `inside` (the volume; the roots where not given) are told. `progress` is called a few
    times a second with the number of names looked at; `timeout` (seconds) bounds the whole.
    What cannot be read is told; nothing is raised.
    """
    started = time.monotonic()
    examined: dict[tuple[Path, str], Examined] = {}
    allowance = Allowance(MOST_HELD)

    def open_weights(entry: Entry) -> None:
        if is_weights(entry.path) and (most_headers is None or len(examined) < most_headers):
            examined[entry.root, entry.path] = examine(entry.full_path, entry.size, allowance)

    visit = open_weights if headers else None
    found = walk(model_roots, threads, progress, limit, inside, timeout, visit)
    known = examined.copy()
    files = [_file(entry, known) for entry in found.entries if _is_listed(entry)]
    left = None if timeout is None else started + timeout - time.monotonic()
    same = _find_same(files, threads, left)
    return _inventory(model_roots, found, files, same, headers, started)


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
        escaping=tuple(e for e in found.entries if e.target is Target.ESCAPES),
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
                pass  # it was readable a moment ago; then it is no twin of anything

        return task

    Crew(threads).run([sampling(i, f) for i, f in enumerate(candidates)], timeout)
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


def _file(entry: Entry, examined: Mapping[tuple[Path, str], Examined]) -> ModelFile:
    unopened = Examined(_LOST.get(entry.target, State.UNREAD) if entry.target else State.UNREAD)
    folder, slash, _ = entry.path.partition("/")
    return ModelFile(
        root=entry.root,
        path=entry.path,
        size=entry.size,
        mtime=entry.mtime,
        category=category_of(folder) if slash else None,
        examined=examined.get((entry.root, entry.path), unopened),
        inode=entry.inode,
        link=entry.link,
    )


def _is_listed(entry: Entry) -> bool:
    """A file, or a link that leads to one, to nothing, or round in a circle."""
    lost = entry.target in (Target.BROKEN, Target.LOOP)
    return entry.is_file or (entry.kind is Kind.LINK and lost)


def _is_entered(entry: Entry) -> bool:
    followed = entry.to_folder and entry.target is not Target.LOOP
    return entry.kind is Kind.FOLDER or followed
