"""Which of several workers fetches a model, so that the others need not. Saves bandwidth only:
every file would be right without it, also where O_EXCL excludes no one.

The holder makes a file with O_EXCL and writes a new beat into it now and then. A waiter judges by
its own monotonic clock: a lease that has not changed for `stale` seconds of watching is dead.
Clocks of other machines, and flock, which a network file system may ignore, play no part.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from bootstrap.core.files import Disk
from bootstrap.core.temp_names import beside, lease_name, new_owner

_WIDTH = 256  # bytes; a beat overwrites the one before it in place
BEAT = 2.0
STALE = 20.0


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
