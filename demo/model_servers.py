"""Local servers that answer like Hugging Face, Civitai and a plain server, for the demo.

The real code talks to them: to the Hub with huggingface_hub through HF_ENDPOINT (a HEAD with hash
and size that redirects to storage), to Civitai by its API and a redirect to a signed URL that
refuses a forwarded login. Files are served in ranges, slowly enough to watch.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00"
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_BLOCK = 64 * 1024


@dataclass
class ModelServers:
    """All sources on one port, their storage on another; a context manager. Files are given by
    `hub`, `civitai` and `plain`; `speed` is bytes per second of each connection."""

    token: str
    speed: float = 2e6
    requests: int = 0
    files: dict[str, bytes] = field(default_factory=dict)
    answers: dict[str, Callable[[_Handler], None]] = field(default_factory=dict)

    def __enter__(self) -> ModelServers:
        self._front, self._storage = (_Server(("127.0.0.1", 0), _Handler) for _ in range(2))
        for server in (self._front, self._storage):
            server.owner = self
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        for server in (self._front, self._storage):
            server.shutdown()
            server.server_close()

    @property
    def url(self) -> str:
        """http://127.0.0.1:PORT, also for HF_ENDPOINT and as Civitai's address."""
        return _address(self._front)

    def hub(self, repo: str, path: str, data: bytes) -> str:
        """A file in a repository; its `hf://` address."""
        sha256 = hashlib.sha256(data).hexdigest()
        headers = {
            "X-Repo-Commit": COMMIT,
            "X-Linked-ETag": f'"{sha256}"',
            "X-Linked-Size": str(len(data)),
            "Location": self._stored(f"/lfs/{sha256}", data),
        }
        for revision in ("main", COMMIT):
            where = f"/{repo}/resolve/{revision}/{path}"
            self.answers[where] = lambda handler: handler.reply(302, headers)
        return f"hf://{repo}/{path}"

    def civitai(self, version: int, name: str, data: bytes) -> str:
        """A LoRA's version that requires the token; its AIR."""
        file = {
            "name": name,
            "primary": True,
            "sizeKB": len(data) / 1024,
            "type": "Model",
            "hashes": {"SHA256": hashlib.sha256(data).hexdigest().upper()},
        }
        description = {"id": version, "model": {"type": "LORA"}, "files": [file]}
        body = json.dumps(description).encode()
        kind = {"Content-Type": "application/json"}
        location = {"Location": self._stored(f"/signed/{version}", data)}

        def download(handler: _Handler) -> None:
            known = handler.headers.get("Authorization") == f"Bearer {self.token}"
            handler.reply(302 if known else 401, location if known else {})

        self.answers[f"/api/download/models/{version}"] = download
        self.answers[f"/api/v1/model-versions/{version}"] = lambda h: h.reply(200, kind, body)
        return f"urn:air:sd1:lora:civitai:{version // 10}@{version}"

    def plain(self, path: str, data: bytes) -> str:
        """A file on a plain server; its URL."""
        self.files[path] = data
        return self.url + path

    def _stored(self, path: str, data: bytes) -> str:
        """A signed URL, as in object storage; it refuses requests with a login."""
        self.files[path] = data
        return f"{_address(self._storage)}{path}?X-Signature=demo"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    owner: ModelServers

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnect."""


def _address(server: _Server) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def _answer(self) -> None:
        owner, path = self.server.owner, self.path.partition("?")[0]
        owner.requests += 1
        if path in owner.answers:
            owner.answers[path](self)
        elif path not in owner.files:
            self.reply(404, {})
        elif "?" in self.path and "Authorization" in self.headers:
            self.reply(400, {})
        else:
            self._file(owner.files[path])

    def reply(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        """A short answer."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _file(self, data: bytes) -> None:
        wanted = _RANGE.fullmatch(self.headers.get("Range", ""))
        first = int(wanted[1]) if wanted else 0
        end = min(int(wanted[2]) + 1 if wanted and wanted[2] else len(data), len(data))
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{end - 1}/{len(data)}")
        self.send_header("ETag", f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"')
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(end - first))
        self.end_headers()
        for start in range(first, end, _BLOCK):
            block = data[start : min(start + _BLOCK, end)]
            self.wfile.write(block)
            time.sleep(len(block) / self.server.owner.speed)
