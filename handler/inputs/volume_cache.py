"""Files of the volume's `ComfyUI/input/` that jobs name -> copies in ComfyUI's own input folder.

ComfyUI's input folder is local, and from version 0.28 on it refuses links that lead out of it.
Copies stay for the next job that names them, within bounds: local disk is small.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import threading
import time
import unicodedata
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from handler.common.calls import VolumeWatchdog
from handler.common.deadline import Deadline
from handler.common.errors import JobError
from handler.request.workflow import Workflow

ROOM_FIX = "Give the endpoint a larger container disk, or set WORK_DIR to a larger one."
_FILE_NAME = re.compile(r"(?P<path>[^\0\n]{1,255}\.[A-Za-z0-9]{2,5})(?: \[input\])?")
# Of copies that no job uses: seconds since one did, and bytes of all together.
_UNUSED_SECONDS = 3600.0
_UNUSED_BYTES = 1_000_000_000
Stamp = tuple[int, int]


@dataclass
class _Copy:
    """`stamp` as it was made, None before; `users` are the jobs that have it, `used_at` is when the
    last of them left."""

    stamp: Stamp | None = None
    users: set[str] = field(default_factory=set)
    used_at: float = 0.0
    being_made: threading.Lock = field(default_factory=threading.Lock)


class VolumeInputs:
    """The copies of one worker."""

    def __init__(
        self,
        volume_input: Path,
        folder: Path,
        volume: VolumeWatchdog,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Copies go from `volume_input`, which need not be there, to `folder`."""
        self._volume_input = volume_input
        self._volume = volume
        self._folder = folder
        self._clock = clock
        self._copies: dict[Path, _Copy] = {}
        self._lock = threading.Lock()

    async def bring(self, workflow: Workflow, user: str, deadline: Deadline) -> None:
        """Have a copy of every file of the volume that `workflow` names, until `release(user)`.

        A file that is not there is left for others to complain about. Raises JobError when there
        is no room for a copy, or the volume does not answer, and TimeUp.
        """
        named = list(named_files(workflow))
        if named:
            await self._volume.call_or_fail(
                lambda: self._bring_all(named, user), deadline.remaining
            )

    def _bring_all(self, named: list[str], user: str) -> None:
        root = Path(os.path.realpath(self._volume_input))
        for wanted in named:
            # One call for names of anything else: each costs a round trip to the volume.
            if wanted.startswith(("/", "../")) or not os.path.isfile(root / wanted):
                continue
            source = Path(os.path.realpath(root / wanted))
            if source.is_relative_to(root):
                self._bring(source, self._folder / wanted, user)

    def release(self, user: str) -> None:
        """The job is over; copies beyond the bounds go. Blocks, on local disk."""
        with self._lock:
            for copy in self._copies.values():
                if user in copy.users:
                    copy.users.remove(user)
                    copy.used_at = self._clock()
            for path in self._too_many():
                if _stamp(path) == self._copies.pop(path).stamp:  # else a node's by now
                    path.unlink(missing_ok=True)

    def _bring(self, source: Path, target: Path, user: str) -> None:
        with self._lock:
            copy = self._copies.setdefault(target, _Copy())
            copy.users.add(user)
        with copy.being_made:  # by one job at a time, so that no other takes a half one for whole
            stamp = _stamp(source)
            if stamp is not None and _stamp(target) != stamp:
                _copy(source, target)
            copy.stamp = stamp

    def _too_many(self) -> list[Path]:
        """The unused copies that are too old, or too much together, the longest unused first."""
        unused = [
            (copy.used_at, path, copy.stamp[0])
            for path, copy in self._copies.items()
            if copy.stamp is not None and not copy.users
        ]
        total, going = 0, []
        for used_at, path, size in sorted(unused, reverse=True):
            total += size
            if total > _UNUSED_BYTES or self._clock() - used_at > _UNUSED_SECONDS:
                going.append(path)
        return going


def named_files(workflow: Workflow) -> Iterator[str]:
    """Every value that may be the name of an input file, as a path."""
    for node in workflow.values():
        for value in node["inputs"].values():
            match = _FILE_NAME.fullmatch(value) if isinstance(value, str) else None
            if match is not None and _is_text(value):
                yield os.path.normpath(match["path"])


def _copy(source: Path, target: Path) -> None:
    """In one step: a job that has opened the former copy reads on in it."""
    part = target.with_name(f".{uuid.uuid4().hex}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, part)
        os.replace(part, target)
    except OSError as problem:
        with contextlib.suppress(OSError):
            part.unlink()
        raise JobError(
            "image.not_stored",
            f"{source} could not be copied to {target.parent}: {problem.strerror}.",
            ROOM_FIX,
        ) from None


def _stamp(path: Path) -> Stamp | None:
    """Size and time of change, which a copy has from its source; None without the file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _is_text(value: str) -> bool:
    """No lone surrogates, which no file name on this system can hold."""
    return not any(unicodedata.category(c) == "Cs" for c in value)
