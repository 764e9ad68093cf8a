"""Virtual environments on the volume, looked at without running them."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

_MOST_TEXT = 16 << 10
_SETTING = re.compile(r"^\s*([\w-]+)\s*=\s*(.*?)\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Venv:
    """`version` is the Python it was made by ("3.11"), None when unknown. `python_text` is what
    the link `bin/python` reads, `python_exists` whether a program is there in the end. `made_at`
    is where it lay when it was made, which the first lines of its scripts still name."""

    path: str
    version: str | None
    python_text: str | None
    python_exists: bool
    made_at: str | None


def may_be_venv(name: str) -> bool:
    """Does a folder's name suggest a virtual environment?"""
    return "venv" in name.lower() or name in ("env", ".env", "python_env")


def look_at_venv(path: str) -> Venv | None:
    """The virtual environment at `path`; None when it is none (no pyvenv.cfg: PEP 405)."""
    try:
        with open(os.path.join(path, "pyvenv.cfg"), encoding="utf-8", errors="replace") as file:
            told = dict(_SETTING.findall(file.read(_MOST_TEXT)))
    except OSError:
        return None
    python = os.path.join(path, "bin", "python")
    return Venv(
        path=path,
        version=_short(told.get("version") or told.get("version_info")),
        python_text=_link_text(python),
        python_exists=os.path.exists(python),
        made_at=_made_at(told.get("command", ""), path),
    )


def _short(version: str | None) -> str | None:
    match = re.match(r"(\d+\.\d+)", version or "")
    return match[1] if match else None


def _link_text(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None


def _made_at(command: str, path: str) -> str | None:
    """From `command = … -m venv /workspace/venv` (Python 3.11 on), else from bin/activate."""
    word = command.rpartition(" ")[2]
    if os.path.isabs(word):
        return os.path.normpath(word)
    try:
        with open(os.path.join(path, "bin", "activate"), encoding="utf-8", errors="replace") as f:
            match = re.search(
                r"^\s*VIRTUAL_ENV=['\"]?([^'\"\n]+)", f.read(_MOST_TEXT), re.MULTILINE
            )
    except OSError:
        return None
    return match[1] if match and os.path.isabs(match[1]) else None
