"""The log: Python's `logging` with one handler that masks secrets and adds the job, also for
libraries' lines, warnings and uncaught exceptions. And text for a terminal or file of any encoding.

A line names its origin: `[worker]`, or the first part of its logger's name (`comfyui`, `models`,
`uv`, a library). Where Runpod collects the log, a line is JSON in its SDK's format
(serverless/modules/rp_logger.py). Everything goes to standard error; standard output is the SDK's.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from io import TextIOWrapper
from types import TracebackType
from typing import TextIO

from bootstrap.core.redact import masked

# Libraries log from WARNING on.
_OURS = ("bootstrap", "handler", "models", "nodes", "comfyui", "uv")
_WORKER = frozenset({"bootstrap", "handler", "scripts", "__main__", "py"})  # py.warnings
_LEVELS = {"WARNING": "WARN", "CRITICAL": "ERROR"}  # as the SDK calls them
_MOST_CHARACTERS = 4096  # Runpod cuts longer messages
_job: ContextVar[str] = ContextVar("job", default="")
_log = logging.getLogger(__name__)


def set_up(level: str = "info", comfyui_level: str | None = None, as_json: bool = False) -> None:
    """Log to standard error from `level` on; `comfyui_level` is for ComfyUI's lines. Called once,
    in a program's `main`; a second call changes it."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler, _Handler):
            root.removeHandler(handler)
    root.addHandler(_Handler(_JSONForm() if as_json else _PlainForm()))
    for name in _OURS:
        logging.getLogger(name).setLevel(level.upper())
    # A higher level is ComfyUI's to apply (`--verbose`): not all its lines say theirs.
    logging.getLogger("comfyui").setLevel("DEBUG" if comfyui_level == "debug" else "INFO")
    _route_libraries()
    logging.captureWarnings(True)
    _log_the_uncaught()


class _Logger(logging.Logger):
    """Passes everything to the root's handlers. Libraries (huggingface_hub, uvicorn) install their
    own, which mask nothing."""

    def callHandlers(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        logging.getLogger().callHandlers(record)


def _route_libraries() -> None:
    """Sends libraries' loggers, present and future, to our handler only."""
    logging.setLoggerClass(_Logger)
    for logger in logging.getLogger().manager.loggerDict.values():
        if isinstance(logger, logging.Logger):
            logger.handlers.clear()
            logger.propagate = True


def _log_the_uncaught() -> None:
    """Instead of Python's own traceback, which would not mask anything. Other tools' hooks (a
    debugger, pytest) stay."""
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _uncaught
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = _uncaught_in_thread
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _unraisable


def _uncaught(kind: type[BaseException], fault: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, Exception):
        _log.critical("stopped by an error that was not handled:", exc_info=(kind, fault, trace))
    else:  # Ctrl-C
        sys.__excepthook__(kind, fault, trace)


def _uncaught_in_thread(ended: threading.ExceptHookArgs) -> None:
    fault, name = ended.exc_value, ended.thread.name if ended.thread else "a thread"
    if fault is not None and not isinstance(fault, SystemExit):
        caught = (ended.exc_type, fault, ended.exc_traceback)
        _log.critical("the thread %s ended with an error:", name, exc_info=caught)


def _unraisable(fault: sys.UnraisableHookArgs) -> None:
    """Raised where no caller sees it: in `__del__`, or a callback of the garbage collector."""
    if fault.exc_value is not None:
        caught = (fault.exc_type, fault.exc_value, fault.exc_traceback)
        said = fault.err_msg or "an error was ignored in"
        _log.error("%s %r:", said, fault.object, exc_info=caught)


@contextmanager
def of_job(job_id: str) -> Iterator[None]:
    """Lines logged in this context, and in tasks and calls started from it, carry this job's id."""
    token = _job.set(job_id)
    try:
        yield
    finally:
        _job.reset(token)


class _Handler(logging.Handler):
    """Writes to the current standard error, one whole record at a time. Never raises."""

    def __init__(self, form: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(form)
        self.addFilter(_prepared)

    def handle(self, record: logging.LogRecord) -> bool:
        """As logging's, filter included; False where the record could not be written."""
        try:
            return bool(super().handle(record))
        except Exception:  # noqa: BLE001 - a log line must not break what it reports
            return False

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        if vars(record)["origin"] != "comfyui" and isinstance(self.formatter, _PlainForm):
            text = _wrapped(text)
        show(f"{text}\n", sys.stderr)


def _wrapped(text: str) -> str:
    """With long lines going on indented, where standard error is a terminal. ComfyUI's and its
    nodes' own stay as they are: they may be tables."""
    if not sys.stderr.isatty():
        return text
    from bootstrap.core.terminal import style_of  # which imports this module

    wrap = style_of(sys.stderr).wrapped
    return "\n".join(part for line in text.split("\n") for part in wrap(line, indent="  ") or [""])


def _prepared(record: logging.LogRecord) -> bool:
    """The record with its full text masked, traceback included, and its job and origin."""
    text = _message(record)
    if record.exc_info:
        text = f"{text}\n{_PlainForm().formatException(record.exc_info)}"
    text = masked(text.rstrip("\n"))
    record.msg, record.args, record.exc_info, record.exc_text = text, None, None, None
    record.job = _job.get()
    first = record.name.partition(".")[0]
    record.origin = "worker" if first in _WORKER else first
    record.level = _LEVELS.get(record.levelname, record.levelname)
    return True


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # noqa: BLE001 - wrong arguments, or one whose `__str__` fails
        said = record.msg
        return said if isinstance(said, str) else f"<a {type(said).__name__} without text>"


class _PlainForm(logging.Formatter):
    """`[worker] a sentence`, `[worker] WARN: a sentence`, `[worker] job abc: a sentence`."""

    def format(self, record: logging.LogRecord) -> str:
        fields = vars(record)
        level = f"{fields['level']}: " if record.levelno >= logging.WARNING else ""
        job = f"job {fields['job']}: " if fields["job"] else ""
        return f"[{fields['origin']}] {level}{job}{record.msg}"


class _JSONForm(logging.Formatter):
    """Like the SDK's own lines, so that the console shows levels and finds a job's lines."""

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
