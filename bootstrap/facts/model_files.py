"""Gathers every file under the model folders: what it is, how large, whether its header holds.

One parallel walk, then the headers of weights files, in parallel and within a bounded memory.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from bootstrap.categories import category_of
from bootstrap.facts.crew import Allowance, Crew, Task
from bootstrap.facts.inventory import Inventory, ModelFile
from bootstrap.facts.tree import Entry, Kind, Target, Walk
from bootstrap.facts.walk import LIMIT, THREADS, walk
from bootstrap.facts.weights import Examined, State, examine, sample_hash

# Text of headers held at once by all threads; parsed, a header takes about four times its text.
MOST_HELD = 32 << 20
# Copies of smaller files waste nothing worth a word.
LEAST_DUPLICATE = 1 << 20

Progress = Callable[[int], None]


def gather_models(
    model_roots: Sequence[Path],
    headers: bool = True,
    threads: int = THREADS,
    progress: Progress | None = None,
    inside: Sequence[Path] | None = None,
    limit: int = LIMIT,
    timeout: float | None = None,
) -> Inventory:
    """Look at everything under `model_roots` (each a `models` folder).

    `headers` also opens each weights file: about two more round trips a file. Links that lead
    out of `inside` (the volume; the roots where not given) are told. `progress` is called a few
    times a second with the number of things looked at; `timeout` (seconds) bounds the whole.
    What cannot be read is told; nothing is raised.
    """
    started = time.monotonic()
    found = walk(model_roots, threads, progress, limit, inside, timeout)
    files = [_file(entry) for entry in found.entries if _is_listed(entry)]
    same: tuple[tuple[ModelFile, ...], ...] = ()
    complete = found.complete
    if headers and complete:
        end = None if timeout is None else started + timeout
        looker = _Looker(threads, progress, len(found.entries), end)
        files = looker.read_headers(files)
        same = looker.find_same(files)
        complete = looker.complete
    return _inventory(model_roots, found, files, same, complete, headers, started)


def _inventory(
    roots: Sequence[Path],
    found: Walk,
    files: list[ModelFile],
    same: tuple[tuple[ModelFile, ...], ...],
    complete: bool,
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
        complete=complete,
        headers=headers,
        seconds=time.monotonic() - started,
    )


class _Looker:
    """Opens files with many threads, until `end` (monotonic seconds)."""

    def __init__(
        self, threads: int, progress: Progress | None, before: int, end: float | None
    ) -> None:
        self.complete = True
        self._threads = threads
        self._progress = progress
        self._before = before
        self._end = end

    def read_headers(self, files: list[ModelFile]) -> list[ModelFile]:
        """The files with what their beginnings showed."""
        examined: dict[int, Examined] = {}
        allowance = Allowance(MOST_HELD)

        def examining(index: int, file: ModelFile) -> Task:
            def task() -> None:
                examined[index] = examine(file.full_path, file.size, allowance)

            return task

        wanted = [examining(i, f) for i, f in enumerate(files) if _is_to_be_opened(f)]
        self._run(wanted, examined)
        known = examined.copy()
        return [replace(f, examined=known[i]) if i in known else f for i, f in enumerate(files)]

    def find_same(self, files: list[ModelFile]) -> tuple[tuple[ModelFile, ...], ...]:
        """Groups of files with the same size, header and samples, the largest first."""
        candidates = [f for group in _alike(files) for f in group]
        samples: dict[int, bytes] = {}

        def sampling(index: int, file: ModelFile) -> Task:
            def task() -> None:
                try:
                    samples[index] = sample_hash(file.full_path, file.size)
                except OSError:
                    pass  # it was readable a moment ago; then it is no twin of anything

            return task

        self._run([sampling(i, f) for i, f in enumerate(candidates)], samples)
        groups: dict[bytes, list[ModelFile]] = defaultdict(list)
        for index, sample in sorted(samples.copy().items()):
            groups[candidates[index].examined.fingerprint + sample].append(candidates[index])
        twins = [tuple(group) for group in groups.values() if len(group) > 1]
        return tuple(sorted(twins, key=lambda group: -group[0].size * (len(group) - 1)))

    def _run(self, tasks: list[Task], results: dict[int, Examined] | dict[int, bytes]) -> None:
        if not tasks or not self.complete:
            return
        left = None if self._end is None else max(0.0, self._end - time.monotonic())
        progress, before = self._progress, self._before
        tick = None if progress is None else (lambda: progress(before + len(results)))
        self.complete = Crew(self._threads).run(tasks, left, tick)
        self._before += len(results)


def _alike(files: Iterable[ModelFile]) -> list[list[ModelFile]]:
    """Groups of different inodes of which size and beginning are equal."""
    groups: dict[bytes, dict[tuple[int, int] | None, ModelFile]] = defaultdict(dict)
    for file in files:
        if file.examined.fingerprint and file.size >= LEAST_DUPLICATE:
            groups[file.examined.fingerprint].setdefault(file.inode, file)
    return [list(group.values()) for group in groups.values() if len(group) > 1]


def _file(entry: Entry) -> ModelFile:
    state = {Target.BROKEN: State.BROKEN_LINK, Target.LOOP: State.LOOPING_LINK}
    folder, slash, _ = entry.path.partition("/")
    return ModelFile(
        root=entry.root,
        path=entry.path,
        size=entry.size,
        mtime=entry.mtime,
        category=category_of(folder) if slash else None,
        examined=Examined(state.get(entry.target or Target.OK, State.UNREAD)),
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


def _is_to_be_opened(file: ModelFile) -> bool:
    return file.is_weights and file.inode is not None
