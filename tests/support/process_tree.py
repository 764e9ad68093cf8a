"""The processes that belong to a child we started, including any that left its process group."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class LiveProcess:
    pid: int
    command: str


def family(root: int, mark: str) -> list[LiveProcess]:
    """The living processes below `root`, plus those whose environment holds the text `mark`.

    The tree finds a child whose environment was replaced; the mark finds one whose parent has
    died, so that init has adopted it. `root` itself, zombies and ourselves are left out.
    """
    found = [p for p in _below(root) | _marked(mark) if p.pid not in (root, os.getpid())]
    return [LiveProcess(p.pid, _command(p)) for p in sorted(found, key=lambda p: p.pid)]


def kill_family(root: int, mark: str) -> None:
    """SIGKILL to every process of family()."""
    for process in family(root, mark):
        with contextlib.suppress(psutil.Error):
            psutil.Process(process.pid).kill()


def _below(root: int) -> set[psutil.Process]:
    try:
        return {p for p in psutil.Process(root).children(recursive=True) if _lives(p)}
    except psutil.NoSuchProcess:
        return set()


def _marked(mark: str) -> set[psutil.Process]:
    return {p for p in psutil.process_iter() if mark in _environment(p) and _lives(p)}


def _environment(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return "\n".join(f"{key}={value}" for key, value in process.environ().items())
    return ""


def _lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def _command(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return "(gone)"
