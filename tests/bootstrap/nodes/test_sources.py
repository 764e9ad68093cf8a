"""Branches, tags and versions, asked from real servers: pinned, or refused with what to do."""

from __future__ import annotations

import socket
import threading
from typing import Any

import pytest

from bootstrap.net import DownloadError
from bootstrap.nodes.manifest import RegistryPin
from bootstrap.nodes.sources import PackSources, fetch_small
from tests.support.pack_server import COMMIT, OTHER, PackServer, from_git, from_registry, refs
from tests.support.provisioning import MARKER, options
from tests.support.trickling_server import PARTS, trickling


@pytest.fixture
def sources(server: PackServer) -> PackSources:
    return server.sources()


def refused(code: str, ask: Any, *given: Any) -> DownloadError:
    with pytest.raises(DownloadError) as caught:
        ask(*given)
    assert caught.value.code == code and caught.value.fix, caught.value.message
    return caught.value


@pytest.mark.parametrize(
    ("ref", "commit"),
    [(None, COMMIT), ("main", COMMIT), ("dev", OTHER), ("v1", COMMIT), (OTHER, OTHER)],
)
def test_a_branch_or_tag_becomes_a_commit(
    server: PackServer, sources: PackSources, ref: str | None, commit: str
) -> None:
    url = server.repository("owner/A-Pack")
    pin = sources.pin(url, ref)
    assert (pin.url, pin.commit) == (url, commit)


def test_a_name_that_a_repository_lacks(server: PackServer, sources: PackSources) -> None:
    url = server.repository("owner/A-Pack")
    refused("nodes.no_ref", sources.pin, url, "nope")
    refused("nodes.no_ref", sources.pin, url, COMMIT[:10])
    refused("download.not_found", sources.pin, f"{server.url}/owner/none", None)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>log in</html>",
        b"001e# service=git-upload-pack\n0000",
        b"ffff",
        b"zzzz",
        b"0" * 999,
    ],
)
def test_what_is_not_a_list_of_branches(
    server: PackServer, sources: PackSources, content: bytes
) -> None:
    server.serve("/owner/A-Pack/info/refs", content)
    refused("nodes.bad_answer", sources.pin, f"{server.url}/owner/A-Pack", None)


def test_an_answer_without_end_is_given_up(server: PackServer) -> None:
    server.serve("/endless", b"x" * 3_000_000, chunked=True)
    refused("nodes.too_large", fetch_small, server.url + "/endless", options(), 1_000_000)


def test_an_answer_that_trickles_is_given_up(server: PackServer) -> None:
    server.serve("/slow", b"x" * 100_000, trickle=True)
    slow = options(stall=0.5, attempts=0, slowest=1024)
    refused("download.stalled", fetch_small, server.url + "/slow", slow, 1_000_000)


@pytest.mark.parametrize("part", PARTS)
def test_so_is_one_that_trickles_outside_its_body(part: str) -> None:
    """A socket's time-out starts again with each byte; nothing but the clock ends that."""
    with trickling(part) as slow:
        patience = options(stall=0.5, attempts=0)
        refused("download.stalled", fetch_small, slow.url + "/slow", patience, 1_000_000)


def test_an_invalid_answer_is_quoted_short_and_printable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"\x1b[2J\x00" * 5000 + b"\r\n")

        threading.Thread(target=answer, daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/x"
        problem = refused("download.unreachable", fetch_small, url, options(attempts=0), 1000)
    assert problem.message.isprintable() and len(problem.message) < 1500


def test_the_newest_version_and_one_by_its_number(server: PackServer, sources: PackSources) -> None:
    server.pack("some-pack", "1.2.3")
    assert sources.newest("some-pack") == RegistryPin("some-pack", "1.2.3")
    assert sources.version("some-pack", "1.2.3") == RegistryPin("some-pack", "1.2.3")
    refused("nodes.no_pack", sources.version, "some-pack", "9.9.9")
    refused("nodes.no_pack", sources.newest, "other")
    server.answer("/nodes/empty", {"id": "empty"})
    nonsense: list[Any] = [5, [5], "text", [[]]]
    for answer in nonsense:
        server.answer("/nodes/odd/versions", answer)
        refused("nodes.bad_answer", sources.version, "odd", "1.0.0")
    refused("nodes.no_pack", sources.newest, "empty")
    asked = next(path for path, _ in server.seen if "/versions" in path)
    assert "Active" in asked and "Pending" in asked and "Banned" not in asked


def test_a_plan_asks_without_counting_as_an_installation(
    server: PackServer, sources: PackSources
) -> None:
    server.pack("some-pack", "1.2.3")
    assert sources.check(from_registry()) is None
    assert server.asked("/install") == 0
    assert (sources.check(from_git(server.repository("o/A-Pack"))) or 0) > 100
    refused("nodes.no_ref", sources.check, from_git(f"{server.url}/o/A-Pack", OTHER))


def test_a_token_goes_to_its_own_host_only(
    server: PackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bootstrap.core.redact import Secret
    from bootstrap.models.sources import https

    monkeypatch.setattr(https, "_SCHEMES", {"http"})
    with PackServer() as other:
        other.serve("/o/A-Pack/info/refs", refs({"HEAD": COMMIT}))
        server.serve("/o/A-Pack/info/refs", b"", redirect=f"{other.url}/o/A-Pack/info/refs")
        own = https.Https(Secret(MARKER), server.host_port)
        sources = PackSources(options(), own, server.url)
        assert sources.pin(f"{server.url}/o/A-Pack", None).commit == COMMIT
        assert any(MARKER in headers.get("authorization", "") for _, headers in server.seen)
        assert not any(MARKER in str(headers) for _, headers in other.seen)
