"""One connection fetches a whole file in order: for servers without ranges."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable

from bootstrap.fetch.pace import Pace
from bootstrap.fetch.part import Part
from bootstrap.fetch.remote import Remote, refuse_text
from bootstrap.fetch.tools import Tools
from bootstrap.net.addresses import shown
from bootstrap.net.errors import Changed, DownloadError, Stopped, unreachable
from bootstrap.net.http import Reply

_AT_ONCE = 256 * 1024


def fetch_stream(
    remote: Remote,
    part: Part,
    tools: Tools,
    provable: bool,
    stop: threading.Event,
    on_bytes: Callable[[int], None],
) -> tuple[int, str]:
    """(size, SHA-256) of what was written to `part`, an empty one.

    `provable` says that a hash, a size or a header will tell whether the file is whole, which is
    needed where the server does not give its length. Raises DownloadError, Changed, Stopped.
    """
    channel = tools.channel()
    try:
        reply = channel.get(remote.url, remote.credential)
        _check_whole(reply, remote, provable)
        return _receive(reply, part, tools, stop, on_bytes)
    finally:
        channel.close()


def _receive(
    reply: Reply,
    part: Part,
    tools: Tools,
    stop: threading.Event,
    on_bytes: Callable[[int], None],
) -> tuple[int, str]:
    digest = hashlib.sha256()
    pace = Pace(reply.host, tools.stall, tools.slowest)
    position = 0
    while data := reply.read_some(_AT_ONCE):
        if stop.is_set():
            raise Stopped
        count = len(data)
        part.write_at(data, position)
        digest.update(data)
        position += count
        on_bytes(count)
        pace.count(count)
        tools.throttle.pass_through(count, stop)
    if reply.length is not None and position != reply.length:
        raise unreachable(reply.host, f"it was closed after {position:,} of {reply.length:,} bytes")
    return position, digest.hexdigest()


def _check_whole(reply: Reply, remote: Remote, provable: bool) -> None:
    if reply.status != 200:
        raise remote.explain(reply)
    refuse_text(reply, remote)
    if remote.size is not None and reply.length is not None and reply.length != remote.size:
        raise Changed
    if reply.length is None and not reply.chunked and not provable:
        raise DownloadError(
            "download.length_unknown",
            f"{shown(reply.url)} does not say how long the file is, so nobody could tell a whole "
            "one from a broken one.",
            "Give `size` or `hash` in the manifest, or use another link.",
        )
