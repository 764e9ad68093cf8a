"""Standard output as people use it: cut short by `| head`."""

from __future__ import annotations

import os
import sys

from bootstrap.core import log


def show(text: str) -> None:
    """Print; that the reader has seen enough and is gone changes nothing else, the exit code
    included."""
    try:
        log.show(f"{text}\n", sys.stdout)
    except BrokenPipeError:
        # Python flushes once more when it ends, and would complain then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
