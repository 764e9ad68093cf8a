"""Stages with start, end and outcome: what the boot report and its picture are made of."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass
class Stage:
    """One part of a boot; `start` and `seconds` count from the timeline's beginning. `bytes` is
    what it moved, `note` what else there is to say."""

    name: str
    start: float
    seconds: float = 0.0
    outcome: str = "ok"
    bytes: int = 0
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready data; `bytes` and `note` only where there are any."""
        return {k: v for k, v in vars(self).items() if v or k not in ("bytes", "note")}


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
    def stage(self, name: str) -> Iterator[Stage]:
        """Time a block; its outcome is `ok`, what the block sets, or the name of the exception
        that ended it."""
        stage = Stage(name, round(self.elapsed, 3))
        try:
            yield stage
        except BaseException as problem:
            stage.outcome = type(problem).__name__
            raise
        finally:
            stage.seconds = max(0.0, round(self.elapsed - stage.start, 3))
            self._add(stage)

    def skip(self, name: str) -> None:
        """A stage that what it needs kept from running."""
        self._add(Stage(name, round(self.elapsed, 3), outcome="skipped"))

    def give_up(self, name: str, seconds: float) -> None:
        """A stage that has been at it for `seconds` and is waited for no longer."""
        self._add(Stage(name, round(self.elapsed - seconds, 3), seconds, "late"))

    def _add(self, stage: Stage) -> None:
        with self._lock:
            self._stages.append(stage)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All stages so far, by start."""
        with self._lock:
            return tuple(sorted(self._stages, key=lambda s: s.start))
