"""HTTP for downloads: one persistent connection, checked addresses, our own redirects.

Built on http.client, because the connection must go to exactly the checked address, credentials are
decided again for every hop, and bytes are consumed as they arrive. Proxies from the environment are
not used: behind one, addresses cannot be checked.
"""

from __future__ import annotations

import functools
import http.client
import io
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO
from urllib.parse import urljoin

from bootstrap.core.redact import Secret
from bootstrap.core.text import printable, whole
from bootstrap.net import (
    TRY_AGAIN,
    AddressRefused,
    DownloadError,
    bad_answer,
    stalled,
    unreachable,
)
from bootstrap.net.addresses import AddressPolicy, Connections, Target, shown

#: The exceptions of a broken connection.
BROKEN = (http.client.HTTPException, ssl.SSLError, OSError)
# status -> (code, sentence, fix); {where} is the URL without its query.
Words = Mapping[int, tuple[str, str, str]]
_TOKEN = "set DOWNLOAD_TOKEN and DOWNLOAD_TOKEN_HOST in the endpoint's environment variables"
PLAIN: Words = {
    401: (
        "download.login_needed",
        "{where} requires a login (401).",
        f"If you have a token for this host, {_TOKEN}; a token that is set may have expired.",
    ),
    403: (
        "download.forbidden",
        "{where} refuses access (403); a signed URL may have expired.",
        f"Make a new signed URL, or {_TOKEN}.",
    ),
    404: ("download.not_found", "{where} does not exist (404).", "Correct the URL."),
    410: ("download.gone", "{where} was permanently removed (410).", "Find another source."),
    429: (
        "download.rate_limited",
        "{where} reports too many requests (429).",
        "Wait a while, or lower DOWNLOAD_CONNECTIONS.",
    ),
}
USER_AGENT = "comfyui-volume-worker/1 (model downloads)"
MAX_REDIRECTS = 10
_MOST_QUOTED = 200
_REDIRECTS = (301, 302, 303, 307, 308)


class _TimedInput(io.RawIOBase):
    """A socket's input, limited to the socket's timeout for a whole step (a response's head, a
    piece of its body); the socket itself restarts its timeout with each byte."""

    def __init__(self, raw: io.RawIOBase, seconds: float | None) -> None:
        self._raw = raw
        self._seconds = float("inf") if seconds is None else seconds
        self.begin()

    def begin(self) -> None:
        """Start the next step's timeout."""
        self._until = time.monotonic() + self._seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if time.monotonic() > self._until:
            raise TimeoutError
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class Response(http.client.HTTPResponse):
    """Reuses one buffer, where CPython allocates a new one for each piece and so fragments malloc's
    arenas, one per thread (44 MB for 5 GB over 16 connections, now 25). The head and each piece of
    the body must arrive within the socket's timeout."""

    def __init__(self, sock: socket.socket, *more: Any, **options: Any) -> None:
        super().__init__(sock, *more, **options)
        self._input = _TimedInput(self.fp.detach(), sock.gettimeout())
        self.fp = io.BufferedReader(self._input)

    def read(self, amt: int | None = None) -> bytes:
        """As in HTTPResponse, within the timeout for one piece."""
        self._input.begin()
        return super().read(amt)

    def readinto1(self, buffer: Any) -> int:
        """Like `readinto` (from which this is adapted), but returns what has arrived, like
        `read1`."""
        self._input.begin()
        if self.fp is None or self.chunked:
            return super().readinto1(buffer)
        if self.length is not None:
            buffer = memoryview(buffer)[: self.length]
        count: int = self.fp.readinto1(buffer)
        if self.length is not None:
            self.length -= count
        # Python before 3.11.8 omits this in `read1`, and then does not keep the connection.
        if (not count and buffer) or self.length == 0:
            self.close()
        return count


class Reply:
    """A final response (no redirect). `url` is its final address."""

    def __init__(self, target: Target, raw: http.client.HTTPResponse, timeout: float) -> None:
        self.url = target.url
        self.host = target.host
        self.status = raw.status
        self.headers: Mapping[str, str] = {k.lower(): v.strip() for k, v in raw.getheaders()}
        self.chunked = bool(raw.chunked)
        self._raw = raw
        self._timeout = timeout
        self._buffer = memoryview(b"")

    def read_some(self, limit: int) -> memoryview:
        """The part of the body that has arrived, at most `limit` bytes; empty at its end. The next
        call overwrites it.

        It does not wait for a full buffer, so that a trickling server is detected. Raises
        DownloadError (transient) when the connection breaks or stalls.
        """
        if len(self._buffer) < limit:
            self._buffer = memoryview(bytearray(limit))
        try:
            return self._buffer[: self._raw.readinto1(self._buffer[:limit])]
        except BROKEN as problem:
            raise translate(problem, self.host, self._timeout) from None

    def read_text(self, limit: int = 1_000_000) -> str:
        """Up to `limit` bytes of the body as text, as far as it can be read."""
        try:
            return self._raw.read(limit).decode("utf-8", "replace")
        except BROKEN:
            return ""

    @property
    def length(self) -> int | None:
        """This body's Content-Length in bytes. Raises DownloadError for an impossible one."""
        text = self.headers.get("content-length", "")
        if self.chunked or not text:
            return None
        length = whole(text)
        if length is None:
            raise bad_answer(self.host, f"gives an impossible length ({text[:20]!r})")
        return length

    @property
    def strong_etag(self) -> str | None:
        """The ETag if it is a strong one, which guarantees identical bytes."""
        etag = self.headers.get("etag", "")
        return etag if len(etag) > 2 and etag.startswith('"') else None


def translate(problem: BaseException, host: str, timeout: float) -> DownloadError:
    """Another library's network exception as ours."""
    if isinstance(problem, TimeoutError):
        return stalled(host, timeout)
    if isinstance(problem, http.client.IncompleteRead):
        return unreachable(host, "it was closed too early")
    # It may quote what the server sent in place of a status.
    return unreachable(host, printable(str(problem)[:_MOST_QUOTED]) or type(problem).__name__)


def explain(reply: Reply, words: Words = PLAIN, detail: str = "") -> DownloadError:
    """The error for a response that is not a file. 408, 429 and 5xx are worth retrying."""
    where = shown(reply.url)
    transient = reply.status in (408, 429) or reply.status >= 500
    code, sentence, fix = words.get(
        reply.status,
        ("download.http_status", f"{{where}} answers {reply.status}.", TRY_AGAIN),
    )
    message = sentence.format(where=where) + (f" It says: {detail[:200]!r}." if detail else "")
    return DownloadError(
        code,
        message,
        fix,
        transient=transient,
        retry_after=_retry_after(reply),
        status=reply.status,
    )


def _retry_after(reply: Reply) -> float | None:
    """Seconds; None for an HTTP date, since the caller waits a while anyway."""
    text = reply.headers.get("retry-after", "")
    return whole(text)


@dataclass(frozen=True)
class Credential:
    """A bearer token and the origins it may be sent to. `name` is shown in plans."""

    name: str
    secret: Secret
    belongs_to: Callable[[str, str, int], bool] = field(repr=False)

    def headers_for(self, target: Target) -> dict[str, str]:
        """The header for `target`; empty if the token is not for that origin."""
        if not self.belongs_to(*target.origin):
            return {}
        return {"Authorization": f"Bearer {self.secret.reveal()}"}


class _Plain(http.client.HTTPConnection):
    """Gets its socket from `open`, so that it never resolves names itself."""

    response_class = Response
    open: Callable[[], socket.socket]

    def connect(self) -> None:
        """Called by http.client, also when it reconnects."""
        self.sock = self.open()


class _Secure(http.client.HTTPSConnection, _Plain):
    """The same with TLS, which HTTPSConnection adds to the socket."""


class Channel:
    """One connection at a time, kept between requests to one origin. Not thread-safe, except
    `abort`, which ends it permanently."""

    def __init__(self, policy: AddressPolicy, timeout: float = 30.0) -> None:
        self._policy = policy
        self._timeout = timeout
        self._connection: _Plain | None = None
        self._origin: tuple[str, str, int] | None = None
        self._reply: http.client.HTTPResponse | None = None
        self._connections = Connections(policy)

    def get(
        self,
        url: str,
        credential: Credential | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """GET `url`, following redirects to https and public addresses only.

        Raises DownloadError. Statuses from 400 on are for the caller to judge.
        """
        seen: set[str] = set()
        while True:
            target = self._policy.target(url)
            if url in seen or len(seen) > MAX_REDIRECTS:
                raise _loop(url)
            seen.add(url)
            reply = self._ask(target, {**(headers or {}), **_auth(credential, target)})
            if reply.status not in _REDIRECTS:
                return reply
            url = self._next(target, reply)
            self.close()

    def put(self, url: str, body: BinaryIO, size: int, headers: Mapping[str, str]) -> int:
        """PUT `size` bytes of `body`, without following redirects; the response's status. Raises
        DownloadError."""
        target = self._policy.target(url)
        self.close()
        given = {name.lower(): text for name, text in headers.items()}
        about = {"user-agent": USER_AGENT, **given, "content-length": str(size)}
        try:
            self._connection = self._connect(target)
            self._connection.request("PUT", target.path, body=body, headers=about)
            return int(self._connection.getresponse().status)
        except (*BROKEN, ValueError) as problem:
            raise translate(problem, target.host, self._timeout) from None
        finally:
            self.close()

    def close(self) -> None:
        """Close the connection; the next `get` opens a new one."""
        connection, self._connection, self._origin, self._reply = self._connection, None, None, None
        if connection is not None:
            connection.close()
        self._connections.close()

    @property
    def aborted(self) -> bool:
        """Was it aborted?"""
        return self._connections.aborted

    def abort(self) -> None:
        """Wake a thread that waits for bytes on this channel: its read and all later calls fail."""
        self._connections.abort()

    def _next(self, target: Target, reply: Reply) -> str:
        location = reply.headers.get("location", "")
        try:
            url = urljoin(target.url, location) if location else ""
        except ValueError:
            url = ""
        if not url:
            raise bad_answer(target.host, "redirects without saying where to")
        try:
            self._policy.target(url)
        except DownloadError as refusal:
            raise AddressRefused(
                "download.redirect_refused",
                f"{target.host} redirects to a place that is refused: {refusal.message}",
                refusal.fix,
            ) from None
        return url

    def _ask(self, target: Target, headers: Mapping[str, str]) -> Reply:
        while True:
            reused = self._ready_for(target)
            try:
                return self._exchange(target, headers)
            except BROKEN as problem:
                self.close()
                # Had the server closed a kept connection, that says nothing about the file.
                if not reused:
                    raise translate(problem, target.host, self._timeout) from None

    def _ready_for(self, target: Target) -> bool:
        """Can the kept connection be used for `target`? If not, it is closed."""
        fit = self._origin == target.origin and self._reply is not None and self._reply.isclosed()
        if not fit or self._connection is None or self._connection.sock is None:
            self.close()
            return False
        return True

    def _exchange(self, target: Target, headers: Mapping[str, str]) -> Reply:
        if self._connection is None:
            self._connection = self._connect(target)
            self._origin = target.origin
        connection = self._connection
        connection.request(
            "GET",
            target.path,
            headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity", **headers},
        )
        self._reply = connection.getresponse()
        return Reply(target, self._reply, self._timeout)

    def _connect(self, target: Target) -> _Plain:
        at = (target.host, target.port)
        connection = _Plain(*at, timeout=self._timeout)
        if target.scheme == "https":
            connection = _Secure(*at, timeout=self._timeout, context=_context())
        connection.open = functools.partial(self._connections.connect, target, self._timeout)
        return connection


def _auth(credential: Credential | None, target: Target) -> dict[str, str]:
    return {} if credential is None else credential.headers_for(target)


@functools.lru_cache(maxsize=1)
def _context() -> ssl.SSLContext:
    """A slim image may lack the system's certificates; requests has its own."""
    context = ssl.create_default_context()
    if not context.cert_store_stats()["x509_ca"]:
        try:
            import certifi
        except ImportError:
            return context
        context.load_verify_locations(certifi.where())
    return context


def _loop(url: str) -> DownloadError:
    return DownloadError(
        "download.redirect_loop",
        f"{shown(url)} redirects in circles, or more than {MAX_REDIRECTS} times.",
        "Open the URL in a browser; the file may have moved or require a login.",
    )
