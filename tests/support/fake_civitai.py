"""Civitai as measured: no HEAD, a redirect to storage on another port that answers 400 to an
Authorization header, signatures that expire, and the API's JSON. `Sites` serves real host names
over TLS."""

from __future__ import annotations

import datetime
import hashlib
import json
import socket
import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from bootstrap.net import http
from bootstrap.net.addresses import AddressPolicy
from tests.support.vicious_server import Served, ViciousServer


class FakeCivitai:
    """`url` is the API's base. `token` opens what is `locked`. Use as a context manager."""

    def __init__(self, token: str = "") -> None:
        self.front = ViciousServer()
        self.storage = ViciousServer()
        self.token = token
        self._signatures = 0

    def __enter__(self) -> FakeCivitai:
        self.front.__enter__()
        self.storage.__enter__()
        return self

    def __exit__(self, *_: Any) -> None:
        self.front.__exit__(None, None, None)
        self.storage.__exit__(None, None, None)

    @property
    def url(self) -> str:
        """The base to give to `Civitai`."""
        return self.front.url

    def publish(
        self,
        version: int,
        data: bytes,
        name: str = "m.safetensors",
        model_type: str = "LORA",
        locked: bool = False,
        **file: Any,
    ) -> None:
        """A version with one file."""
        stored = f"/signed/{version}"
        self.storage.serve(
            stored,
            data,
            disposition=f'attachment; filename="{name}"',
            needs=lambda headers: 400 if "authorization" in headers else None,
        )
        download = Served(b"", redirect=f"{self.storage.url}{stored}?X-Signature=s3cret-signature")
        if locked:
            download.needs = self._login
            download.body = json.dumps({"error": "Unauthorized"}).encode()
            download.headers = {"Content-Type": "application/json"}
        self.front.files[f"/api/download/models/{version}"] = download
        description = {
            "id": version,
            "model": {"name": "A model", "type": model_type},
            "files": [
                {
                    "id": version * 10,
                    "name": name,
                    "sizeKB": len(data) / 1024,
                    "type": "Model",
                    "primary": True,
                    "hashes": {"SHA256": hashlib.sha256(data).hexdigest().upper()},
                    "metadata": {"format": "SafeTensor", "fp": "fp16", "size": "pruned"},
                    **file,
                }
            ],
        }
        self._json(f"/api/v1/model-versions/{version}", description)
        self._json(f"/api/v1/models/{version // 10}", {"modelVersions": [{"id": version}]})

    def describe_files(self, version: int, files: list[dict[str, Any]]) -> None:
        """What the API says about a version's files, whatever is stored."""
        described = {"id": version, "model": {"type": "Checkpoint"}, "files": files}
        self._json(f"/api/v1/model-versions/{version}", described)

    def refuse(self, version: int, status: int, body: dict[str, Any] | None = None) -> None:
        """Answer `status` to every request for a version."""
        self.front.files[f"/api/download/models/{version}"] = Served(
            b"",
            status=status,
            body=json.dumps(body or {"error": "no"}).encode(),
            headers={"Content-Type": "application/json"},
        )

    def _json(self, path: str, data: Any) -> None:
        self.front.serve(path, json.dumps(data).encode(), content_type="application/json")

    def _login(self, headers: dict[str, str]) -> int | None:
        return None if headers.get("authorization") == f"Bearer {self.token}" else 401


Answer = tuple[int, dict[str, str], bytes]


class Sites:
    """Any https host, played by one local TLS server: the client resolves names, checks
    certificates and follows redirects as usual, except that all names lead here and port 443 is
    another one. `answer` takes host, path and headers (names in lower case); `seen` holds these for
    every request. Use as a context manager."""

    def __init__(
        self, folder: Path, answer: Callable[[str, str, dict[str, str]], Answer], *hosts: str
    ) -> None:
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        self.policy = AddressPolicy(allow_private=True, resolve=lambda host, port: ["127.0.0.1"])
        self._certificate = folder / "sites.pem"
        self._patch = pytest.MonkeyPatch()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler(answer))
        _write_certificate(self._certificate, hosts)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._certificate)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)

    def __enter__(self) -> Sites:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        connect, port = socket.create_connection, self._server.server_address[1]

        def to_us(address: tuple[str, int], timeout: float | None = None) -> socket.socket:
            return connect((address[0], port) if address[1] == 443 else address, timeout)

        self._patch.setattr(socket, "create_connection", to_us)
        self._patch.setenv("SSL_CERT_FILE", str(self._certificate))
        http._context.cache_clear()
        return self

    def __exit__(self, *_: Any) -> None:
        self._patch.undo()
        http._context.cache_clear()
        self._server.shutdown()
        self._server.server_close()

    def _handler(
        self, answer: Callable[[str, str, dict[str, str]], Answer]
    ) -> type[BaseHTTPRequestHandler]:
        seen = self.seen

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                seen.append((headers["host"], self.path, headers))
                status, more, body = answer(headers["host"], self.path, headers)
                self.send_response(status)
                for name, value in more.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler


def _write_certificate(path: Path, hosts: tuple[str, ...]) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tests")])
    now = datetime.datetime.now(datetime.timezone.utc)
    names = x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=2))
        .add_extension(names, critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    path.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(pem)
    )
