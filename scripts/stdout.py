"""Standard output that may be closed early, by `| head`."""

from __future__ import annotations

import os
import sys

from bootstrap.core import log


def show(text: str) -> None:
    """Print; a closed pipe changes nothing else, not even the exit code."""
    try:
        log.show(f"{text}\n", sys.stdout)
    except BrokenPipeError:
        # Python flushes once more when it ends, and would complain then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
