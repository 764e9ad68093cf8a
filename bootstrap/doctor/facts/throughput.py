"""The volume's throughput and small-file latency; measured only on request.

Reads existing files, limited in bytes and seconds, and writes nothing. Cached pages would make
every volume look fast, so they are dropped first, and each byte is read once. The page cache is the
machine's, so a running job is slowed down.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import groupby
from typing import Any

from bootstrap.core.concurrency import WorkerPool
from bootstrap.doctor.facts.inventory import Inventory

STREAMS = 8
BLOCK = 8 << 20
# Enough for a rate within a few percent at 2 GB/s, and done in seconds at 50 MB/s.
MOST_BYTES = 1 << 30
MOST_SECONDS = 6.0
LEAST_BYTES = 16 << 20
SMALL_FILES = 64
_LARGE_FILES = 16
EXTRA_SECONDS = 10.0


@dataclass(frozen=True)
class Read:
    """`size` bytes in `seconds`, by a number of parallel streams."""

    streams: int
    size: int
    seconds: float

    @property
    def rate(self) -> float:
        """Bytes per second."""
        return self.size / self.seconds


@dataclass(frozen=True)
class Throughput:
    """The measurements. `one` and `many` are sequential reads by one and by eight streams; None if
    no file is large enough or nothing answered. `stat_seconds` and `open_seconds` are medians for
    one small file: stat, and opening it and reading its first bytes. `cold`: pages could be dropped
    from memory before; if not, the rates may be memory's. `problem` is the system's reason for a
    failure.
    """

    one: Read | None = None
    many: Read | None = None
    stat_seconds: float | None = None
    open_seconds: float | None = None
    cold: bool = True
    problem: str = ""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready data."""
        return asdict(self)


def large_files(inventory: Inventory) -> list[str]:
    """The largest models, each once: what a cold start reads."""
    models = sorted(inventory.models, key=lambda f: f.size, reverse=True)
    return list({f.inode: f.full_path for f in models if f.inode}.values())[:_LARGE_FILES]


def small_files(inventory: Inventory) -> list[str]:
    """The smallest files, for the latency of metadata."""
    files = sorted((f for f in inventory.files if f.inode), key=lambda f: f.size)
    return [f.full_path for f in files[:SMALL_FILES]]


@dataclass(frozen=True)
class _Piece:
    path: str
    offset: int


def measure_throughput(large: Sequence[str], small: Sequence[str]) -> Throughput:
    """Read the `large` files and touch the `small` ones (paths, most significant first). One stream
    reads at most `MOST_BYTES`, eight together the same amount, from other places. Each step takes
    at most `MOST_SECONDS`, and ten seconds more on a hanging volume. Does not raise file system
    errors.
    """
    problems: list[str] = []
    pieces = _pieces(large, 2 * MOST_BYTES, problems)
    half = len(pieces) // 2
    one = _read([pieces[:half]], problems)
    many = _read(_shared_out(pieces[half : 2 * half]), problems)
    return Throughput(
        one=one,
        many=many,
        stat_seconds=_median(os.stat, small, problems),
        open_seconds=_median(_open_and_read, small, problems),
        cold=hasattr(os, "posix_fadvise"),
        problem=problems[0] if problems else "",
    )


def _pieces(paths: Sequence[str], most: int, problems: list[str]) -> list[_Piece]:
    """Whole blocks of the files, in order, up to `most` bytes."""
    pieces: list[_Piece] = []
    for path in paths:
        if len(pieces) * BLOCK >= most:
            break
        try:
            size = os.stat(path).st_size
        except OSError as problem:
            problems.append(_reason_of(problem))
            continue
        pieces += [_Piece(path, i * BLOCK) for i in range(size // BLOCK)]
    return pieces[: most // BLOCK]


def _shared_out(pieces: list[_Piece]) -> list[list[_Piece]]:
    """A run of adjacent pieces for each stream."""
    share = -(-len(pieces) // STREAMS) or 1
    return [pieces[i : i + share] for i in range(0, len(pieces), share)]


def _read(shares: list[list[_Piece]], problems: list[str]) -> Read | None:
    """Read each share in its own stream; None if there is too little to measure."""
    pieces = [piece for share in shares for piece in share]
    if len(pieces) * BLOCK < LEAST_BYTES:
        return None
    for path in dict.fromkeys(piece.path for piece in pieces):
        own = [piece.offset for piece in pieces if piece.path == path]
        _forget(path, min(own), max(own) + BLOCK - min(own))
    done: list[int] = []
    started = time.monotonic()
    end = started + MOST_SECONDS
    tasks = [partial(_read_share, share, end, done, problems) for share in shares]
    WorkerPool(len(shares)).run(tasks, MOST_SECONDS + EXTRA_SECONDS)
    seconds = time.monotonic() - started
    size = sum(done)
    return Read(len(shares), size, seconds) if size >= BLOCK else None


def _read_share(share: list[_Piece], end: float, done: list[int], problems: list[str]) -> None:
    buffer = bytearray(BLOCK)
    try:
        for path, pieces in groupby(share, lambda piece: piece.path):
            with open(path, "rb", buffering=0) as file:
                for piece in pieces:
                    if time.monotonic() > end:
                        return
                    done.append(os.preadv(file.fileno(), [buffer], piece.offset))
    except OSError as problem:
        problems.append(_reason_of(problem))


def _forget(path: str, offset: int, size: int) -> None:
    """Drop the pages to be read from the page cache."""
    if hasattr(os, "posix_fadvise"):
        try:
            with open(path, "rb", buffering=0) as file:
                os.posix_fadvise(file.fileno(), offset, size, os.POSIX_FADV_DONTNEED)
        except OSError:
            pass  # reading it will report it


def _median(
    call: Callable[[str], object], paths: Sequence[str], problems: list[str]
) -> float | None:
    """Median seconds of a call for one file after another."""
    taken: list[float] = []

    def task() -> None:
        end = time.monotonic() + MOST_SECONDS
        for path in paths[:SMALL_FILES]:
            started = time.monotonic()
            try:
                call(path)
            except OSError as problem:
                problems.append(_reason_of(problem))
                continue
            taken.append(time.monotonic() - started)
            if time.monotonic() > end:
                return

    WorkerPool(1).run([task], MOST_SECONDS + EXTRA_SECONDS)
    return statistics.median(taken) if taken else None


def _open_and_read(path: str) -> None:
    with open(path, "rb", buffering=0) as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 4096, os.POSIX_FADV_DONTNEED)
        file.read(4096)


def _reason_of(problem: OSError) -> str:
    return problem.strerror or str(problem)
