"""pip in a virtual environment: its progress, and what its failures mean."""

from __future__ import annotations

import collections
import json
import re
import subprocess
from pathlib import Path
from typing import Any

from demo.console import DemoError, say

# pip's lines that are worth showing, and files that take a while; the rest is kept for the error.
_SHOWN = ("Building ", "ERROR")
_LARGE = re.compile(r"Downloading (?:.*/)?(\S+) \((\d{2,}(?:\.\d+)? MB|.* GB)\)")
_WIDTH = 66
# The first of these in a failed pip's last lines decides the message: an unreachable index also
# prints 'No matching distribution'.
_CAUSES = (
    (
        ("No space left",),
        "make room on this disk, or set COMFYUI_WORKER_CACHE and TMPDIR elsewhere",
    ),
    (
        ("THESE PACKAGES DO NOT MATCH THE HASHES",),
        "what was downloaded is not what this project pins; check the package index in use",
    ),
    (
        ("NewConnectionError", "Name or service", "Temporary failure", "timed out", "ProxyError"),
        "check the network, and pip's proxy and index settings (`pip config list`)",
    ),
    (
        ("No matching distribution", "Requires-Python"),
        (
            "use a Python from 3.10 to 3.13 (make … PYTHON=python3.12) and check that pip's index "
            "can be reached (`pip config list`)"
        ),
    ),
)


def pip(python: Path, *arguments: str) -> None:
    """Run pip, showing the large files it fetches and how many in all; raise DemoError with its
    last lines."""
    command = [str(python), "-m", "pip", *arguments, "--disable-pip-version-check", "--no-input"]
    tail: collections.deque[str] = collections.deque(maxlen=200)
    fetched = 0
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            tail.append(line.rstrip())
            fetched += line.strip().startswith("Downloading ") and ".metadata" not in line
            if shown := _worth_showing(line.strip(), fetched):
                say(f"  pip: {shown if len(shown) <= _WIDTH else shown[: _WIDTH - 1] + '…'}")
    if process.returncode != 0:
        end = "\n".join(f"    {line}" for line in list(tail)[-12:])
        problem = f"pip {arguments[0]} failed with exit code {process.returncode}:\n{end}"
        raise DemoError(problem, _fix("\n".join(tail)))


def would_install(python: Path, requirement: str, *options: str) -> dict[str, Any] | None:
    """pip's report on the one distribution it would install; None when it cannot say."""
    answer = subprocess.run(
        [
            *(str(python), "-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-deps"),
            *("--quiet", "--report", "-", "--disable-pip-version-check", "--no-input"),
            *(*options, requirement),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=False,
    )
    if answer.returncode != 0:
        return None
    try:
        (found,) = json.loads(answer.stdout)["install"]
    except (ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, dict) else None


def _worth_showing(line: str, fetched: int) -> str:
    """What to show of a line from pip; empty for most."""
    if large := _LARGE.match(line):
        return f"downloading {large[1]} ({large[2]})"
    if line.startswith("Installing collected packages:"):
        return f"installing {line.count(',') + 1} packages, {fetched} of them downloaded"
    return line if line.startswith(_SHOWN) else ""


def _fix(output: str) -> str:
    for marks, fix in _CAUSES:
        if any(mark in output for mark in marks):
            return fix
    return "read pip's last lines above; fix the cause and run the same command again"
