"""Shows a job's progress: a bar on a terminal, elsewhere a line for each change."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from tqdm import tqdm

from bootstrap.core.text import pluralize
from scripts.printing import plain, say

_WITH_BAR = "{{desc}}  {{bar:{width}}} {{percentage:3.0f}} %  {{elapsed}}"
_WITHOUT_BAR = "{desc}  {elapsed}"
_NARROW = "{percentage:3.0f} %  {elapsed}  {desc}"  # what does not fit is cut off at the end
_LEAST_BAR, _MOST_BAR = 8, 24
_BESIDE_WORDS_AND_BAR = 17  # from the first hour on; 15 before
_ROOM_FOR_CTRL_C = 2  # the terminal echoes ^C after the line, and would start another one
_MOST_WORDS = 70
_LINE_EVERY_SECONDS = 5.0
_JOINT = " · "
_STEP = f"{_JOINT}step "
_STATES = {"IN_QUEUE": "waiting for a worker", "IN_PROGRESS": "running"}
# When /health is asked first, and the longest interval, to limit the load.
_QUEUE_AFTER_SECONDS, _QUEUE_EVERY_SECONDS = 3.0, 20.0
# Its names for workers' states, and their meaning for people.
_WORKERS = {
    "running": "busy",
    "idle": "idle",
    "initializing": "starting",
    "throttled": "waiting for a free GPU",
    "unhealthy": "unhealthy",
}


class Waiting:
    """The state of a job's queue; `ask` returns the answer of /health, or None."""

    def __init__(self, ask: Callable[[], Any]) -> None:
        self._ask = ask
        self._words = ""
        self._pause = _QUEUE_AFTER_SECONDS
        self._next = time.monotonic() + self._pause

    def words(self, status: str) -> str:
        """What is known by now; empty if nothing."""
        if status == "IN_QUEUE" and time.monotonic() >= self._next:
            self._pause = min(1.5 * self._pause, _QUEUE_EVERY_SECONDS)
            self._words = queue_words(self._ask())
            self._next = time.monotonic() + self._pause
        return self._words


def queue_words(health: Any) -> str:
    """`at most 3 jobs ahead, 1 worker starting`: Runpod reports how many jobs wait, not the place
    of one. Empty if unknown, or if none waits: then this one was just taken."""
    jobs = _count(health, "jobs", "inQueue")
    if jobs < 1:
        return ""
    ahead = f"at most {pluralize(jobs - 1, 'job')} ahead" if jobs > 1 else "next"
    found = [(_count(health, "workers", key), word) for key, word in _WORKERS.items()]
    there = [(count, word) for count, word in found if count > 0]
    if not there:
        return f"{ahead}, no worker yet"
    (count, word), *more = there
    rest = [f"{count} {word}" for count, word in more]
    return ", ".join((ahead, f"{pluralize(count, 'worker')} {word}", *rest))


def _count(health: Any, group: str, name: str) -> int:
    counts = health.get(group) if isinstance(health, Mapping) else None
    count = counts.get(name) if isinstance(counts, Mapping) else None
    return count if isinstance(count, int) and not isinstance(count, bool) else 0


class Watching:
    """Shows a job on standard error; all server text is sanitised first."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._line = self._what = ""
        self._line_at = float("-inf")

    def draw(self, picture: str) -> None:
        """Draw our own escape sequences above the line."""
        if picture and self._bar is not None:
            self._bar.write(picture, file=sys.stderr, end="")

    def __enter__(self) -> Watching:
        if sys.stderr.isatty():
            self._bar = tqdm(total=100, bar_format=_WITHOUT_BAR, leave=False, file=sys.stderr)
        return self

    def show(self, status: str, output: Any, queue: str = "") -> None:
        """Show the job's state, its progress if there is any, and its `queue`."""
        percent, words = progress_in(output) if status == "IN_PROGRESS" else (None, "")
        words = words or _STATES.get(status, status.lower().replace("_", " "))
        words = f"in queue: {queue}" if queue and status == "IN_QUEUE" else words
        if self._bar is None:
            self._print(words, percent)
            return
        self._bar.ncols = shutil.get_terminal_size().columns - _ROOM_FOR_CTRL_C
        self._bar.bar_format = _form(self._bar.ncols - len(words), percent)
        self._bar.set_description_str(words, refresh=False)
        self._bar.n = percent or 0
        self._bar.refresh()

    def say(self, line: str) -> None:
        """A line of its own."""
        if self._bar is None:
            say(plain(line))
        else:
            self._bar.write(plain(line), file=sys.stderr)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()
            print("\r\033[K", end="", file=sys.stderr, flush=True)  # the terminal's ^C, too

    def _print(self, words: str, percent: float | None) -> None:
        line = words if percent is None else f"{words} ({percent:.0f} %)"
        what = words.partition(_STEP)[0]
        soon = time.monotonic() - self._line_at < _LINE_EVERY_SECONDS
        if line == self._line or (soon and what == self._what):
            return
        self._line, self._what, self._line_at = line, what, time.monotonic()
        say(line)


def _form(room: int, percent: float | None) -> str:
    """tqdm's format for a line with `room` columns beside its words: the bar shrinks first, so that
    the line looks the same for one or two digits."""
    if percent is None:
        return _WITHOUT_BAR
    width = min(room - _BESIDE_WORDS_AND_BAR, _MOST_BAR)
    return _NARROW if width < _LEAST_BAR else _WITH_BAR.format(width=width)


def progress_in(output: Any) -> tuple[float | None, str]:
    """(percent or None, words) of whatever a worker reports while a job runs."""
    if isinstance(output, str):
        return None, _words(output)
    if not isinstance(output, Mapping):
        return None, ""
    step, steps = _number(output, "step", "value"), _number(output, "steps", "max")
    percent = _number(output, "percent")
    if percent is None and step is not None and steps:
        percent = 100 * step / steps
    parts = [_text(output, "stage", "message"), _node(output)]
    if step is not None and steps:
        parts.append(f"step {step:g} of {steps:g}")
    position = _number(output, "position")
    if position is not None:
        parts.append(f"place {position:g}")
    words = _JOINT.join(part for part in parts if part)
    return None if percent is None else min(max(percent, 0.0), 100.0), _words(words)


def _node(output: Mapping[str, Any]) -> str:
    node = output.get("node")
    if isinstance(node, Mapping):
        output, node = node, node.get("id")
    name = _text(output, "title", "class_type", "node_type", "class")
    number = _text(output, "node_id") or ("" if node is None else str(node))
    return f"{name} ({number})" if name and number else name or (number and f"node {number}")


def _text(output: Mapping[str, Any], *names: str) -> str:
    found = (output[n] for n in names if isinstance(output.get(n), str) and output[n])
    return str(next(found, ""))


def _number(output: Mapping[str, Any], *names: str) -> float | None:
    for name in names:
        value = output.get(name)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and value == value:
            return float(value)
    return None


def _words(text: str) -> str:
    line = " ".join(plain(text).split())
    return line if len(line) <= _MOST_WORDS else line[: _MOST_WORDS - 1] + "…"
