"""One line to the log, whole, whoever else is writing. Standard output is left to the SDK."""

from __future__ import annotations

import sys
import threading

from bootstrap.core.redact import masked

_lock = threading.Lock()


def say(text: str, prefix: str = "worker") -> None:
    """Write `[prefix] text` and a line end to standard error, secrets of addresses masked. Never
    raises."""
    line = f"[{prefix}] {masked(text)}\n"
    with _lock:
        try:
            sys.stderr.write(line)
            sys.stderr.flush()
        except (OSError, ValueError):
            pass
