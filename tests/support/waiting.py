"""Wait for what a test caused in another process or thread: poll a condition, never hope."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> float:
    """Poll `condition` until it holds; the seconds that took. AssertionError when it never does."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, f"not so within {seconds} s"
        time.sleep(0.01)
    return time.monotonic() - start
