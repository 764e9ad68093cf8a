"""Files that lie on a volume for a time only: their names, the lease among them, and what killed
workers left behind.

All names begin with a dot, so ComfyUI's lists and the link plan leave them out. Those beside a
model fit into 255 bytes whatever it is called: `key` is its name digested, `owner` unique to one
attempt. A process that is killed leaves such files; they are known by strict names, and nothing
else is: `core/files.py` (`.<32 hex>.part`), `volume/links.py` (`.<32 hex>.unlinking`), parts of
models, their notes and leases.

A lease says which of several workers makes a file, so that the others need not. It saves bandwidth
only: every file would be right without it, also where O_EXCL excludes no one. The holder makes it
with O_EXCL and writes a new beat into it now and then. A waiter judges by its own monotonic clock:
a lease that has not changed for `stale` seconds of watching is dead. Clocks of other machines, and
flock, which a network file system may ignore, play no part.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import socket
import stat
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bootstrap.core.files import Disk

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
_WIDTH = 256  # bytes; a beat overwrites the one before it in place
BEAT = 2.0
STALE = 20.0


def key_of(name: str) -> str:
    """16 hex digits for a model's file name."""
    return hashlib.sha256(name.encode()).hexdigest()[:16]


def new_owner() -> str:
    """16 random hex digits for one attempt to make a model."""
    return secrets.token_hex(8)


def beside(name: str, owner: str, what: str) -> str:
    """The name of an attempt's own file: its part, its state, a lease it put aside."""
    return f".model-{key_of(name)}-{owner}.{what}"


def lease_name(name: str, what: str = "lease") -> str:
    """The name of the one file that all who make a model agree on."""
    return f".model-{key_of(name)}.{what}"


def is_litter(name: str) -> bool:
    """Did one of us make this, for a time only?"""
    return bool(_LITTER.fullmatch(name) or _LEASE.fullmatch(name))


@dataclass(frozen=True)
class Leftover:
    """Something of ours at `path`; `kind` is `part`, `unlinking` or `model`.

    `size` in bytes, `age` in seconds by the volume's clock. `identity` (device, inode, size,
    mtime in ns) tells later whether it is still the same. `removable` is False when it may hold
    what others put there.
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
    """Which kind of leftover has such a name; None for every other name."""
    if _RESULT_PART.fullmatch(name):
        return "part"
    if _UNLINKING.fullmatch(name):
        return "unlinking"
    return "model" if is_litter(name) else None


def look_at_leftover(path: str, now: float) -> Leftover | None:
    """The leftover at `path`; None when it is gone or has another name than ours."""
    kind = kind_of(os.path.basename(path))
    try:
        found = os.lstat(path)
        dangling = stat.S_ISLNK(found.st_mode) and not os.path.exists(path)
    except OSError:
        return None
    if kind is None:
        return None
    # volume/links.py puts aside whatever stood where its link was to be, and only its own link,
    # a broken one, holds nothing.
    removable = dangling if kind == "unlinking" else stat.S_ISREG(found.st_mode)
    return Leftover(path, kind, found.st_size, now - found.st_mtime, identity_of(found), removable)


def identity_of(found: os.stat_result) -> tuple[int, int, int, int]:
    """What stays the same while a file is renamed."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


@dataclass(frozen=True)
class Sight:
    """What a waiter saw of a lease. `done` of `total` bytes, where the holder tells."""

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
        self._seen: Sight | None = None
        self._seen_at = 0.0

    def acquire(self) -> bool:
        """Take it if it is free. Where leases cannot be made at all, everyone has one: the
        disk's trouble shows, in better words, when the part is made."""
        try:
            self._descriptor = self._disk.create(self.path)
        except FileExistsError:
            return False
        except OSError:
            return True
        self._write_beat()
        self._thread = threading.Thread(target=self._keep_beating, name="lease", daemon=True)
        self._thread.start()
        return True

    def tell(self, done: int, total: int) -> None:
        """Let the waiters know how far the download is, with the next beat."""
        self._progress = (done, total)

    def release(self) -> None:
        """Let go of it, if it is still ours."""
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

    def look(self) -> Sight | None:
        """The holder's lease as it is now; None when there is none."""
        try:
            text = self.path.read_text("utf-8", "replace")
        except OSError:
            self._seen = None
            return None
        if self._seen is None or text != self._seen.text:
            self._seen, self._seen_at = _read(text), time.monotonic()
        return self._seen

    def break_stale(self) -> bool:
        """Put the holder's lease aside if it was seen unchanged for too long; did we?

        Only one waiter's rename succeeds. Had another worker renewed it at that very moment, a
        live lease would be put aside: then two download, and nothing worse.
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
            pass  # a full disk stops the beat; another worker may take over, nothing breaks


def _read(text: str) -> Sight:
    try:
        data = json.loads(text)
        return Sight(text, int(data["done"]), int(data["total"]))
    except (ValueError, KeyError, TypeError):
        return Sight(text)
