"""Pure bookkeeping of byte ranges: who fetches which, what is there, how far from the start.

Blocks are handed out from the start of the file, large at first (fewer requests), small at the
end (all connections finish together), so that hashing can follow close behind. When nothing is
left to hand out, an idle connection takes half of what the slowest still has before it.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

SMALLEST = 4 * 1024 * 1024
LARGEST = 64 * 1024 * 1024
_STEAL_FROM = 2 * 1024 * 1024


class Span:
    """A range somebody fetches: from `position` to `end`, which may shrink meanwhile."""

    __slots__ = ("end", "position")

    def __init__(self, position: int, end: int) -> None:
        self.position = position
        self.end = end


class Blocks:
    """The ranges of a file of `size` bytes, of which `done` are there already. Thread-safe."""

    def __init__(
        self, size: int, done: Sequence[tuple[int, int]] = (), connections: int = 1
    ) -> None:
        self.size = size
        self.changed = threading.Condition()
        self._connections = connections
        self._gaps = _gaps(size, done)
        self._active: list[Span] = []

    def take(self) -> Span | None:
        """The next range to fetch; None when all are taken."""
        with self.changed:
            if not self._gaps:
                return self._steal()
            first, end = self._gaps[0]
            left = sum(b - a for a, b in self._gaps)
            length = min(max(left // (self._connections * 4), SMALLEST), LARGEST)
            if end - first <= length + SMALLEST // 2:
                self._gaps.pop(0)
            else:
                end = first + length
                self._gaps[0] = (end, self._gaps[0][1])
            return self._begin(first, end)

    def advance(self, span: Span, count: int) -> int:
        """`count` bytes of `span` were written; how many are left to it now."""
        with self.changed:
            span.position = min(span.position + count, span.end)
            self.changed.notify_all()
            return span.end - span.position

    def finish(self, span: Span) -> None:
        """The one who fetched `span` is through with it; what it lacks is up for taking again."""
        with self.changed:
            self._active.remove(span)
            if span.position < span.end:
                self._gaps.append((span.position, span.end))
                self._gaps.sort()
            self.changed.notify_all()

    def wait_beyond(self, position: int, timeout: float) -> int:
        """The frontier, before which every byte is there, as soon as it is past `position`, or
        after `timeout` seconds."""
        with self.changed:
            self.changed.wait_for(lambda: self._frontier() > position, timeout)
            return self._frontier()

    @property
    def missing(self) -> int:
        """How many bytes are not there yet."""
        with self.changed:
            return sum(end - first for first, end in self._missing())

    def done_ranges(self) -> list[tuple[int, int]]:
        """What is there, in order, joined."""
        with self.changed:
            return _gaps(self.size, self._missing())

    def _missing(self) -> list[tuple[int, int]]:
        active = [(s.position, s.end) for s in self._active if s.position < s.end]
        return sorted(self._gaps + active)

    def _frontier(self) -> int:
        first = min((s.position for s in self._active if s.position < s.end), default=self.size)
        return min(first, self._gaps[0][0]) if self._gaps else first

    def _steal(self) -> Span | None:
        victim = max(self._active, key=lambda s: s.end - s.position, default=None)
        if victim is None or victim.end - victim.position < _STEAL_FROM:
            return None
        middle = (victim.position + victim.end) // 2
        end, victim.end = victim.end, middle
        return self._begin(middle, end)

    def _begin(self, first: int, end: int) -> Span:
        span = Span(first, end)
        self._active.append(span)
        return span


def _gaps(size: int, done: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """What ranges, in order and apart, leave of 0..size."""
    gaps, position = [], 0
    for first, end in done:
        if first > position:
            gaps.append((position, first))
        position = max(position, end)
    if position < size:
        gaps.append((position, size))
    return gaps
