"""What the programs print: results on standard output, all else on standard error."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from bootstrap.core import log
from bootstrap.core.findings import Fault
from bootstrap.core.terminal import sentences, show_wrapped

_QUIET_SECONDS = 1.0


def show(text: str) -> None:
    """Print a result; that the reader, such as `| head`, has seen enough and is gone changes
    nothing else, the exit code included."""
    try:
        log.show(f"{text}\n", sys.stdout)
    except BrokenPipeError:
        drop_output()


def drop_output() -> None:
    """The reader of standard output is gone: Python flushes it once more when it ends, and would
    complain then."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(text: str) -> None:
    """Print what is not a result."""
    log.show(f"{text}\n", sys.stderr)


def say_wrapped(line: str) -> None:
    """Print a line of whatever origin, wrapped where standard error is a terminal."""
    show_wrapped(plain(line), sys.stderr)


def say_error(fault: Fault) -> None:
    """Print `error[code]`, the sentence, what the node's Python said last (the last line of
    `traceback` in the details), the way out, and where more is said (`docs` there)."""
    for line in _error_lines(fault):
        say_wrapped(line)


def plain(text: str) -> str:
    """`text` without what a terminal would act on."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "", text)


def _error_lines(fault: Fault) -> Iterator[str]:
    first, *hint = sentences(fault.finding())
    yield from _a_line_each(first, fault.details.get("problems"))
    last = _last_line(fault.details.get("traceback"))
    if last and last not in fault.message:
        yield f"  {last}"
    yield from hint
    if fault.details.get("docs"):
        yield f"more: {fault.details['docs']}"


def _a_line_each(sentence: str, problems: Any) -> Iterator[str]:
    """A sentence that lists problems, each on a line of its own; others as they are."""
    head, numbered, _ = sentence.partition(" (1) ")
    if not (numbered and isinstance(problems, list)):
        yield sentence
        return
    yield head
    for number, problem in enumerate(problems, 1):
        said = problem.get("error") if isinstance(problem, dict) else problem
        yield f"  ({number}) {said}"


def _last_line(trace: Any) -> str:
    text = "\n".join(map(str, trace)) if isinstance(trace, list) else str(trace or "")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


class ScanProgress:
    """Counts files on standard error while a scan takes more than a second; silent if that is not a
    terminal."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._from = time.monotonic() + _QUIET_SECONDS
        self._shown = False

    def __enter__(self) -> ScanProgress:
        return self

    def update(self, count: int) -> None:
        """Update the count."""
        if not sys.stderr.isatty() or time.monotonic() < self._from:
            return
        self._shown = True
        sys.stderr.write(f"\r{self._what}: {count:,} files and folders ")
        sys.stderr.flush()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._shown:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()
