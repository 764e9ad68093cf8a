"""A real S3 server on loopback (moto, in its own process), and one that misbehaves."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import boto3
import requests

KEY_ID = "key-id-marker-4711"
SECRET = "secret-marker-0815"
BUCKET = "results"
_SERVER = """
import logging, sys
from moto.server import ThreadedMotoServer
logging.disable(logging.CRITICAL)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True)
class S3Server:
    """`url` ends without a slash; `client` is boto3's, with all permissions; `pid` the server's."""

    url: str
    client: Any
    pid: int

    @property
    def env(self) -> dict[str, str]:
        """The settings of a worker that uploads here."""
        return {
            "BUCKET_ENDPOINT_URL": self.url,
            "BUCKET_ACCESS_KEY_ID": KEY_ID,
            "BUCKET_SECRET_ACCESS_KEY": SECRET,
            "BUCKET_NAME": BUCKET,
        }

    def stored(self) -> list[str]:
        """The keys of all objects in the bucket."""
        listed = self.client.list_objects_v2(Bucket=BUCKET)
        return [item["Key"] for item in listed.get("Contents", [])]


@contextlib.contextmanager
def s3_server() -> Iterator[S3Server]:
    """A server with one empty bucket."""
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    try:
        url = f"http://127.0.0.1:{int(process.stdout.readline())}"
        _wait_for(url)
        client = boto3.client(
            "s3",
            endpoint_url=url,
            aws_access_key_id=KEY_ID,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
        )
        client.create_bucket(Bucket=BUCKET)
        yield S3Server(url, client, process.pid)
    finally:
        process.kill()
        process.communicate()


def _wait_for(url: str) -> None:
    for _ in range(200):
        with contextlib.suppress(requests.ConnectionError):
            requests.get(url, timeout=5)
            return
        time.sleep(0.05)
    raise AssertionError(f"no S3 server at {url}")


@dataclass
class Misbehaviour:
    """What the bad server does with each request: answer a status with S3's XML, or hang up after
    some bytes of the body; `lies_about_size` is the size that HEAD claims. With `write_only` only a
    HEAD is refused; `head` is its status otherwise."""

    status: int = 403
    code: str = "AccessDenied"
    cut_after: int | None = None
    lies_about_size: int | None = None
    write_only: bool = False
    head: int | None = None
    seen: list[str] = field(default_factory=list)


@contextlib.contextmanager
def bad_s3_server(way: Misbehaviour) -> Iterator[str]:
    """The URL of a server that does nothing right."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

        def do_PUT(self) -> None:
            way.seen.append(f"PUT {self.path}")
            length = int(self.headers.get("Content-Length", 0))
            if way.cut_after is not None:
                self.rfile.read(min(way.cut_after, length))
                self.close_connection = True
                return
            self.rfile.read(length)
            if way.lies_about_size is None and not way.write_only:
                self._answer(way.status)
            else:
                self.send_response(200)
                self.send_header("ETag", '"x"')
                self.send_header("Content-Length", "0")
                self.end_headers()

        def do_HEAD(self) -> None:
            way.seen.append(f"HEAD {self.path}")
            self.send_response(way.status if way.write_only else way.head or 200)
            self.send_header("Content-Length", str(way.lies_about_size or 0))
            self.end_headers()

        def _answer(self, status: int) -> None:
            said = f"no rights for {KEY_ID} with {SECRET}"
            body = f"<Error><Code>{way.code}</Code><Message>{said}</Message></Error>".encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Broken connections are what this server is for."""

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
