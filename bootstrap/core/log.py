"""One line to the log, whole, whoever else is writing; standard output is left to the SDK. And
text to a terminal or file of any encoding."""

from __future__ import annotations

import os
import sys
import threading
from typing import TextIO

from bootstrap.core.redact import masked

_lock = threading.Lock()


def say(text: str, prefix: str = "worker") -> None:
    """Write `[prefix] text` and a line end to standard error, secrets of addresses masked. Never
    raises."""
    line = f"[{prefix}] {masked(text)}\n"
    with _lock:
        try:
            show(line, sys.stderr)
        except (OSError, ValueError):
            pass


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
    on a volume are UTF-8, whatever LC_ALL says. For a program's first line."""
    if sys.getfilesystemencoding().lower() != "utf-8" and not sys.flags.utf8_mode:
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
