"""Servers that send a part of their HTTP answer byte by byte, almost without end: no socket timeout
ends that, since each byte restarts it."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

_STATUS = b"HTTP/1.1 200 OK\r\n"
_ANSWERS = {
    "status line": (b"", _STATUS),
    "headers": (_STATUS, b"X-Slow: " + b"x" * 5000),
    "100 continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 500),
    "body": (_STATUS + b"Content-Length: 100000\r\n\r\n", b"x" * 100_000),
    "trailers": (
        _STATUS + b"Transfer-Encoding: chunked\r\n\r\n4\r\n\x89PNG\r\n0\r\n",
        b"X-Slow: " + b"x" * 5000,
    ),
}
PARTS = tuple(_ANSWERS)


class TricklingServer:
    """Answers any request and trickles in that part. `open` counts its current connections."""

    def __init__(self, part: str, seconds_apart: float = 0.2) -> None:
        self._at_once, self._slowly = _ANSWERS[part]
        self._apart = seconds_apart
        self._over = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._lock = threading.Lock()
        self.open = 0
        self.seen = 0
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        """Without a slash at the end."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        self._over.set()
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with self._lock:
            self.open += 1
            self.seen += 1
        try:
            with connection, contextlib.suppress(OSError):
                connection.recv(65536)
                connection.sendall(self._at_once)
                connection.setblocking(False)
                for byte in self._slowly:
                    if self._over.wait(self._apart) or self._is_closed(connection):
                        return
                    connection.sendall(bytes([byte]))
        finally:
            with self._lock:
                self.open -= 1

    @staticmethod
    def _is_closed(connection: socket.socket) -> bool:
        try:
            while chunk := connection.recv(65536):
                del chunk  # the rest of an upload
        except BlockingIOError:
            return False
        return True


@contextlib.contextmanager
def trickling(part: str) -> Iterator[TricklingServer]:
    """A server that trickles in that part of its answers."""
    server = TricklingServer(part)
    try:
        yield server
    finally:
        server.close()
