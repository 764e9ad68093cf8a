"""Parts whose makers are gone: taken over where they are of use, swept where they are old."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from bootstrap.core.files import Disk
from bootstrap.core.temp_names import PART, beside, is_litter, key_of, new_owner
from bootstrap.fetch.part import Part, State, read_state
from bootstrap.fetch.remote import Remote

#: Seconds after which a leftover is removed; a part that is being written is never that old.
SWEEP_AGE = 24 * 3600.0
#: Is the owner of this part gone?
Quiet = Callable[[Path, State], bool]


def take_over(
    folder: Path, name: str, remote: Remote, disk: Disk, quiet: Quiet
) -> tuple[Part, tuple[tuple[int, int], ...]] | None:
    """The most advanced part of `name` that fits `remote` and whose owner is `quiet`, now ours,
    with its good ranges; None when there is none.

    The new note is written first, then the part renamed: killed in between, the part still
    belongs to its old name.
    """
    for _, path, state in _candidates(folder, name, remote):
        if not quiet(path, state):
            continue
        taken = _take(path, name, state, remote, disk)
        if taken is not None:
            return taken
    return None


def sweep(folder: Path, age: float = SWEEP_AGE) -> int:
    """Remove our leftovers in `folder` that nobody touched for `age` seconds; how many."""
    removed = 0
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return 0
    for entry in entries:
        try:
            if not is_litter(entry.name) or not entry.is_file(follow_symlinks=False):
                continue
            if time.time() - entry.stat(follow_symlinks=False).st_mtime > age:
                os.unlink(entry.path)
                removed += 1
        except OSError:
            continue
    return removed


def released_only(_path: Path, state: State) -> bool:
    """The careful answer to whether a part's owner is gone: only if it said so."""
    return state.released


def quiet_for(seconds: float) -> Quiet:
    """A part counts as left when its owner said so or neither part nor note changed for that
    long. Clocks of two machines may differ: then a live part changes hands, which costs time."""

    def quiet(path: Path, state: State) -> bool:
        if state.released:
            return True
        newest = 0.0
        for file in (path, path.with_suffix(".state")):
            try:
                newest = max(newest, file.stat().st_mtime)
            except OSError:
                return False
        return time.time() - newest > seconds

    return quiet


def _candidates(folder: Path, name: str, remote: Remote) -> list[tuple[int, Path, State]]:
    """Parts of `name` that fit, the most advanced first."""
    found = []
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    for entry in names:
        match = PART.fullmatch(entry)
        if match is None or match["key"] != key_of(name):
            continue
        path = folder / entry
        state = read_state(folder / beside(name, match["owner"], "state"))
        if state is not None and state.done and state.fits(remote):
            found.append((sum(end - first for first, end in state.done), path, state))
    return sorted(found, key=lambda item: -item[0])


def _take(
    path: Path, name: str, state: State, remote: Remote, disk: Disk
) -> tuple[Part, tuple[tuple[int, int], ...]] | None:
    owner = new_owner()
    mine = path.with_name(beside(name, owner, "part"))
    old_note = path.with_suffix(".state")
    try:
        if path.lstat().st_nlink != 1:  # published: its bytes belong to readers now
            path.unlink()
            old_note.unlink(missing_ok=True)
            return None
        os.rename(path, mine)
        descriptor = os.open(mine, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    part = Part(mine, owner, name, disk, descriptor)
    facts = os.fstat(descriptor)
    if facts.st_nlink != 1 or facts.st_size < state.done[-1][1]:
        part.discard()
        return None
    part.note(remote, state.done)
    old_note.unlink(missing_ok=True)
    return part, state.done
