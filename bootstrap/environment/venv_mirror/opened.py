"""Notes which files a Python process opens, for the next start.

Lies in the mirror's site-packages under another name, where a `.pth` file runs `start` in every
process of that Python, before all else. Standard library only; knows nothing of the project.

An audit hook (PEP 578) sees what Python code opens, and extension modules as they are imported. The
libraries that these bring along are found later in the memory map of the process, whose id stands
in the first line. What code only asks the size or kind of is not seen, but that it lists a folder
is: transformers lists each of its models' folders and looks at all that is in them.
"""

from __future__ import annotations

import os
import sys
from types import FrameType
from typing import Any


def start(log: str, below: tuple[str, ...]) -> None:
    """Add to the file `log` each path once that this process opens below these folders."""
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
    """Is it Python's own search for modules, which asks for names only?"""
    return caller.f_code.co_filename.startswith("<frozen importlib")
