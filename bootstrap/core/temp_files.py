"""Temporary files on a volume, leases among them: their names, and what killed workers left behind.

All names begin with a dot, so ComfyUI's lists and the link plan ignore them. Those beside a model
fit into 255 bytes whatever its name: `key` is a hash of its name, `owner` unique to one attempt. A
killed process leaves such files; they are recognised by strict names only: `core/files.py` (`.<32
hex>.part`), `volume/links.py` (`.<32 hex>.unlinking`), parts of models, their state files and
leases.

A lease says which of several workers downloads a file, so that the others need not. It only saves
bandwidth: every file would be correct without it, even if O_EXCL does not exclude others. The
holder creates it with O_EXCL and writes a new heartbeat into it now and then. A waiter uses its own
monotonic clock: a lease that it has seen unchanged for `stale` seconds is dead. Other machines'
clocks, and flock, which a network file system may ignore, are not used.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bootstrap.core.files import Disk, key_of, lease_name, open_regular

RECEIPTS_FOLDER = ".receipts"
LONGEST_NAME = 240  # bytes; leaves room for `.json` in the receipts
_KEY, _OWNER = r"(?P<key>[0-9a-f]{16})", r"(?P<owner>[0-9a-f]{16})"
PART = re.compile(rf"\.model-{_KEY}-{_OWNER}\.part")
_LITTER = re.compile(rf"\.model-{_KEY}-{_OWNER}\.(part|state|state-new|lease-old|receipt-new)")
_LEASE = re.compile(rf"\.model-{_KEY}\.(lease|publishing)")
_RESULT_PART = re.compile(r"\.[0-9a-f]{32}\.part")
_UNLINKING = re.compile(r"\.[0-9a-f]{32}\.unlinking")
HOUR = 3600.0
# Results are copied within minutes. A model's part can be resumed, so it is kept as long as
# provisioning keeps it (models/download/part.py).
_OLD = {"part": HOUR, "unlinking": HOUR, "model": 24 * HOUR}
MOST_LEFTOVERS = 200
_WIDTH = 256  # bytes; a heartbeat overwrites the previous one in place
BEAT = 2.0
STALE = 20.0


def new_owner() -> str:
    """16 random hex digits for one attempt to download a model."""
    return secrets.token_hex(8)


def beside(name: str, owner: str, what: str) -> str:
    """The name of an attempt's own file: its part, its state, a lease that it moved aside."""
    return f".model-{key_of(name)}-{owner}.{what}"


def is_litter(name: str) -> bool:
    """Is this one of our temporary files?"""
    return bool(_LITTER.fullmatch(name) or _LEASE.fullmatch(name))


@dataclass(frozen=True)
class Leftover:
    """A temporary file at `path`; `kind` is `part`, `unlinking` or `model`.

    `size` in bytes, `age` in seconds by the volume's clock. `identity` (device, inode, size, mtime
    in ns) shows later whether it is still the same file. `removable` is False if it may contain
    something of others.
    """

    path: str
    kind: str
    size: int
    age: float
    identity: tuple[int, int, int, int]
    removable: bool

    @property
    def stale(self) -> bool:
        """Too old to be in use."""
        return self.age > _OLD[self.kind]


def kind_of(name: str) -> str | None:
    """The kind of leftover with such a name; None for any other name."""
    if _RESULT_PART.fullmatch(name):
        return "part"
    if _UNLINKING.fullmatch(name):
        return "unlinking"
    return "model" if is_litter(name) else None


def look_at_leftover(path: str, now: float) -> Leftover | None:
    """The leftover at `path`; None if it is gone or not ours by its name."""
    kind = kind_of(os.path.basename(path))
    try:
        found = os.lstat(path)
        dangling = stat.S_ISLNK(found.st_mode) and not os.path.exists(path)
    except OSError:
        return None
    if kind is None:
        return None
    # volume/links.py moves aside whatever was in a link's place; only its own broken link is worth
    # nothing.
    removable = dangling if kind == "unlinking" else stat.S_ISREG(found.st_mode)
    return Leftover(path, kind, found.st_size, now - found.st_mtime, identity_of(found), removable)


def identity_of(found: os.stat_result) -> tuple[int, int, int, int]:
    """What stays the same while a file is renamed."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


@dataclass(frozen=True)
class LeaseState:
    """A lease as a waiter saw it; `done` of `total` bytes, if the holder wrote them."""

    text: str
    done: int = 0
    total: int = 0


class Lease:
    """The right to fetch the model `name` in `folder`. Times in seconds."""

    def __init__(
        self, folder: Path, name: str, disk: Disk, beat: float = BEAT, stale: float = STALE
    ) -> None:
        self.path = folder / lease_name(name)
        self.owner = new_owner()
        self.stale = stale
        self.taken_over = False
        self._aside = folder / beside(name, self.owner, "lease-old")
        self._disk = disk
        self._beat = beat
        self._descriptor: int | None = None
        self._beats = 0
        self._progress = (0, 0)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._seen: LeaseState | None = None
        self._seen_at = 0.0

    def acquire(self) -> bool:
        """Take it if it is free. If leases cannot be created at all, everyone gets one: creating
        the part will report the disk's problem better."""
        try:
            self._descriptor = self._disk.create(self.path)
        except FileExistsError:
            self.taken_over = False  # whoever has it now was faster
            return False
        except OSError:
            return True
        self._write_beat()
        self._thread = threading.Thread(target=self._keep_beating, name="lease", daemon=True)
        self._thread.start()
        return True

    def wait(
        self,
        seconds: float,
        every: float,
        stop: threading.Event | None = None,
        watch: Callable[[LeaseState], None] | None = None,
    ) -> bool:
        """Take it, waiting for its holder to release it or to be silent for too long; False after
        `seconds`, or on `stop`. `watch` gets the lease's state at each look.
        """
        end, stop = time.monotonic() + seconds, stop or threading.Event()
        while not self.acquire():
            state = self.look()
            if state is not None and self.break_stale():
                continue
            if state is not None and watch is not None:
                watch(state)
            if time.monotonic() >= end or stop.wait(every):
                return False
        return True

    def tell(self, done: int, total: int) -> None:
        """Tell the waiters the download's progress with the next heartbeat."""
        self._progress = (done, total)

    def release(self) -> None:
        """Release it, if it is still ours."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if self._descriptor is None:
            return
        try:
            if os.path.samestat(os.fstat(self._descriptor), os.stat(self.path)):
                os.unlink(self.path)
        except OSError:
            pass
        finally:
            os.close(self._descriptor)
            self._descriptor = None

    def look(self) -> LeaseState | None:
        """The current lease; None if there is none. One that cannot be read is silent."""
        try:
            with open_regular(self.path) as file:
                text = file.read(_WIDTH).decode("utf-8", "replace")
        except FileNotFoundError:
            self._seen = None
            return None
        except OSError:
            text = ""
        if self._seen is None or text != self._seen.text:
            self._seen, self._seen_at = _read(text), time.monotonic()
        return self._seen

    def break_stale(self) -> bool:
        """Move a lease aside that was seen unchanged for too long; True if we did. Only one
        waiter's rename succeeds. If its holder renewed it at that very moment, two workers
        download, nothing worse.
        """
        if self._seen is None or time.monotonic() - self._seen_at < self.stale:
            return False
        try:
            os.rename(self.path, self._aside)
            os.unlink(self._aside)
        except OSError:
            return False
        self.taken_over = True
        self._seen = None
        return True

    def _keep_beating(self) -> None:
        while not self._stop.wait(self._beat):
            self._write_beat()

    def _write_beat(self) -> None:
        self._beats += 1
        done, total = self._progress
        beat = {
            "owner": self.owner,
            "host": socket.gethostname()[:64],
            "beat": self._beats,
            "done": done,
            "total": total,
        }
        text = json.dumps(beat).ljust(_WIDTH)[:_WIDTH]
        try:
            if self._descriptor is not None:
                self._disk.write_at(self._descriptor, memoryview(text.encode("ascii")), 0)
        except OSError:
            pass  # a full disk stops the heartbeat; another worker may take over, nothing breaks


def _read(text: str) -> LeaseState:
    try:
        data = json.loads(text)
        return LeaseState(text, int(data["done"]), int(data["total"]))
    except (ValueError, KeyError, TypeError):
        return LeaseState(text)
