"""Which processes belong to a child we started, the ones that left its process group included."""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")


@dataclass(frozen=True)
class LiveProcess:
    pid: int
    command: str


def family(root: int, mark: str) -> list[LiveProcess]:
    """The living processes below `root`, plus those whose environment holds the text `mark`.

    The tree finds a child whose environment was replaced; the mark finds one whose parent has
    died, so that init has adopted it. `root` itself, zombies and ourselves are left out.
    """
    parents = {pid: parent for pid in _pids() if (parent := _parent(pid)) is not None}
    found = _below(root, parents) | {pid for pid in parents if _has_mark(pid, mark)}
    return [LiveProcess(pid, _command(pid)) for pid in sorted(found - {root, os.getpid()})]


def kill_family(root: int, mark: str) -> None:
    """SIGKILL to every process of family()."""
    for process in family(root, mark):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


def _pids() -> list[int]:
    return [int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit()]


def _parent(pid: int) -> int | None:
    """The parent of a living process; None for a zombie and for one that is gone."""
    try:
        stat = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    # The name in parentheses may hold spaces and parentheses itself: proc_pid_stat(5).
    state, parent = stat.rpartition(")")[2].split()[:2]
    return None if state in "ZX" else int(parent)


def _below(root: int, parents: dict[int, int]) -> set[int]:
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {root}


def _has_mark(pid: int, mark: str) -> bool:
    try:
        return mark.encode() in (_PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return False


def _command(pid: int) -> str:
    try:
        raw = (_PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return "(gone)"
    return raw.replace(b"\0", b" ").decode(errors="replace").strip()
