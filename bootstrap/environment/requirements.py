"""What a ComfyUI asks for: its own requirements, its active nodes', and its version."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass

from bootstrap.core.concurrency import Together
from bootstrap.environment.packs import Git, Pack, State, gather_packs, look_at_git
from bootstrap.environment.requirement_files import (
    COMFYUI,
    RequirementFile,
    read_text,
    requirement_file,
)

VERSION_FILE = "comfyui_version.py"
PROJECT_FILE = "pyproject.toml"


@dataclass(frozen=True)
class Requirements:
    """`files` are ComfyUI's own first, then the nodes'; `version` is None where it is not told."""

    version: str | None = None
    files: tuple[RequirementFile, ...] = ()


def read_requirements(comfyui: str, together: Together, nodes: str | None = None) -> Requirements:
    """What the ComfyUI in a folder asks for, and custom nodes in `nodes`. Raises SilentError."""
    packs = gather_packs(comfyui, together, nodes)
    own = together.one(lambda: requirement_file(COMFYUI, comfyui))
    return Requirements(read_version(comfyui, together)[0], files_of(own, packs))


def files_of(own: RequirementFile | None, packs: Iterable[Pack]) -> tuple[RequirementFile, ...]:
    """ComfyUI's file and those of the active custom nodes."""
    active = (pack for pack in packs if pack.state is State.GOOD and not pack.disabled)
    return tuple(file for file in (own, *(p.requirements for p in active)) if file is not None)


def read_version(
    comfyui: str, together: Together, git: Git | None = None
) -> tuple[str | None, str | None]:
    """The version, and what tells it: comfyui_version.py since 2025, pyproject.toml since mid-2024;
    before that, a release is a tag of git's. Raises SilentError."""
    paths = [os.path.join(comfyui, name) for name in (VERSION_FILE, PROJECT_FILE)]
    texts = together.each(read_text, paths)
    match = re.search(r"""^__version__\s*=\s*["']([^"']+)""", texts[0] or "", re.MULTILINE)
    if match:
        return match[1], VERSION_FILE
    project = re.search(r"^\[project\]\s*\n((?:(?!\[).*\n?)*)", texts[1] or "", re.MULTILINE)
    match = (
        re.search(r"""^version\s*=\s*["']([^"'\n]+)""", project[1], re.MULTILINE)
        if project
        else None
    )
    if match:
        return match[1], PROJECT_FILE
    git = git or together.one(lambda: look_at_git(comfyui))
    if git is not None and git.tag and re.fullmatch(r"v\d+(\.\d+)*", git.tag):
        return git.tag[1:], "git"
    return None, None
