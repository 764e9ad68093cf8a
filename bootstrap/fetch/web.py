"""HTTP as downloads need it: one kept connection, checked addresses, redirects of our own.

On the standard library's http.client, because the connection must go to the very address that
was checked, a credential must be weighed anew at every hop, and bytes are taken as they come.
Proxies of the environment are not used: behind one, nobody can check addresses.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import http.client
import socket
import ssl
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urljoin

from bootstrap.fetch.addresses import AddressPolicy, Target, shown
from bootstrap.fetch.errors import DownloadError, bad_answer
from bootstrap.fetch.reply import BROKEN, Reply, Response, translate
from bootstrap.kinds import Secret

USER_AGENT = "comfyui-volume-worker/1 (model downloads)"
MAX_REDIRECTS = 10
_REDIRECTS = (301, 302, 303, 307, 308)


@dataclass(frozen=True)
class Credential:
    """A bearer token and the origins it may be shown to. `name` is what plans may say."""

    name: str
    secret: Secret
    belongs_to: Callable[[str, str, int], bool] = field(repr=False)

    def headers_for(self, target: Target) -> dict[str, str]:
        """The header for `target`, or nothing when the token is none of its business."""
        if not self.belongs_to(*target.origin):
            return {}
        return {"Authorization": f"Bearer {self.secret.reveal()}"}


class Connections:
    """Connections that another thread can abort, in whatever state they are: connecting, in the
    TLS handshake, or waiting for the next byte of a server that sends one a second."""

    def __init__(self) -> None:
        self.aborted = False
        self._lock = threading.Lock()
        self._handles: list[socket.socket] = []

    def connect(self, addresses: Sequence[str], port: int, timeout: float | None) -> socket.socket:
        """A socket to the first address that answers. Raises OSError."""
        problem: OSError | None = None
        for address in addresses:
            self._raise_if_aborted()
            try:
                sock = socket.create_connection((address, port), timeout)
            except OSError as failed:
                problem = failed
                continue
            # TLS takes the socket over: a handle of one's own stays good.
            with self._lock:
                self._handles.append(sock.dup())
            self._raise_if_aborted()
            return sock
        raise problem or OSError("its name has no address")

    def abort(self) -> None:
        """Shut all of them down, and refuse further ones. Returns at once."""
        self.aborted = True
        self._close(shutdown=True)

    def close(self) -> None:
        """Forget those that were made: they are done with."""
        self._close(shutdown=False)

    def _raise_if_aborted(self) -> None:
        if self.aborted:
            self._close(shutdown=True)
            raise ConnectionAbortedError(errno.ECONNABORTED, "the transfer was given up")

    def _close(self, shutdown: bool) -> None:
        with self._lock:
            handles, self._handles = self._handles, []
        for handle in handles:
            with handle, contextlib.suppress(OSError):
                if shutdown:
                    handle.shutdown(socket.SHUT_RDWR)


class Channel:
    """One connection at a time, kept between requests to one origin. Not for several threads,
    but `abort` may come from another one, and ends it for good."""

    def __init__(self, policy: AddressPolicy, timeout: float = 30.0) -> None:
        self._policy = policy
        self._timeout = timeout
        self._connection: http.client.HTTPConnection | None = None
        self._origin: tuple[str, str, int] | None = None
        self._reply: http.client.HTTPResponse | None = None
        self._connections = Connections()

    def get(
        self,
        url: str,
        credential: Credential | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """Ask for `url`, following redirects to https and public addresses only.

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

    def close(self) -> None:
        """Give up the connection; the next `get` makes a new one."""
        connection, self._connection, self._origin, self._reply = self._connection, None, None, None
        if connection is not None:
            connection.close()
        self._connections.close()

    @property
    def aborted(self) -> bool:
        """Was it given up?"""
        return self._connections.aborted

    def abort(self) -> None:
        """Wake a thread that waits for bytes on this channel; its read fails, and so does whatever
        it asks for then."""
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
            raise DownloadError(
                "download.redirect_refused",
                f"{target.host} redirects to a place that is refused: {refusal.message}",
                refusal.fix,
            ) from None
        return url

    def _ask(self, target: Target, headers: Mapping[str, str]) -> Reply:
        reused = self._ready_for(target)
        try:
            return self._exchange(target, headers)
        except BROKEN as problem:
            self.close()
            if not reused:
                raise translate(problem, target.host, self._timeout) from None
        try:  # a kept connection that the server had closed meanwhile says nothing about the file
            return self._exchange(target, headers)
        except BROKEN as problem:
            self.close()
            raise translate(problem, target.host, self._timeout) from None

    def _ready_for(self, target: Target) -> bool:
        """Is the kept connection good for `target`? If not, it is closed."""
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

    def _connect(self, target: Target) -> http.client.HTTPConnection:
        addresses = self._policy.addresses(target)
        sock = self._connections.connect(addresses, target.port, self._timeout)
        return _connection_on(sock, target, self._timeout)


def _auth(credential: Credential | None, target: Target) -> dict[str, str]:
    return {} if credential is None else credential.headers_for(target)


def _connection_on(
    sock: socket.socket, target: Target, timeout: float
) -> http.client.HTTPConnection:
    """An HTTP connection on a socket that is connected to a checked address."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # auto_open is off: http.client must never resolve the name by itself.
    if target.scheme == "http":
        plain = http.client.HTTPConnection(target.host, target.port, timeout=timeout)
        plain.auto_open = 0
        plain.response_class = Response
        plain.sock = sock
        return plain
    context = _context()
    secure = http.client.HTTPSConnection(target.host, target.port, timeout=timeout, context=context)
    secure.auto_open = 0
    secure.response_class = Response
    try:
        secure.sock = context.wrap_socket(sock, server_hostname=target.host)
    except BaseException:
        sock.close()
        raise
    return secure


@functools.lru_cache(maxsize=1)
def _context() -> ssl.SSLContext:
    """A slim image may lack the system's certificates; requests brings its own."""
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
        "Open the URL in a browser; the file may have moved or want a login.",
    )
