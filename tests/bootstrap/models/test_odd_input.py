"""Numbers and texts that no honest server or file has: each gets its own code, none an exception
that nothing expects."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path

import pytest

from bootstrap.core.concurrency import ByteSemaphore
from bootstrap.core.text import size_text, whole
from bootstrap.models.download.verify import Wanted
from bootstrap.models.manifest_entry import read_entry
from bootstrap.models.sources import parse_link
from bootstrap.models.sources.civitai import size_of
from bootstrap.models.sources.https import Https
from bootstrap.models.weights_file import WeightsState, examine
from bootstrap.net import DownloadError
from tests.support.provisioning import bring, options, spec

DIGITS = "9" * 5000


def served(*headers: str, status: str = "200 OK") -> str:
    """The URL of a server that answers every request so."""
    listener = socket.create_server(("127.0.0.1", 0))
    answer = "\r\n".join([f"HTTP/1.1 {status}", *headers, "", "x"]).encode("latin-1")

    def serve() -> None:
        while True:
            client, _ = listener.accept()
            with client:
                client.recv(65536)
                client.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}/m.safetensors"


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ((f"Content-Length: {DIGITS}",), "200 OK", "download.bad_answer"),
        (("Content-Length: \xb2",), "200 OK", "download.bad_answer"),
        ((f"Content-Range: bytes 0-0/{DIGITS}",), "206 Partial", "download.bad_answer"),
        ((f"Content-Range: bytes {DIGITS}-{DIGITS}/*",), "206 Partial", "download.bad_answer"),
        ((f"Retry-After: {DIGITS}", "Content-Length: 1"), "429 Slow", "download.rate_limited"),
        ((f"Location: https://{'a' * 70000}",), "302 Found", None),
        ((f'ETag: "{"e" * 60000}"', "Content-Length: 1"), "200 OK", None),
        (("Content-Disposition: filename*=UTF-8''%ED%A0%BD",), "200 OK", None),
    ],
)
def test_odd_headers_have_a_code(
    headers: tuple[str, ...], status: str, code: str | None, tmp_path: Path
) -> None:
    url = served(*headers, status=status)
    found = None
    try:
        Https().locate(parse_link(url), None, Wanted("m.safetensors", 1), options().channel())
    except DownloadError as refused:
        found = refused.code
    assert code in (None, found)
    problem = bring(tmp_path, spec(url), options=options(attempts=1)).problem
    assert problem is not None and problem.code != "download.crashed"


def test_a_header_whose_numbers_lie_is_damaged_not_a_crash(tmp_path: Path) -> None:
    for last in (10**4000, 2**63, -1, 1.5, "1", None):
        header = json.dumps({"a": {"dtype": "F32", "data_offsets": [0, last]}}).encode()
        path = tmp_path / "m.safetensors"
        path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 8)
        examined = examine(str(path), path.stat().st_size, ByteSemaphore(1 << 20))
        assert examined.state is WeightsState.DAMAGED, last


def test_sizes_that_nothing_has_are_shown_and_not_believed() -> None:
    assert size_text(10**4000) == size_text(2**63)
    assert size_text(10**4000) == size_text(2**63)
    for kib in (1e999, float("nan"), 10**4000, -1, True, "1"):
        assert size_of({"sizeKB": kib}) is None
    assert [whole(text) for text in ("", "²", "٣", "-1", DIGITS, "007")] == [None] * 5 + [7]


@pytest.mark.parametrize("field", ["url", "name", "directory", "hash", "revision"])
def test_half_characters_in_an_entry_are_complained_of(field: str) -> None:
    entry = {"name": "m.safetensors", "url": "https://a.example/m", "directory": "loras"}
    wanted, complaints = read_entry({**entry, field: "https://a.example/\ud83d"}, "models[0]")
    assert wanted is None
    assert field in {complaint.field for complaint in complaints}
    _, complaints = read_entry({**entry, "size": 10**4000}, "models[0]")
    assert [complaint.field for complaint in complaints] == ["size"]
