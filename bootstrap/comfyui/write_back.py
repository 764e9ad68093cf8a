"""What is written into the local copy of ComfyUI's code goes back to the volume.

Custom nodes download models beside themselves, save settings, keep indexes; Python writes its
bytecode. Run from the volume, all of that would lie there, for the next start and for other
workers. So new files appear on the volume complete or not at all, never in place of another; a
changed file replaces the one it was copied from, unless that has changed as well.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial

from bootstrap.comfyui.stage import PRIVATE, Staged
from bootstrap.core.concurrency import WorkerPool
from bootstrap.core.files import Stamp, publish_new, replacing, stays_within
from bootstrap.core.text import named

_log = logging.getLogger(__name__)

# A file changed more recently may still be being written.
_SETTLED_SECONDS = 2.0
# After so many looks a file that is written all the time is left to the next call.
_MOST_LOOKS = 10
_THREADS = 16
_BYTECODE = ".pyc"
# Python writes bytecode under this name first (importlib._bootstrap_external).
_HALF_BYTECODE = re.compile(r"\.pyc\.\d+$")


class WriteBack:
    """Carries changes of some copies back, in a thread that waits for `soon`.

    It measures no time between calls: a worker that was frozen meanwhile finds nothing amiss.
    """

    def __init__(self, copies: Sequence[Staged]) -> None:
        self._copies = [_Copy(staged) for staged in copies]
        self._wanted = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def soon(self) -> None:
        """Look for changes in the background; returns at once."""
        self._wanted.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="write-back", daemon=True)
            self._thread.start()

    def now(self, settled: float = 0.0) -> list[str]:
        """Carry back all that has changed, but for the last `settled` seconds; paths below the
        copies. What cannot be kept is said in the log, once."""
        with self._lock:
            return [path for copy in self._copies for path in copy.carry_back(settled)]

    def _work(self) -> None:
        while True:
            self._wanted.wait()
            self._wanted.clear()
            for _ in range(_MOST_LOOKS):
                self.now(_SETTLED_SECONDS)
                if not any(copy.unsettled for copy in self._copies):
                    break
                time.sleep(_SETTLED_SECONDS)


class _Copy:
    """One copy, and what is on the volume of it as far as we know."""

    def __init__(self, staged: Staged) -> None:
        self._staged = staged
        self._here = dict(staged.stamps)
        self._there = dict(staged.stamps)
        self._told: set[str] = set()
        self.unsettled = False

    def carry_back(self, settled: float) -> list[str]:
        kept: list[str] = []

        def carry(path: str, stamp: Stamp) -> None:
            try:
                if self._carry(path):
                    kept.append(path)
                self._here[path] = stamp
            except OSError as problem:
                self._tell(path, problem.strerror or str(problem))

        WorkerPool(_THREADS).run([partial(carry, *changed) for changed in self._changed(settled)])
        other = sorted(path for path in kept if not path.endswith(_BYTECODE))
        if other:
            _log.info("kept on the volume: %s", named(other))
        return kept

    def _changed(self, settled: float) -> Iterator[tuple[str, Stamp]]:
        place = os.fspath(self._staged.place)
        newest = time.time() - settled
        self.unsettled = False
        for folder, names, files in os.walk(place):
            names[:] = [n for n in names if not os.path.islink(os.path.join(folder, n))]
            for name in files:
                full = os.path.join(folder, name)
                path = os.path.relpath(full, place)
                if (
                    not self._is_ours(path)
                    or name.endswith(PRIVATE)
                    or _HALF_BYTECODE.search(name)
                    or os.path.islink(full)
                ):
                    continue
                try:
                    facts = os.stat(full)
                except OSError:
                    continue
                stamp = Stamp(facts.st_size, facts.st_mtime_ns)
                if self._here.get(path) == stamp:
                    continue
                if facts.st_mtime > newest:
                    self.unsettled = True
                else:
                    yield path, stamp

    def _is_ours(self, path: str) -> bool:
        keep = self._staged.keep
        return keep is None or path.partition("/")[0] in keep

    def _carry(self, path: str) -> bool:
        """Put one file on the volume; False when another file is there."""
        local, target = self._staged.place / path, self._staged.source / path
        if not stays_within(target, self._staged.source):
            self._tell(path, "a link on the volume leads elsewhere there")
            return False
        there = Stamp.of(target)
        if there is None:
            target.parent.mkdir(parents=True, exist_ok=True)
        if path.endswith(_BYTECODE) or (there is not None and there == self._there.get(path)):
            with replacing(target) as part:
                shutil.copy2(local, part)
        elif there is not None or not publish_new(local, target):
            self._tell(path, "another file of that name is there now")
            return False
        self._there[path] = Stamp.of(target) or Stamp(0, 0)
        return True

    def _tell(self, path: str, why: str) -> None:
        if path not in self._told and not path.endswith(_BYTECODE):
            self._told.add(path)
            _log.warning(
                "%s was written by ComfyUI or a node, but not kept on the volume: %s", path, why
            )
