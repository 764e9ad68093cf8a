"""What is known of a file on a server before it is fetched, and how to ask for it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from bootstrap.net.addresses import shown
from bootstrap.net.errors import DownloadError, bad_answer
from bootstrap.net.http import Channel, Credential, Reply

Explain = Callable[[Reply], DownloadError]
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", re.ASCII)


@dataclass(frozen=True)
class Remote:
    """A file, located. `identity` names it across signed URLs; with a strong `etag` or a `sha256`
    a part of it can be resumed. `explain` turns the source's error answers into words."""

    url: str = field(repr=False)
    identity: str
    explain: Explain = field(repr=False, compare=False)
    size: int | None = None
    etag: str | None = None
    modified: str | None = None
    sha256: str | None = None
    ranges: bool = False
    credential: Credential | None = None
    text_is_fine: bool = False

    @property
    def stable(self) -> bool:
        """Can two answers be told to be about the same bytes?"""
        return self.etag is not None or self.sha256 is not None


Locate = Callable[[Channel], Remote]


def content_range(reply: Reply) -> tuple[int, int, int | None]:
    """(first, end, total) of a 206, `end` exclusive. Raises DownloadError."""
    match = _CONTENT_RANGE.fullmatch(reply.headers.get("content-range", ""))
    if match is None:
        raise bad_answer(reply.host, "sent a part without saying which (no Content-Range)")
    first, last, total = match.groups()
    return int(first), int(last) + 1, None if total == "*" else int(total)


def probe(channel: Channel, remote: Remote) -> tuple[Remote, Reply]:
    """Ask for the first byte: learns size, validators, whether ranges work, and the final URL.

    Not HEAD, which signed URLs and Civitai refuse. Raises DownloadError.
    """
    reply = channel.get(remote.url, remote.credential, {"Range": "bytes=0-0"})
    if reply.status == 416 and reply.headers.get("content-range", "").endswith("/0"):
        raise empty(reply)
    if reply.status not in (200, 206):
        raise remote.explain(reply)
    refuse_text(reply, remote)
    ranges = reply.status == 206
    size = content_range(reply)[2] if ranges else reply.length
    if size == 0:
        raise empty(reply)
    if ranges:
        reply.read_text(2)
    else:
        channel.close()
    known = Remote(
        url=reply.url,
        identity=remote.identity,
        explain=remote.explain,
        size=size if size is not None else remote.size,
        etag=reply.strong_etag,
        modified=reply.headers.get("last-modified"),
        sha256=remote.sha256,
        ranges=ranges and size is not None,
        credential=remote.credential,
        text_is_fine=remote.text_is_fine,
    )
    return known, reply


def refuse_text(reply: Reply, remote: Remote) -> None:
    """Raise DownloadError for an answer that is a page, not a model."""
    kind = reply.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in ("text/html", "application/xhtml+xml", "application/json") and (
        not remote.text_is_fine
    ):
        raise DownloadError(
            "download.not_a_model",
            f"{shown(reply.url)} answers with {kind} instead of a model.",
            "Open the URL in a browser: it may be a page about the model or want a login. "
            "Use the link of the file itself.",
        )
    encoding = reply.headers.get("content-encoding", "identity").lower()
    if encoding not in ("", "identity"):
        raise bad_answer(reply.host, f"compresses the file ({encoding}) though asked not to")


def empty(reply: Reply) -> DownloadError:
    """The file has no bytes at all."""
    return DownloadError(
        "download.empty",
        f"{shown(reply.url)} is an empty file (0 bytes).",
        "Use another link; this one holds no model.",
    )
