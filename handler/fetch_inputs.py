"""URLs of a request -> files: several at once, capped in size and time, to public addresses only.

Uses the guarded connection of the model downloads: a name is resolved once and the connection goes
to the address that was checked, at every redirect anew; queries of URLs, where signatures are, show
in no message.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from bootstrap.config import Settings
from bootstrap.net.addresses import AddressPolicy, shown
from bootstrap.net.errors import DownloadError, bad_answer
from bootstrap.net.http import Channel, Reply
from handler.deadline import Deadline
from handler.errors import JobError

_AT_ONCE = 4
_ATTEMPTS = 2
_SILENCE_SECONDS = 20.0
_BLOCK = 1024 * 1024
_FIX_URL = (
    "Send a public https address that answers with the file itself, without a login; or send the "
    'file as "data".'
)


class Abandoned(Exception):
    """Nobody waits for the file any more."""


@dataclass(frozen=True)
class Wanted:
    """A file to fetch: from where, to where."""

    url: str
    path: Path


class Fetcher:
    """Fetches for one job; `stop` may come from another thread and ends it soon."""

    def __init__(self, settings: Settings, deadline: Deadline) -> None:
        self._max_mb = settings.max_input_mb
        self._limit = Deadline(min(settings.input_timeout, deadline.remaining))
        self._policy = AddressPolicy(allow_private=settings.allow_private_urls)
        self._stopped = threading.Event()
        self._channels: set[Channel] = set()

    def fetch(self, wanted: Sequence[Wanted]) -> None:
        """Write every file. Raises JobError for the first that fails, and ends the others."""
        if not wanted:
            return
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="input") as pool:
            running = [pool.submit(self._fetch_one, one) for one in wanted]
            wait(running, return_when=FIRST_EXCEPTION)
            if any(_failed(one) for one in running):
                self.stop()
        _raise_first(running)

    def stop(self) -> None:
        """Give up whatever is being fetched."""
        self._stopped.set()
        for channel in list(self._channels):
            channel.abort()

    def _fetch_one(self, wanted: Wanted) -> None:
        attempt = 1
        while True:
            channel = Channel(self._policy, min(_SILENCE_SECONDS, max(self._limit.remaining, 0.1)))
            self._channels.add(channel)
            try:
                return self._take(channel, wanted)
            except DownloadError as problem:
                if self._stopped.is_set():
                    raise Abandoned from None
                if self._limit.expired:
                    raise self._too_slow(wanted) from None
                if attempt == _ATTEMPTS or not problem.transient:
                    raise _as_job_error(problem, wanted.url) from None
                attempt += 1
            finally:
                self._channels.discard(channel)
                channel.close()

    def _take(self, channel: Channel, wanted: Wanted) -> None:
        if self._stopped.is_set():
            raise Abandoned
        reply = channel.get(wanted.url)
        if reply.status != 200:
            raise JobError(
                "input.not_fetched",
                f"{shown(wanted.url)} answers with status {reply.status}.",
                _FIX_URL,
                status=reply.status,
            )
        if reply.headers.get("content-encoding", "identity").lower() not in ("", "identity"):
            raise bad_answer(reply.host, "compresses the file though asked not to")
        if (reply.length or 0) > self._max_mb * 1e6:
            raise self._too_large(wanted, f"{(reply.length or 0) / 1e6:.1f} MB")
        size = self._write(reply, wanted)
        if reply.length is not None and size != reply.length:
            raise DownloadError("download.unreachable", _cut(size, reply), "", transient=True)

    def _write(self, reply: Reply, wanted: Wanted) -> int:
        """The body into the file; its size in bytes."""
        size = 0
        with open(wanted.path, "wb") as file:
            while block := reply.read_some(_BLOCK):
                size += len(block)
                if self._stopped.is_set():
                    raise Abandoned
                if size > self._max_mb * 1e6:
                    raise self._too_large(wanted, "more")
                if self._limit.expired:
                    raise self._too_slow(wanted)
                file.write(block)
        return size

    def _too_large(self, wanted: Wanted, size: str) -> JobError:
        return JobError(
            "input.too_large",
            f"{shown(wanted.url)} has {size}; this worker fetches up to {self._max_mb:g} MB.",
            "Send a smaller file, raise MAX_INPUT_MB in the endpoint's environment, or put the "
            "file on the volume in ComfyUI/input/ and name it.",
        )

    def _too_slow(self, wanted: Wanted) -> JobError:
        return JobError(
            "input.not_fetched",
            f"{shown(wanted.url)} was not there within {self._limit.seconds:.0f} s.",
            "Use a faster server, or raise INPUT_TIMEOUT (and max_wait, which covers it) in the "
            "endpoint's environment.",
        )


def _cut(size: int, reply: Reply) -> str:
    return f"the connection to {reply.host} was cut after {size} of {reply.length} bytes."


def _failed(one: Future[None]) -> bool:
    return one.done() and not one.cancelled() and one.exception() is not None


def _raise_first(done: Sequence[Future[None]]) -> None:
    """The first true reason; those that were only told to stop have none of their own."""
    problems = [problem for one in done if (problem := one.exception()) is not None]
    for problem in problems:
        if not isinstance(problem, Abandoned):
            raise problem
    if problems:
        raise problems[0]


def _as_job_error(problem: DownloadError, url: str) -> JobError:
    refused = ("download.url_refused", "download.private_address", "download.redirect_refused")
    said = problem.message[:1].upper() + problem.message[1:]
    if problem.code in refused:
        return JobError(
            "input.url_refused",
            f"{said}",
            "Send a public https address; where addresses of your own network are meant, set "
            "ALLOW_PRIVATE_URLS=true in the endpoint's environment.",
        )
    return JobError("input.not_fetched", f"{shown(url)}: {problem.message}", _FIX_URL)
