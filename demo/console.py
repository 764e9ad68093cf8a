"""A build's output: progress on stderr, and errors that say what to do."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator

HEARTBEAT_SECONDS = 15.0


class DemoError(Exception):
    """An error for the user: what went wrong, then what to do about it."""

    def __init__(self, problem: str, fix: str) -> None:
        super().__init__(f"{problem}\n  What to do: {fix}")


def say(text: str) -> None:
    """One line of progress; stdout is kept for paths and exports."""
    print(f"demo: {text}", file=sys.stderr, flush=True)


def mb(size: float) -> str:
    """A readable size: `25 MB`."""
    return f"{size / 1e6:.1f} MB" if size < 1e7 else f"{size / 1e6:,.0f} MB"


@contextlib.contextmanager
def step(what: str) -> Iterator[None]:
    """Announce a long step, report every 15 s that it is still running, then its duration."""
    begun = time.monotonic()
    over = threading.Event()

    def remind() -> None:
        while not over.wait(HEARTBEAT_SECONDS):
            say(f"  … {what}, {time.monotonic() - begun:.0f} s so far")

    say(what)
    reminder = threading.Thread(target=remind, daemon=True)
    reminder.start()
    try:
        yield
        say(f"  done: {what} ({time.monotonic() - begun:.1f} s)")
    finally:
        over.set()
        reminder.join()
