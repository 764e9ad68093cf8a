"""A package index on 127.0.0.1 with wheels made on the spot, for a real uv or pip."""

from __future__ import annotations

import base64
import hashlib
import threading
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def make_wheel(
    folder: Path,
    name: str,
    version: str,
    requires: Sequence[str] = (),
    files: Mapping[str, str] | None = None,
    executable: str = "",
) -> Path:
    """A wheel with `files` (by default one module that holds its version)."""
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    contents = {
        **(files or {f"{module}/__init__.py": f"VERSION = {version!r}\n"}),
        f"{info}/METADATA": metadata + "".join(f"Requires-Dist: {r}\n" for r in requires),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{n},{_digest(t)},{len(t.encode())}\n" for n, t in contents.items())
    contents[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n"
    path = folder / f"{module}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for entry, text in contents.items():
            facts = zipfile.ZipInfo(entry, (2026, 1, 1, 0, 0, 0))
            facts.external_attr = (0o100755 if entry == executable else 0o100644) << 16
            wheel.writestr(facts, text)
    return path


class PackageIndex:
    """Serves the wheels in `folder`. `asked` lists the requested paths. While `gate` is not set, no
    wheel is handed out; the end of `serving` sets it. `cut`: the number of bytes after which each
    answer breaks off."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []
        self.gate = threading.Event()
        self.gate.set()
        self.waiting = threading.Event()
        self.port = 0
        self.cut: int | None = None

    def env(self, login: str = "") -> dict[str, str]:
        """Variables that make pip use this index and no other."""
        return {
            "PIP_INDEX_URL": f"http://{login}127.0.0.1:{self.port}/simple",
            "PIP_CONFIG_FILE": "/dev/null",
            "PIP_FIND_LINKS": "",
            "PIP_EXTRA_INDEX_URL": "",
        }

    def wheels_fetched(self) -> list[str]:
        """Names of the wheels that were handed out."""
        return [path.rpartition("/")[2] for path in self.asked if path.endswith(".whl")]

    def page(self, path: str) -> bytes | None:
        """The answer to a path; None for what is not there."""
        if path.startswith("/files/"):
            wheel = self.folder / path.rpartition("/")[2]
            self.waiting.set()
            self.gate.wait(60)
            return wheel.read_bytes() if wheel.is_file() else None
        name = path.strip("/").rpartition("/")[2].replace("-", "_")
        wheels = sorted(self.folder.glob(f"{name}-*.whl"))
        links = [f'<a href="/files/{wheel.name}">{wheel.name}</a>' for wheel in wheels]
        return (
            f"<!doctype html><html><body>{''.join(links)}</body></html>".encode() if links else None
        )


@contextmanager
def serving(folder: Path) -> Iterator[PackageIndex]:
    """An index of the wheels in `folder`, until the end of the block."""
    index = PackageIndex(folder)

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            index.asked.append(self.path)
            self._answer(with_body=True)

        def _answer(self, with_body: bool) -> None:
            if self.path.startswith("/status/"):
                self.send_response(int(self.path.split("/")[2]))
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            content = index.page(self.path)
            self.send_response(404 if content is None else 200)
            whole = content or b""
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(whole)))
            self.end_headers()
            try:
                if with_body:
                    self.wfile.write(whole[: index.cut])
            except OSError:
                pass

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    index.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield index
    finally:
        index.gate.set()
        server.shutdown()
        server.server_close()


def _digest(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return "sha256=" + base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
