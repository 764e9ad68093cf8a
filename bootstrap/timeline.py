"""Stages with start, end and outcome: what the boot report is made of."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Stage:
    """One part of a boot; `start` and `seconds` count from the timeline's beginning."""

    name: str
    start: float
    seconds: float
    outcome: str


class Timeline:
    """Collects stages from any thread; the clock starts when it is made."""

    def __init__(self) -> None:
        self._zero = time.monotonic()
        self._stages: list[Stage] = []
        self._lock = threading.Lock()

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._zero

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a block; its outcome is `ok`, or the name of the exception that ended it."""
        start, outcome = self.elapsed, "ok"
        try:
            yield
        except BaseException as problem:
            outcome = type(problem).__name__
            raise
        finally:
            self.add(Stage(name, round(start, 3), round(self.elapsed - start, 3), outcome))

    def add(self, stage: Stage) -> None:
        """Add a stage that was timed elsewhere."""
        with self._lock:
            self._stages.append(stage)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All stages so far, by start."""
        with self._lock:
            return tuple(sorted(self._stages, key=lambda s: s.start))

    def as_list(self) -> list[dict[str, Any]]:
        """The stages as JSON-ready data."""
        return [asdict(stage) for stage in self.stages]
