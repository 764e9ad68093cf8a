"""A partial model: its bytes, and a state file beside it with the valid ranges.

Two workers may believe that a part is theirs, if one was frozen for a while or locks do not work.
So a part is never truncated or restarted (that takes a new part), it changes owners by a rename,
which only one can win, and its owner checks before each write that it still has it. A part with a
second name is published and never written again.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bootstrap.core.files import Disk, key_of, read_regular, write_whole
from bootstrap.core.temp_files import PART, beside, is_litter, new_owner
from bootstrap.models.download.remote import Remote
from bootstrap.net import OwnershipLost, disk_error

VERSION = 1
_MOST_STATE = 8 << 20
_LOOK_EVERY = 1.0  # seconds between two checks that the part is still ours
Ranges = Sequence[tuple[int, int]]
#: Seconds after which a leftover is removed; a part in use is never that old.
SWEEP_AGE = 24 * 3600.0


@dataclass(frozen=True)
class PartState:
    """The state file's contents. `released` is set by an owner that stopped cleanly."""

    identity: str
    size: int | None
    etag: str | None
    sha256: str | None
    done: tuple[tuple[int, int], ...] = ()
    released: bool = False

    def fits(self, remote: Remote) -> bool:
        """Are these bytes of the current file of `remote`? Only a hash or a strong ETag shows
        that."""
        if self.size is None or self.size != remote.size:
            return False
        if self.sha256 is not None and remote.sha256 is not None:
            return self.sha256 == remote.sha256
        return self.etag is not None and (self.identity, self.etag) == (
            remote.identity,
            remote.etag,
        )


class Part:
    """Our open part. `needed` bytes are missing, for the message about a full disk."""

    def __init__(self, path: Path, owner: str, name: str, disk: Disk, descriptor: int) -> None:
        self.path = path
        self.needed: int | None = None
        self._state_path = path.with_name(beside(name, owner, "state"))
        self._scratch = path.with_name(beside(name, owner, "state-new"))
        self._disk = disk
        self._descriptor = descriptor
        facts = os.fstat(descriptor)
        self._inode = (facts.st_dev, facts.st_ino)
        self._looked = time.monotonic()
        self._lock = threading.Lock()
        self._closed = False

    @classmethod
    def create(cls, folder: Path, name: str, disk: Disk) -> Part:
        """A new, empty part for the model `name` in `folder`. Raises DownloadError."""
        owner = new_owner()
        path = folder / beside(name, owner, "part")
        try:
            return cls(path, owner, name, disk, disk.create(path))
        except OSError as problem:
            raise disk_error(problem, folder, None) from None

    @property
    def descriptor(self) -> int:
        """For reading back."""
        return self._descriptor

    def write_at(self, data: memoryview, position: int) -> None:
        """Write `data` at `position`. Raises DownloadError, or OwnershipLost."""
        if time.monotonic() - self._looked > _LOOK_EVERY:
            self.check_ownership()
        try:
            self._disk.write_at(self._descriptor, data, position)
        except OSError as problem:
            raise disk_error(problem, self.path.parent, self.needed) from None

    def check_ownership(self) -> None:
        """Raise OwnershipLost unless the part's name still refers to our file."""
        try:
            facts = os.stat(self.path, follow_symlinks=False)
        except OSError:
            raise OwnershipLost from None
        if (facts.st_dev, facts.st_ino) != self._inode:
            raise OwnershipLost
        self._looked = time.monotonic()

    def save_state(self, remote: Remote, done: Ranges, released: bool = False) -> None:
        """Make the ranges `done` durable, then record them. Raises DownloadError."""
        with self._lock:
            if self._closed:
                return
            state = {
                "version": VERSION,
                "identity": remote.identity,
                "size": remote.size,
                "etag": remote.etag,
                "sha256": remote.sha256,
                "done": [list(pair) for pair in done],
                "released": released,
            }
            try:
                self._disk.flush(self._descriptor)
                write_whole(self._state_path, json.dumps(state), self._scratch)
            except OSError as problem:
                raise disk_error(problem, self.path.parent, self.needed) from None

    def finish(self) -> None:
        """Flush and close; an exceeded quota may show only here. Raises DownloadError."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            try:
                try:
                    self._disk.flush(self._descriptor)
                finally:
                    self._disk.close(self._descriptor)
            except OSError as problem:
                raise disk_error(problem, self.path.parent, self.needed) from None

    def close(self) -> None:
        """Close, ignoring errors; the file stays for whichever worker resumes it."""
        with self._lock:
            if not self._closed:
                self._closed = True
                try:
                    os.close(self._descriptor)
                except OSError:
                    pass

    def remove_state(self) -> None:
        """Remove the state file: the part is published or useless."""
        self._state_path.unlink(missing_ok=True)
        self._scratch.unlink(missing_ok=True)

    def discard(self) -> None:
        """Close and remove our part; does not raise if it is already gone."""
        self.close()
        for remove in (self.remove_state, lambda: self.path.unlink(missing_ok=True)):
            try:
                remove()
            except OSError:
                pass


def read_state(path: Path) -> PartState | None:
    """The state at `path`; None if it is missing or damaged."""
    try:
        data = json.loads(read_regular(path, _MOST_STATE))
        if data["version"] != VERSION:
            return None
        return PartState(
            str(data["identity"]),
            _whole_or_none(data["size"]),
            _text_or_none(data["etag"]),
            _text_or_none(data["sha256"]),
            _checked_ranges(data["done"], data["size"]),
            data["released"] is True,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _checked_ranges(pairs: Any, size: Any) -> tuple[tuple[int, int], ...]:
    """The ranges, if they are integers, in order, disjoint, and within the file."""
    position, checked = 0, []
    for first, end in pairs:
        if type(first) is not int or type(end) is not int or not position <= first < end <= size:
            raise ValueError("ranges out of order")
        checked.append((first, end))
        position = end
    return tuple(checked)


def _whole_or_none(value: Any) -> int | None:
    if value is not None and type(value) is not int:
        raise ValueError("no whole number")
    return value


def _text_or_none(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ValueError("no text")
    return value


#: Is the owner of this part gone?
IsAbandoned = Callable[[Path, PartState], bool]


def take_over(
    folder: Path, name: str, remote: Remote, disk: Disk, is_abandoned: IsAbandoned
) -> tuple[Part, tuple[tuple[int, int], ...]] | None:
    """Take over the most complete abandoned part of `name` that fits `remote`, with its valid
    ranges; None if there is none. The new state is written first, then the part renamed: if we are
    killed in between, the part still has its old name.
    """
    for _, path, state in _candidates(folder, name, remote):
        if not is_abandoned(path, state):
            continue
        taken = _take(path, name, state, remote, disk)
        if taken is not None:
            return taken
    return None


def sweep(folder: Path) -> int:
    """Remove leftovers in `folder` that have not changed for a day; returns their number."""
    removed = 0
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return 0
    for entry in entries:
        try:
            if not is_litter(entry.name) or not entry.is_file(follow_symlinks=False):
                continue
            if time.time() - entry.stat(follow_symlinks=False).st_mtime > SWEEP_AGE:
                os.unlink(entry.path)
                removed += 1
        except OSError:
            continue
    return removed


def released_only(_path: Path, state: PartState) -> bool:
    """The careful check whether a part's owner is gone: only if it said so."""
    return state.released


def unchanged_for(seconds: float) -> IsAbandoned:
    """A part counts as abandoned if its owner said so or neither part nor state changed for that
    long. If two machines' clocks differ, a live part may change owners, which only costs time."""

    def is_abandoned(path: Path, state: PartState) -> bool:
        if state.released:
            return True
        newest = 0.0
        for file in (path, path.with_suffix(".state")):
            try:
                newest = max(newest, file.stat().st_mtime)
            except OSError:
                return False
        return time.time() - newest > seconds

    return is_abandoned


def _candidates(folder: Path, name: str, remote: Remote) -> list[tuple[int, Path, PartState]]:
    """Parts of `name` that fit, the most complete first."""
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
    path: Path, name: str, state: PartState, remote: Remote, disk: Disk
) -> tuple[Part, tuple[tuple[int, int], ...]] | None:
    owner = new_owner()
    mine = path.with_name(beside(name, owner, "part"))
    old_note = path.with_suffix(".state")
    try:
        if path.lstat().st_nlink != 1:  # published: others read it now
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
    part.save_state(remote, state.done)
    old_note.unlink(missing_ok=True)
    return part, state.done
