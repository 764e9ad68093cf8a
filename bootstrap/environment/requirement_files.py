"""Reads the requirements.txt or pyproject.toml of ComfyUI or a custom node as raw lines.

As pip reads it: joined lines, comments, `-r`. Options for where packages come from (`--index-url`,
`--find-links`) are ignored: the endpoint decides that, not a custom node. Nothing outside the
owner's folder is read, through a link or `..`, and only plain files.
"""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from bootstrap.core.files import open_regular

#: The owner of ComfyUI's own requirements.
COMFYUI = "ComfyUI"
_FILE = "requirements.txt"
_MANAGER = "manager_requirements.txt"
_PROJECT = "pyproject.toml"
_MOST_TEXT = 64 << 10
_MOST_LINES = 300
_MOST_INCLUDES = 8
_COMMENT = re.compile(r"(^|\s)#.*$")
_PER_LINE_OPTIONS = re.compile(r"\s--?(?:hash|config-settings|global-option|install-option)\b.*$")
_INCLUDE = re.compile(r"(?:-r|--requirement)[\s=]*(?P<file>\S.*)")
_EDITABLE = re.compile(r"(?:-e|--editable)[\s=]+")


@dataclass(frozen=True)
class RequirementFile:
    """One owner's requirements: `lines` of a requirements file, or a pyproject.toml's text in
    `toml`. `owner` is COMFYUI or a custom node's name, `path` the file."""

    owner: str
    path: str
    lines: tuple[str, ...] = ()
    toml: str | None = None

    @property
    def core(self) -> bool:
        """Is it ComfyUI's own?"""
        return self.owner == COMFYUI


def requirement_file(
    owner: str, folder: str, names: Sequence[str] = (_FILE,)
) -> RequirementFile | None:
    """The files `names` in `folder`, by default requirements.txt, which ComfyUI-Manager installs;
    else the dependencies in its pyproject.toml; None without either."""
    lines = _read(folder, names)
    if lines is not None:
        return RequirementFile(owner, os.path.join(folder, _FILE), lines)
    home = os.path.realpath(folder)
    text = None if owner == COMFYUI else read_text(_inside(home, home, _PROJECT))
    return RequirementFile(owner, os.path.join(folder, _PROJECT), toml=text) if text else None


def read_text(path: str | None, most: int = _MOST_TEXT) -> str | None:
    """A small plain file, decoded by its byte order mark (PowerShell writes UTF-16), else as UTF-8,
    else as Latin-1; None if it cannot be read."""
    if path is None:
        return None
    try:
        with open_regular(path) as file:
            data = file.read(most)
    except OSError:
        return None
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", "replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def comfyui_file(folder: str, arguments: Sequence[str]) -> RequirementFile | None:
    """The requirements of the ComfyUI in `folder`, started with `arguments`: its manager, a
    separate package since 0.4, has its own file."""
    manager = {"--enable-manager", "--enable-manager-legacy-ui"} & set(arguments)
    return requirement_file(COMFYUI, folder, (_FILE, *([_MANAGER] if manager else [])))


def _read(folder: str, names: Sequence[str]) -> tuple[str, ...] | None:
    """Lines of the files `names` and of those included with -r, if they are in `folder`."""
    home = os.path.realpath(folder)
    pending = [_inside(home, home, name) for name in names]
    seen: set[str] = set()
    lines: list[str] | None = None
    while pending and len(seen) <= _MOST_INCLUDES:
        path = pending.pop(0)
        text = None if path is None or path in seen else read_text(path)
        if path is None or text is None:
            continue
        seen.add(path)
        own, includes = _parse(text)
        pending += [_inside(home, os.path.dirname(path), include) for include in includes]
        lines = [*(lines or []), *own]
    return None if lines is None else tuple(dict.fromkeys(lines))[:_MOST_LINES]


def _inside(home: str, folder: str, name: str) -> str | None:
    """The file `name` relative to `folder`, links resolved; None if it is outside `home`."""
    path = os.path.realpath(os.path.join(folder, name))
    return path if path.startswith(home.rstrip(os.sep) + os.sep) else None


def _parse(text: str) -> tuple[list[str], list[str]]:
    """Requirements, and the files included with -r."""
    lines: list[str] = []
    includes: list[str] = []
    for line in _logical_lines(text):
        line = _PER_LINE_OPTIONS.sub("", _COMMENT.sub("", line)).strip()
        include = _INCLUDE.fullmatch(line)
        if include is not None:
            includes.append(include["file"].strip().strip("'\""))
            continue
        line = _EDITABLE.sub("", line, count=1) if _EDITABLE.match(line) else line
        if line and not line.startswith("-"):
            lines.append(line)
    return lines, includes


def _logical_lines(text: str) -> list[str]:
    """Lines, joined after a trailing backslash; lines with a NUL are dropped."""
    joined: list[str] = []
    open_line = ""
    for line in text.splitlines():
        if line.endswith("\\") and not line.lstrip().startswith("#"):
            open_line += line[:-1]
            continue
        joined.append(open_line + line)
        open_line = ""
    return [line for line in [*joined, open_line] if line and "\0" not in line]
