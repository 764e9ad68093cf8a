"""One model: located, fetched into a part, checked, published. A file with its final name is
checked.

locate -> resume or begin a part -> ranges (or one stream) -> size, hash, header -> publish
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bootstrap.core.files import publish
from bootstrap.core.text import size_text
from bootstrap.models.download.part import IsAbandoned, Part, released_only, take_over
from bootstrap.models.download.remote import (
    DownloadOptions,
    Locate,
    Remote,
    StallDetector,
    refuse_text,
)
from bootstrap.models.download.transfer import Blocks, RangeFetch
from bootstrap.models.download.verify import (
    StreamingHasher,
    Wanted,
    check_content,
    check_hash,
    check_size,
)
from bootstrap.models.weights_file import SAFETENSORS
from bootstrap.net import (
    DownloadError,
    RemoteChanged,
    Stopped,
    WrongBytes,
    disk_error,
    keeps_changing,
    unreachable,
)
from bootstrap.net.addresses import shown
from bootstrap.net.http import Reply

_AT_ONCE = 256 * 1024
_BEGINNINGS = 3  # times a file may change before we give up


def fetch_stream(
    remote: Remote,
    part: Part,
    options: DownloadOptions,
    provable: bool,
    stop: threading.Event,
    on_bytes: Callable[[int], None],
) -> tuple[int, str]:
    """Fetch into the empty `part`; returns (size, SHA-256). `provable`: a hash, a size or a header
    will show whether the file is complete, which is needed if the server does not give its length.
    Raises DownloadError, RemoteChanged, Stopped.
    """
    channel = options.channel()
    try:
        reply = channel.get(remote.url, remote.credential)
        _check_whole(reply, remote, provable)
        return _receive(reply, part, options, stop, on_bytes)
    finally:
        channel.close()


def _receive(
    reply: Reply,
    part: Part,
    options: DownloadOptions,
    stop: threading.Event,
    on_bytes: Callable[[int], None],
) -> tuple[int, str]:
    digest = hashlib.sha256()
    stall = StallDetector(reply.host, options.stall, options.slowest)
    position = 0
    while data := reply.read_some(_AT_ONCE):
        if stop.is_set():
            raise Stopped
        count = len(data)
        part.write_at(data, position)
        digest.update(data)
        position += count
        on_bytes(count)
        stall.count(count)
        options.rate_limiter.pass_through(count, stop)
    if reply.length is not None and position != reply.length:
        raise unreachable(reply.host, f"it was closed after {position:,} of {reply.length:,} bytes")
    return position, digest.hexdigest()


def _check_whole(reply: Reply, remote: Remote, provable: bool) -> None:
    if reply.status != 200:
        raise remote.explain(reply)
    refuse_text(reply, remote)
    if remote.size is not None and reply.length is not None and reply.length != remote.size:
        raise RemoteChanged
    if reply.length is None and not reply.chunked and not provable:
        raise DownloadError(
            "download.length_unknown",
            f"{shown(reply.url)} does not give the file's length, so a complete file "
            "cannot be told from a truncated one.",
            "Give `size` or `hash` in the manifest, or use another link.",
        )


class Meter(Protocol):
    """Receives the progress."""

    def begin(self, done: int, total: int | None) -> None:
        """A part with `done` bytes of `total` is being fetched; may be called again, from less."""
        ...

    def add(self, count: int) -> None:
        """`count` more bytes have arrived. Called from several threads."""
        ...


@dataclass(frozen=True)
class Fetched:
    """A checked file that was published, or, if not `published`, was there already from a faster
    worker."""

    size: int
    sha256: str
    checked: tuple[str, ...]
    published: bool
    resumed_bytes: int = 0


class Download:
    """Downloads one file to `final`. Call `run` once. `locate` asks the source where the file is,
    at first and when a signed URL has expired; `is_abandoned` says whether the owner of a leftover
    part is gone.
    """

    def __init__(
        self,
        locate: Locate,
        final: Path,
        wanted: Wanted,
        options: DownloadOptions,
        meter: Meter,
        is_abandoned: IsAbandoned = released_only,
    ) -> None:
        self._locate = locate
        self._final = final
        self._wanted = wanted
        self._options = options
        self._meter = meter
        self._is_abandoned = is_abandoned
        self._no_ranges = False

    def run(self, stop: threading.Event) -> Fetched:
        """Fetch, check and publish. Raises DownloadError, OwnershipLost if another worker took the
        part over, Stopped on `stop`. Only a complete, checked file gets the final name; what can be
        resumed stays as a part beside it."""
        try:
            self._final.parent.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise disk_error(problem, self._final.parent, None) from None
        failures = beginnings = 0
        while True:
            try:
                return self._attempt(stop)
            except RemoteChanged:
                beginnings += 1
                if beginnings == _BEGINNINGS:
                    raise keeps_changing() from None
                self._no_ranges = beginnings == _BEGINNINGS - 1
            except _StreamBroke as broke:
                failures += 1
                if failures > self._options.attempts:
                    raise broke.problem from None
                stop.wait(self._options.pause(failures, broke.problem.retry_after))
            if stop.is_set():
                raise Stopped

    def _attempt(self, stop: threading.Event) -> Fetched:
        remote = self._options.ask(self._locate, stop)
        if remote.size is not None and self._wanted.size is not None:
            check_size(remote.size, self._wanted.size)
        check_hash_beforehand(remote, self._wanted)
        if self._no_ranges or not remote.ranges:
            return self._by_stream(remote, stop)
        return self._by_ranges(remote, stop)

    def _by_ranges(self, remote: Remote, stop: threading.Event) -> Fetched:
        disk, name = self._options.disk, self._final.name
        assert remote.size is not None
        taken = take_over(self._final.parent, name, remote, disk, self._is_abandoned)
        part, done = taken or (Part.create(self._final.parent, name, disk), ())
        # Without a validator, parts of two versions cannot be told apart: one connection only.
        parallel = self._options.connections if remote.stable or remote.modified else 1
        blocks = Blocks(remote.size, done, parallel)
        resumed = remote.size - blocks.missing
        try:
            self._make_room(part, blocks.missing)
            self._meter.begin(resumed, remote.size)
            sha256 = self._fetch_and_hash(remote, part, blocks, stop)
            return self._check_and_publish(part, remote, remote.size, sha256, resumed)
        except DownloadError as problem:
            if isinstance(problem, WrongBytes) and resumed:
                part.discard()
                raise RemoteChanged from None  # the resumed bytes may be bad: once more from 0
            self._leave(part, remote, blocks, problem)
            raise
        except Stopped:
            self._leave(part, remote, blocks, None)
            raise
        except RemoteChanged:
            part.discard()
            raise
        finally:
            part.close()

    def _fetch_and_hash(
        self, remote: Remote, part: Part, blocks: Blocks, stop: threading.Event
    ) -> str:
        def count(received: int) -> None:
            part.needed = blocks.missing
            self._meter.add(received)

        follower = StreamingHasher(part.descriptor, blocks, self._options.disk)
        try:
            RangeFetch(remote, self._locate, part, blocks, self._options, count).run(stop)
            return follower.result()
        except OSError as problem:
            raise disk_error(problem, part.path.parent, None) from None
        finally:
            follower.stop()

    def _by_stream(self, remote: Remote, stop: threading.Event) -> Fetched:
        wanted = self._wanted
        by_content = wanted.extension in SAFETENSORS or not wanted.weights
        provable = bool(wanted.sha256 or wanted.size or by_content)
        part = Part.create(self._final.parent, self._final.name, self._options.disk)
        try:
            self._make_room(part, remote.size or wanted.size or 0)
            self._meter.begin(0, remote.size or wanted.size)
            size, sha256 = fetch_stream(
                remote, part, self._options, provable, stop, self._meter.add
            )
            return self._check_and_publish(part, remote, size, sha256, 0)
        except DownloadError as problem:
            if problem.transient:
                raise _StreamBroke(problem) from None
            raise
        finally:
            part.discard()

    def _make_room(self, part: Part, missing: int) -> None:
        part.needed = missing
        try:
            free = self._options.disk.free_bytes(self._final.parent)
        except OSError:
            return
        if missing > free:
            raise DownloadError(
                "download.no_space",
                f"{size_text(missing)} are to be fetched and {self._final.parent} has only "
                f"{size_text(free)} left.",
                "Delete files there or enlarge the network volume, then start again.",
            )

    def _check_and_publish(
        self, part: Part, remote: Remote, size: int, sha256: str, resumed: int
    ) -> Fetched:
        expected = self._wanted.sha256 or remote.sha256
        try:
            checked = check_content(part.path, self._wanted)
            check_hash(sha256, expected)
            checked = (*checked, "sha256") if expected is not None else checked
            part.finish()
            published = publish(part.path, self._final, self._options.disk)
            part.discard()
        except FileNotFoundError:
            part.check_ownership()  # raises OwnershipLost: another worker renamed the part
            raise DownloadError("download.disk", f"{part.path} vanished.", "Try again.") from None
        except OSError as problem:
            raise disk_error(problem, part.path.parent, None) from None
        return Fetched(size, sha256, checked, published, resumed)

    def _leave(
        self, part: Part, remote: Remote, blocks: Blocks, problem: DownloadError | None
    ) -> None:
        """Keep a part that the next attempt can use; remove a complete, wrong or useless one."""
        useful = problem is None or problem.transient or problem.status in (401, 403)
        if not useful or not remote.stable or blocks.missing == blocks.size:
            part.discard()
            return
        try:
            part.save_state(remote, blocks.done_ranges(), released=True)
        except DownloadError:
            part.discard()


class _StreamBroke(Exception):
    """A stream ended early; it cannot be resumed."""

    def __init__(self, problem: DownloadError) -> None:
        super().__init__(problem.code)
        self.problem = problem


def check_hash_beforehand(remote: Remote, wanted: Wanted) -> None:
    """Raise DownloadError if the source itself has another hash than the manifest."""
    if remote.sha256 is not None:
        check_hash(remote.sha256, wanted.sha256)
