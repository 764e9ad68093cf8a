"""What a node has saved is kept on the volume and encoded for the reply at once, while ComfyUI goes
on with other nodes: little is left to do when the job ends, and a worker that is killed before has
lost nothing of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from handler.keeper import Keeper, NotKept, place_of
from handler.local_files import LocalFiles, Stamp, stamp_of
from handler.outputs import ProducedFile, produced
from handler.result import Content, encoded

Made = TypeVar("Made")


@dataclass(frozen=True)
class Wishes:
    """What is to become of files: `kept` on the volume under names that carry `mark`, and encoded,
    as long as they are not more than `room` bytes together."""

    mark: str
    kept: bool
    room: float


@dataclass
class _Begun:
    """A file that was taken up when it looked like `stamp`."""

    stamp: Stamp
    kept: Future[str] | None
    content: Future[Content] | None
    used: bool = False


class Ahead:
    """The files of one job. What was done with one counts as long as it has not changed since.
    `saved` returns at once; other calls block."""

    def __init__(self, wishes: Wishes, files: LocalFiles, keeper: Keeper, pool: Executor) -> None:
        self._wishes = wishes
        self._files = files
        self._keeper = keeper
        self._pool = pool
        self._room = wishes.room
        self._begun: dict[Path, _Begun] = {}
        self._looks: list[Future[None]] = []

    def saved(self, outputs: Mapping[str, Any]) -> None:
        """Nodes report these outputs, in the form of the history's."""
        if self._wishes.kept or self._wishes.room:
            self._looks.append(self._pool.submit(self._begin, outputs))

    def kept_at(self, local: Path) -> str | None:
        """Where on the volume the file is kept, as it is now; None where it is not."""
        begun = self._current(local)
        if begun is None:
            return None
        path = _result(begun.kept)
        begun.used = path is not None
        return path

    def encoded(self, local: Path) -> Content | None:
        """The file in base64, as it is now; None where that was not made."""
        begun = self._current(local)
        return None if begun is None else _result(begun.content)

    def end(self) -> None:
        """Take back, in the background, what was kept of files that were changed or removed
        since."""
        for begun in self._begun.values():
            if not begun.used and begun.kept is not None:
                self._pool.submit(self._take_back, begun.kept)

    def _take_back(self, kept: Future[str]) -> None:
        path = _result(kept)
        if path is not None:
            self._keeper.take_back(path)

    def _begin(self, outputs: Mapping[str, Any]) -> None:
        for local in self._local(outputs):
            stamp = stamp_of(local)
            if stamp is None or local in self._begun:
                continue
            kept = content = None
            if self._wishes.kept:
                place = place_of(local, self._files.output, self._wishes.mark)
                kept = self._pool.submit(self._keeper.keep, local, *place)
            if stamp[0] <= self._room:
                self._room -= stamp[0]
                content = self._pool.submit(encoded, local)
            self._begun[local] = _Begun(stamp, kept, content)

    def _local(self, outputs: Mapping[str, Any]) -> Iterator[Path]:
        """Files that were surely saved as results, in the folder for them."""
        for item in produced(outputs)[0]:
            if isinstance(item, ProducedFile) and not item.guessed:
                local = self._files.find(item)
                if local is not None and local.is_relative_to(self._files.output):
                    yield local

    def _current(self, local: Path) -> _Begun | None:
        wait(self._looks)
        begun = self._begun.get(local)
        return begun if begun is not None and stamp_of(local) == begun.stamp else None


def _result(made: Future[Made] | None) -> Made | None:
    """None for what was not made, or failed: it is tried again when the job ends."""
    try:
        return None if made is None else made.result()
    except (NotKept, OSError):
        return None
