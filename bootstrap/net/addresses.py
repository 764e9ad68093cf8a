"""Which URLs and addresses may be used, and connections to them. Only https and public addresses
may, unless others are allowed.

A name is resolved once and the connection goes to the checked address, so that DNS rebinding
between check and use has no effect.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import threading
from collections.abc import Callable, Container, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from bootstrap.net import AddressRefused, DownloadError, unreachable

Resolve = Callable[[str, int], Sequence[str]]
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_LONGEST_HOST = 253  # RFC 1035
_FIX_PRIVATE = (
    "Use a public https URL, or set ALLOW_PRIVATE_DOWNLOAD_URLS=true if this address is yours."
)


@dataclass(frozen=True)
class Target:
    """A parsed URL. Credentials belong to its `origin`."""

    url: str
    scheme: str
    host: str
    port: int
    path: str

    @property
    def origin(self) -> tuple[str, str, int]:
        return (self.scheme, self.host, self.port)


def system_resolve(host: str, port: int) -> Sequence[str]:
    """Addresses of a name, as this system resolves it. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def numeric(host: str) -> Sequence[str]:
    """The address that a host is in numeric form, in any notation that connecting accepts (`127.1`,
    `0x7f000001`), or for `localhost`; None for other names."""
    if host.lower() == "localhost" or host.lower().endswith(".localhost"):  # RFC 6761
        return ["127.0.0.1"]
    try:
        found = socket.getaddrinfo(host, None, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return []
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


@dataclass(frozen=True)
class AddressPolicy:
    """`exempt` has `host:port` pairs that may use http and private addresses: those that the
    operator set, such as HF_ENDPOINT."""

    allow_private: bool = False
    exempt: Container[str] = frozenset()
    resolve: Resolve = field(default=system_resolve, compare=False)

    def target(self, url: str) -> Target:
        """The parts of `url`. Raises DownloadError when it may not be used."""
        target = take_apart(url)
        if target.scheme != "https" and not self._is_free(target):
            raise AddressRefused(
                "download.url_refused",
                f"{shown(url)} is plain http, where anyone on the way can change the file.",
                "Use https; for a server of your own set ALLOW_PRIVATE_DOWNLOAD_URLS=true.",
            )
        return target

    def at_sight(self, url: str) -> Target:
        """`target`, also refused if the host is a numeric address that may not be used: every check
        that needs no DNS. Raises DownloadError."""
        target = self.target(url)
        self._refuse_private(target, numeric(target.host))
        return target

    def addresses(self, target: Target) -> Sequence[str]:
        """The checked addresses to connect to for `target`. Raises DownloadError."""
        try:
            found = self.resolve(target.host, target.port)
        except (OSError, UnicodeError) as problem:
            raise unreachable(target.host, f"its name cannot be resolved: {problem}") from None
        self._refuse_private(target, found)
        return found

    def _refuse_private(self, target: Target, found: Sequence[str]) -> None:
        private = [address for address in found if not is_public(address)]
        if private and not self._is_free(target):
            raise AddressRefused(
                "download.private_address",
                f"{target.host} leads to {private[0]}, which is not a public address.",
                _FIX_PRIVATE,
            )

    def _is_free(self, target: Target) -> bool:
        return self.allow_private or f"{target.host}:{target.port}" in self.exempt


class Connections:
    """All connections to other hosts: sockets to addresses that `policy` allows. Another thread can
    abort them in any state: connecting, in the TLS handshake, or waiting for the next byte of a
    slow server."""

    def __init__(self, policy: AddressPolicy) -> None:
        self.aborted = False
        self._policy = policy
        self._lock = threading.Lock()
        self._handles: list[socket.socket] = []

    def connect(self, target: Target, timeout: float | None) -> socket.socket:
        """A socket to the first address of `target` that answers. Raises OSError, and DownloadError
        for an address that may not be used."""
        problem: OSError | None = None
        for address in self._policy.addresses(target):
            self._raise_if_aborted()
            try:
                sock = socket.create_connection((address, target.port), timeout)
            except OSError as failed:
                problem = failed
                continue
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # TLS takes over the socket, but a duplicate handle stays valid.
            with self._lock:
                self._handles.append(sock.dup())
            self._raise_if_aborted()
            return sock
        raise problem or OSError("its name has no address")

    def abort(self) -> None:
        """Shut down all connections, and refuse further ones. Returns at once."""
        self.aborted = True
        self._close(shutdown=True)

    def close(self) -> None:
        """Forget the connections made so far; they are finished."""
        self._close(shutdown=False)

    def _raise_if_aborted(self) -> None:
        if self.aborted:
            self._close(shutdown=True)
            raise ConnectionAbortedError(errno.ECONNABORTED, "the transfer was abandoned")

    def _close(self, shutdown: bool) -> None:
        with self._lock:
            handles, self._handles = self._handles, []
        for handle in handles:
            with handle, suppress(OSError):
                if shutdown:
                    handle.shutdown(socket.SHUT_RDWR)


def take_apart(url: str) -> Target:
    """Scheme, host, port and path of an http(s) URL. Raises DownloadError if it is not one."""
    if any(c <= " " or c in "\x7f\\" or "\ud800" <= c <= "\udfff" for c in url):
        raise _refused(url, "holds white space, control characters, backslashes or bytes")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as problem:
        raise _refused(url, f"is malformed ({problem})") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise _refused(url, "is not an https URL")
    if parts.username is not None or parts.password is not None:
        raise AddressRefused(
            "download.url_refused",
            f"{shown(url)} carries a login.",
            "Give the URL without it; for models set DOWNLOAD_TOKEN and DOWNLOAD_TOKEN_HOST.",
        )
    try:
        host = parts.hostname.encode("ascii").decode()
    except UnicodeError:
        try:
            host = parts.hostname.encode("idna").decode()
        except UnicodeError:
            raise _refused(url, "has an invalid host name") from None
    host = host.rstrip(".")
    if not 0 < len(host) <= _LONGEST_HOST:
        raise _refused(url, "has an invalid host name")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if port is None:
        port = 443 if parts.scheme == "https" else 80
    return Target(url, parts.scheme, host, port, _ascii(path))


def is_public(address: str) -> bool:
    """May an untrusted URL lead there? IPv4 inside IPv6 counts as IPv4."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if ip.is_site_local or int(ip) < 2**32:  # ::a.b.c.d, the old IPv4-compatible form
            return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def shown(url: str) -> str:
    """A URL for people: `without_query`, cut at 300 characters."""
    return without_query(url)[:300]


def without_query(url: str) -> str:
    """A URL without its query, which may hold signatures and tokens, and without a login."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "a malformed URL"
    if not parts.netloc:
        return url.partition("?")[0][:200]
    return f"{parts.scheme}://{host}{port}{parts.path}"


def _ascii(path: str) -> str:
    return "".join(
        c if ord(c) < 128 else "".join(f"%{byte:02X}" for byte in c.encode()) for c in path
    )


def _refused(url: str, why: str) -> DownloadError:
    return AddressRefused(
        "download.url_refused",
        f"{shown(url)} {why}.",
        "Give a URL such as https://example.com/model.safetensors.",
    )
