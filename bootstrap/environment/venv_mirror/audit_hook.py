"""Records which files a Python process opens, for the next start.

It is copied into the mirror's site-packages under another name, where a `.pth` file runs `start`
first in every process of that Python. Standard library only; knows nothing of the project.

An audit hook (PEP 578) sees what Python code opens, and extension modules as they are imported.
Their libraries are found later in the process's memory map; its id is in the first line. A stat is
not seen, but listing a folder is: transformers lists each of its models' folders and stats
everything in them.
"""

from __future__ import annotations

import os
import sys
from types import FrameType
from typing import Any


def start(log: str, below: tuple[str, ...]) -> None:
    """Append to the file `log` each path, once, that this process opens below these folders."""
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
            kind, path = "open", str(details[0])
        elif event == "import":
            kind, path = "open", str(details[1])
        elif event in ("os.listdir", "os.scandir") and not _by_import(sys._getframe(1)):
            kind, path = "list", str(details[0])
        else:
            return
        if path.startswith(below) and (line := f"{kind} {path}") not in seen:
            seen.add(line)
            note(line)

    note(f"process {os.getpid()}")
    sys.addaudithook(hook)


def _by_import(caller: FrameType) -> bool:
    """Is it Python's own module search, which needs only names?"""
    return caller.f_code.co_filename.startswith("<frozen importlib")
