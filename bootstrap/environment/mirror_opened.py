"""Notes which files a Python process opens, for the next start.

Lies in the mirror's site-packages under another name, where a `.pth` file runs `start` in every
process of that Python, before all else. Standard library only; knows nothing of the project.

An audit hook (PEP 578) sees what Python code opens, and extension modules as they are imported. The
libraries that these bring along are found later in the memory map of the process, whose id stands
in the first line.
"""

from __future__ import annotations

import os
import sys
from typing import Any


def start(log: str) -> None:
    """Add to the file `log` each path once that this process opens."""
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    own = os.fstat(descriptor)
    seen: set[str] = set()

    def note(line: str) -> None:
        try:
            # Programs that close all descriptors may open another file under the same number.
            if os.path.samestat(own, os.fstat(descriptor)):
                os.write(descriptor, os.fsencode(f"{line}\n"))
        except (OSError, ValueError):
            pass

    def hook(event: str, details: tuple[Any, ...]) -> None:
        if event == "open":
            path = details[0]
        elif event == "import":
            path = details[1]
        else:
            return
        if type(path) is str and path not in seen:
            seen.add(path)
            note(f"open {path}")

    note(f"process {os.getpid()}")
    sys.addaudithook(hook)
