"""The Hugging Face Hub's resolve API without xet, for the real huggingface_hub: HEAD answers with
the headers the library reads, large files redirect to a CDN that must not see the token."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

from tests.support.vicious_server import ViciousServer

COMMIT = "c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00"


@dataclass
class Repo:
    """Files by path. `gate` is None, `gated` or `private`; both open for the hub's token."""

    files: dict[str, bytes] = field(default_factory=dict)
    gate: str | None = None
    revisions: tuple[str, ...] = ("main", COMMIT)


class FakeHub:
    """`url` is the HF_ENDPOINT. Use as a context manager."""

    def __init__(self, token: str = "") -> None:
        self.repos: dict[str, Repo] = {}
        self.token = token
        self.cdn = ViciousServer()
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        self.status: int | None = None
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.hub = self  # type: ignore[attr-defined]
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        )

    @property
    def url(self) -> str:
        """http://127.0.0.1:PORT"""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def put(self, repo: str, path: str, data: bytes, large: bool = True) -> None:
        """Add a file; a large one is on the CDN, as LFS files are."""
        self.repos.setdefault(repo, Repo()).files[path] = data
        if large:
            self.cdn.serve(
                f"/{hashlib.sha256(data).hexdigest()}",
                data,
                needs=lambda headers: 400 if "authorization" in headers else None,
            )

    def __enter__(self) -> FakeHub:
        self._thread.start()
        self.cdn.__enter__()
        return self

    def __exit__(self, *_: Any) -> None:
        self._server.shutdown()
        self._server.server_close()
        self.cdn.__exit__(None, None, None)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        hub: FakeHub = self.server.hub  # type: ignore[attr-defined]
        headers = {key.lower(): value for key, value in self.headers.items()}
        hub.seen.append((self.command, self.path, headers))
        if hub.status is not None:
            self._end(hub.status, {})
            return
        pieces = unquote(self.path.partition("?")[0]).strip("/").split("/")
        repo = hub.repos.get("/".join(pieces[:2]))
        if repo is None or len(pieces) < 5 or pieces[2] != "resolve":
            self._end(401, {"X-Error-Code": "RepoNotFound"})
            return
        may = hub.token and headers.get("authorization") == f"Bearer {hub.token}"
        if repo.gate and not may:
            code = "GatedRepo" if repo.gate == "gated" else "RepoNotFound"
            self._end(401, {"X-Error-Code": code})
        elif pieces[3] not in repo.revisions:
            self._end(404, {"X-Error-Code": "RevisionNotFound"})
        elif (data := repo.files.get("/".join(pieces[4:]))) is None:
            self._end(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        else:
            self._file(hub, data, headers, body)

    def _file(self, hub: FakeHub, data: bytes, headers: dict[str, str], body: bool) -> None:
        sha256 = hashlib.sha256(data).hexdigest()
        common = {"X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if f"/{sha256}" in hub.cdn.files:
            self._end(
                302,
                {
                    **common,
                    "X-Linked-ETag": f'"{sha256}"',
                    "X-Linked-Size": str(len(data)),
                    "Location": f"{hub.cdn.url}/{sha256}?X-Amz-Signature=s3cret-signature",
                },
            )
            return
        etag = f'"{hashlib.sha1(data).hexdigest()}"'
        first, _, last = headers.get("range", "").removeprefix("bytes=").partition("-")
        if body and first:
            part = data[int(first) : int(last) + 1]
            where = f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"
            self._end(206, {**common, "ETag": etag, "Content-Range": where}, part)
        else:
            self._end(200, {**common, "ETag": etag}, data, body)

    def _end(
        self, status: int, headers: dict[str, str], data: bytes = b"", body: bool = True
    ) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body and self.command != "HEAD":
            self.wfile.write(data)
