"""A plain file server with all the faults of real ones, each switched on by a field of `Served`."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_BLOCK = 64 * 1024


@dataclass
class Served:
    """One file and how it is served. Counts are of requests for it, from 1."""

    data: bytes
    etag: str | None = "auto"  # "auto": a strong one, from the content
    modified: str | None = None
    content_type: str = "application/octet-stream"
    disposition: str | None = None
    ranges: bool = True
    honours_if_range: bool = True
    cut_after: int | None = None  # closes each answer after that many bytes of body
    cuts: int = 10**9  # how many answers are cut
    stall_after: int | None = None  # sends nothing more after that many bytes of an answer
    go_on: threading.Event = field(default_factory=threading.Event)  # unless this is set
    trickle: bool = False  # one byte now and then
    claims_more: int = 0  # Content-Length is larger than what comes
    sends_more: int = 0  # sends that many bytes after the announced ones
    restarts_at_zero: bool = False  # a 206 that begins at 0 whatever the range
    whole_after: int | None = None  # ignores Range from that request on
    statuses: dict[int, int] = field(default_factory=dict)  # request number -> status
    status: int | None = None
    body: bytes = b"no"
    headers: dict[str, str] = field(default_factory=dict)
    chunked: bool = False
    no_length: bool = False  # ends by closing the connection
    encoding: str | None = None
    redirect: str | None = None
    becomes: tuple[int, bytes] | None = None  # from that request on it is this file
    bytes_per_second: float | None = None  # of each connection
    needs: Callable[[dict[str, str]], int | None] | None = None  # headers -> status, or None
    requests: int = 0

    def current(self) -> bytes:
        """What the file is now."""
        if self.becomes is not None and self.requests >= self.becomes[0]:
            return self.becomes[1]
        return self.data

    def current_etag(self) -> str | None:
        """Its ETag now."""
        if self.etag != "auto":
            return self.etag
        return f'"{hashlib.md5(self.current()).hexdigest()}"'


class ViciousServer:
    """Use as a context manager; `url` ends without a slash, `files` may change while it runs,
    `seen` is (path, headers with lower-case names) of every request, `clients` the address and
    port of every connection."""

    def __init__(self) -> None:
        self.files: dict[str, Served] = {}
        self.seen: list[tuple[str, dict[str, str]]] = []
        self.clients: set[tuple[str, int]] = set()
        self._server = _Quiet(("127.0.0.1", 0), _Handler)
        self._server.owner = self
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        )

    @property
    def host_port(self) -> str:
        """As in a policy's exemptions."""
        return f"127.0.0.1:{self._server.server_address[1]}"

    @property
    def url(self) -> str:
        """http://127.0.0.1:PORT"""
        return f"http://{self.host_port}"

    def serve(self, path: str, data: bytes, **vices: Any) -> str:
        """Serve `data` at `path`; its URL."""
        self.files[path] = Served(data, **vices)
        return self.url + path

    def __enter__(self) -> ViciousServer:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    owner: ViciousServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that disconnect are what this server is for."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        owner = self.server.owner  # type: ignore[attr-defined]
        headers = {key.lower(): value for key, value in self.headers.items()}
        owner.seen.append((self.path, headers))
        owner.clients.add(self.client_address)
        served = owner.files.get(self.path) or owner.files.get(self.path.partition("?")[0])
        if served is None:
            self._plain(404, b"not found", {})
            return
        served.requests += 1
        status = served.statuses.get(served.requests, served.status)
        if served.needs is not None:
            status = served.needs(headers) or status
        if status is not None:
            self._plain(status, served.body, served.headers)
        elif served.redirect is not None:
            self._plain(302, b"", {"Location": served.redirect})
        else:
            self._file(served, headers)

    def _plain(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def _file(self, served: Served, headers: dict[str, str]) -> None:
        data, etag = served.current(), served.current_etag()
        wanted = _RANGE.fullmatch(headers.get("range", ""))
        whole = not served.ranges or wanted is None
        if served.whole_after is not None and served.requests >= served.whole_after:
            whole = True
        if served.honours_if_range and headers.get("if-range", etag) != etag:
            whole = True
        first, end = 0, len(data)
        if not whole and wanted is not None:
            if int(wanted[1]) >= len(data):
                self._plain(416, b"", {"Content-Range": f"bytes */{len(data)}"})
                return
            first = 0 if served.restarts_at_zero and int(wanted[1]) > 0 else int(wanted[1])
            end = min(int(wanted[2]) + 1 if wanted[2] else end, end)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{end - 1}/{len(data)}")
        else:
            self.send_response(200)
        self._describe(served, etag, end - first + served.claims_more)
        self._body(served, data[first:end] + b"x" * served.sends_more)

    def _describe(self, served: Served, etag: str | None, length: int) -> None:
        self.send_header("Content-Type", served.content_type)
        optional = {
            "ETag": etag,
            "Last-Modified": served.modified,
            "Content-Disposition": served.disposition,
            "Content-Encoding": served.encoding,
        }
        for key, value in optional.items():
            if value is not None:
                self.send_header(key, value)
        if served.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        elif served.no_length:
            self.close_connection = True
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def _body(self, served: Served, data: bytes) -> None:
        started, sent = time.monotonic(), 0
        cut = served.cut_after if served.cuts > 0 and len(data) > 1 else None
        for first in range(0, len(data), _BLOCK):
            block = data[first : first + _BLOCK]
            if cut is not None and sent + len(block) > cut:
                served.cuts -= 1
                self._send(served, block[: cut - sent])
                self.close_connection = True
                return
            if served.stall_after is not None and sent >= served.stall_after and len(data) > 1:
                served.go_on.wait(30)
            if served.trickle and len(data) > 1:
                for byte in block:
                    self.wfile.write(bytes([byte]))
                    time.sleep(0.05)
            else:
                self._send(served, block)
            sent += len(block)
            if served.bytes_per_second is not None:
                ahead = sent / served.bytes_per_second - (time.monotonic() - started)
                time.sleep(max(ahead, 0))
        if served.chunked:
            self.wfile.write(b"0\r\n\r\n")
        if served.claims_more or served.sends_more:
            self.close_connection = True

    def _send(self, served: Served, block: bytes) -> None:
        if served.chunked:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(block), block))
        else:
            self.wfile.write(block)
