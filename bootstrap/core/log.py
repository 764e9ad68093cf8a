"""The log: Python's `logging` behind one handler, which masks secrets and names the job. And text
to a terminal or file of any encoding.

A line says where it comes from: `[worker]`, or the first part of its logger's name (`comfyui`,
`models`, `uv`, a library). Where Runpod collects the log, a line is JSON in the form of its SDK
(serverless/modules/rp_logger.py). All goes to standard error; standard output is left to the SDK.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from io import TextIOWrapper
from typing import TextIO

from bootstrap.core.redact import masked

# Libraries speak up from warnings on.
_OURS = ("bootstrap", "handler", "models", "comfyui", "uv")
_WORKER = frozenset({"bootstrap", "handler", "scripts", "__main__"})
_LEVELS = {"WARNING": "WARN", "CRITICAL": "ERROR"}  # as the SDK calls them
_MOST_CHARACTERS = 4096  # Runpod takes no longer message
_job: ContextVar[str] = ContextVar("job", default="")


def set_up(level: str = "info", comfyui_level: str | None = None, as_json: bool = False) -> None:
    """Log to standard error from `level` on; `comfyui_level` is for ComfyUI's lines. Once for a
    program, in its `main`; again changes it."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler, _Handler):
            root.removeHandler(handler)
    root.addHandler(_Handler(_JSONForm() if as_json else _PlainForm()))
    for name in _OURS:
        logging.getLogger(name).setLevel(level.upper())
    # A higher level is ComfyUI's to apply (`--verbose`): its lines do not say their level.
    logging.getLogger("comfyui").setLevel("DEBUG" if comfyui_level == "debug" else "INFO")


@contextmanager
def of_job(job_id: str) -> Iterator[None]:
    """Lines logged in this context, and in tasks and calls that it begins, are of this job."""
    token = _job.set(job_id)
    try:
        yield
    finally:
        _job.reset(token)


class _Handler(logging.Handler):
    """Writes to what standard error is by then, each record whole. Never raises."""

    def __init__(self, form: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(form)
        self.addFilter(_prepared)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            show(f"{self.format(record)}\n", sys.stderr)
        except (OSError, ValueError):
            pass


def _prepared(record: logging.LogRecord) -> bool:
    """The record's text whole and masked, its traceback included; its job and origin beside it."""
    try:
        text = record.getMessage()
    except (TypeError, ValueError):  # a library's mistake
        text = str(record.msg)
    if record.exc_info:
        text = f"{text}\n{_PlainForm().formatException(record.exc_info)}"
    record.msg, record.args, record.exc_info, record.exc_text = masked(text), None, None, None
    record.job = _job.get()
    first = record.name.partition(".")[0]
    record.origin = "worker" if first in _WORKER else first
    record.level = _LEVELS.get(record.levelname, record.levelname)
    return True


class _PlainForm(logging.Formatter):
    """`[worker] a sentence`, `[worker] WARN: a sentence`, `[worker] job abc: a sentence`."""

    def format(self, record: logging.LogRecord) -> str:
        fields = vars(record)
        level = f"{fields['level']}: " if record.levelno >= logging.WARNING else ""
        job = f"job {fields['job']}: " if fields["job"] else ""
        return f"[{fields['origin']}] {level}{job}{record.msg}"


class _JSONForm(logging.Formatter):
    """As the SDK's own lines, so that the console shows a level and finds a job's lines."""

    def format(self, record: logging.LogRecord) -> str:
        fields = vars(record)
        text = record.msg if fields["origin"] == "worker" else f"[{fields['origin']}] {record.msg}"
        line = {"requestId": fields["job"] or None, "message": _cut(text), "level": fields["level"]}
        return json.dumps(line)


def _cut(text: str) -> str:
    half, more = _MOST_CHARACTERS // 2, len(text) - _MOST_CHARACTERS
    return text if more <= 0 else f"{text[:half]}\n… {more:,} characters cut …\n{text[-half:]}"


def show(text: str, stream: TextIO) -> None:
    """Write `text`; what the stream's encoding has no character for is written as `\\u6c34`.
    Raises OSError."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeError:
        text = text.encode(encoding, "backslashreplace").decode(encoding)
    stream.write(text)
    stream.flush()


def use_utf8() -> None:
    """Start this program again in Python's UTF-8 mode where the locale has another encoding: names
    on a volume are UTF-8, whatever LC_ALL says. What a terminal cannot show is written as
    `\\u6c34`, also by the SDK, which prints. For a program's first line."""
    if sys.getfilesystemencoding().lower() != "utf-8" and not sys.flags.utf8_mode:
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
