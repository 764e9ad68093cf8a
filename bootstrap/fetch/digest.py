"""SHA-256 of a file while it is being fetched: follows the frontier, reading from page cache."""

from __future__ import annotations

import hashlib
import threading

from bootstrap.core.files import Disk
from bootstrap.fetch.blocks import Blocks

_BLOCK = 1024 * 1024


class Follower:
    """Hashes what is written through `descriptor`, in order, in a thread of its own."""

    def __init__(self, descriptor: int, blocks: Blocks, disk: Disk) -> None:
        self._descriptor = descriptor
        self._blocks = blocks
        self._disk = disk
        self._digest = hashlib.sha256()
        self._stop = threading.Event()
        self._problem: OSError | None = None
        self._position = 0
        self._thread = threading.Thread(target=self._follow, name="model-hash", daemon=True)
        self._thread.start()

    def result(self) -> str:
        """The hash of the whole file; waits for it. Raises OSError when reading failed."""
        self._thread.join()
        if self._problem is not None:
            raise self._problem
        return self._digest.hexdigest()

    def stop(self) -> None:
        """Give up, and let go of the descriptor."""
        self._stop.set()
        self._thread.join()

    def _follow(self) -> None:
        buffer = memoryview(bytearray(_BLOCK))
        try:
            while self._position < self._blocks.size and not self._stop.is_set():
                frontier = self._blocks.wait_beyond(self._position, 0.2)
                while self._position < frontier and not self._stop.is_set():
                    self._hash_up_to(frontier, buffer)
        except OSError as problem:
            self._problem = problem

    def _hash_up_to(self, frontier: int, buffer: memoryview) -> None:
        view = buffer[: min(_BLOCK, frontier - self._position)]
        count = self._disk.read_at(self._descriptor, [view], self._position)
        if count == 0:
            raise OSError(5, "the part became shorter while it was read")
        self._digest.update(view[:count])
        self._position += count
