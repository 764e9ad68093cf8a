"""Misbehaving servers of every kind: no wrong file gets the final name."""

from __future__ import annotations

import errno
import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from bootstrap.core.files import Disk
from bootstrap.models.download.download import Download
from bootstrap.models.download.part import Part, sweep
from bootstrap.models.download.progress import FileMeter
from bootstrap.models.download.remote import RateLimiter, Remote
from bootstrap.models.download.transfer import SMALLEST, Blocks, RangeFetch
from bootstrap.models.download.verify import Wanted
from bootstrap.models.provision import ProvisionResult
from bootstrap.models.sources.https import Https
from bootstrap.net import DownloadError, Stopped
from bootstrap.net.addresses import AddressPolicy, is_public
from bootstrap.net.http import Channel, explain
from tests.support.provisioning import (
    bring,
    bytes_asked,
    options,
    sha256,
    spec,
    tensors,
    visible,
)
from tests.support.vicious_server import ViciousServer
from tests.support.waiting import wait_until

SMALL = tensors(300_000)
LARGE = tensors(10_000_000, seed=1)
OTHER = tensors(10_000_000, seed=2)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


def assert_failed(result: ProvisionResult, models: Path, code: str, *words: str) -> None:
    assert result.problem is not None, result
    assert result.problem.code == code, result.problem
    assert result.problem.fix
    for word in words:
        assert word in f"{result.problem.message} {result.problem.fix}"
    assert visible(models) == []


def assert_brought(result: ProvisionResult, models: Path, data: bytes) -> None:
    assert result.state == "fetched", result.problem and result.problem.message
    assert visible(models) == ["loras/m.safetensors"]
    assert (models / "loras/m.safetensors").read_bytes() == data
    assert result.receipt is not None
    assert result.receipt.sha256 == sha256(data)


@pytest.mark.parametrize(
    "vices",
    [
        {},
        {"ranges": False},
        {"cut_after": 3_000_000, "cuts": 8},
        {"cut_after": 1_000_000},
        {"sends_more": 7},
        {"etag": None},
        {"etag": 'W/"weak"'},
        {"etag": None, "modified": "Wed, 01 Jan 2025 00:00:00 GMT"},
        {"ranges": False, "chunked": True},
        {"ranges": False, "no_length": True},
        {"whole_after": 3},
        {"restarts_at_zero": True, "ranges": False},
        {"statuses": {2: 503, 4: 500, 5: 429}},
        {"honours_if_range": False},
        {"becomes": (4, "other")},
        {"becomes": (4, "other"), "honours_if_range": False},
    ],
    ids=str,
)
def test_a_file_arrives_complete_in_spite_of(
    vices: dict[str, Any], server: ViciousServer, models: Path
) -> None:
    if "becomes" in vices:
        vices = {**vices, "becomes": (4, OTHER)}
    url = server.serve("/m.safetensors", LARGE, **vices)
    result = bring(models, spec(url))
    assert_brought(result, models, OTHER if "becomes" in vices else LARGE)


@pytest.mark.parametrize(
    ("vices", "code"),
    [
        ({"status": 401}, "download.login_needed"),
        ({"status": 403}, "download.forbidden"),
        ({"status": 404}, "download.not_found"),
        ({"status": 410}, "download.gone"),
        ({"status": 429}, "download.rate_limited"),
        ({"status": 418}, "download.http_status"),
        ({"status": 500}, "download.http_status"),
        ({"content_type": "text/html; charset=utf-8"}, "download.not_a_model"),
        ({"content_type": "application/json"}, "download.not_a_model"),
        ({"encoding": "gzip"}, "download.bad_answer"),
        ({"restarts_at_zero": True}, "download.bad_answer"),
        ({"claims_more": 5, "ranges": False}, "download.unreachable"),
        ({"stall_after": 100_000}, "download.stalled"),
        ({"trickle": True}, "download.stalled"),
        ({"cut_after": 0}, "download.unreachable"),
        ({"redirect": "/m.safetensors"}, "download.redirect_loop"),
    ],
    ids=str,
)
def test_a_fault_is_named_and_nothing_is_left(
    vices: dict[str, Any], code: str, server: ViciousServer, models: Path
) -> None:
    url = server.serve("/m.safetensors", tensors(9_000_000), **vices)
    patience = options(attempts=1, stall=0.3 if code == "download.stalled" else 30.0)
    result = bring(models, spec(url), options=patience)
    assert result.problem is not None
    assert result.problem.code == code
    assert result.problem.fix
    assert not (models / "loras/m.safetensors").exists()


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "download.empty"),
        (b"<!DOCTYPE html><html>login</html>", "download.not_a_model"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "download.not_a_model"),
        (SMALL[:-1], "download.bad_header"),
        (SMALL + b"x", "download.bad_header"),
        (b"\0" * 5000, "download.bad_header"),
        (b"\x10\0\0\0\0\0\0\0{broken}", "download.bad_header"),
    ],
    ids=["empty", "html", "lfs", "truncated", "longer", "zeros", "json"],
)
@pytest.mark.parametrize("ranges", [True, False])
def test_what_is_not_a_model_is_not_kept(
    content: bytes, code: str, ranges: bool, server: ViciousServer, models: Path
) -> None:
    url = server.serve("/m.safetensors", content, ranges=ranges)
    assert_failed(bring(models, spec(url)), models, code)


def test_a_wrong_hash_shows_both_and_keeps_nothing(server: ViciousServer, models: Path) -> None:
    url = server.serve("/m.safetensors", SMALL)
    result = bring(models, spec(url, hash="0" * 64))
    assert_failed(result, models, "download.hash_mismatch", "0" * 64, sha256(SMALL))


def test_a_wrong_size_is_seen_before_fetching(server: ViciousServer, models: Path) -> None:
    url = server.serve("/m.safetensors", SMALL)
    result = bring(models, spec(url, size=len(SMALL) + 1))
    assert_failed(result, models, "download.size_mismatch", f"{len(SMALL):,}")
    assert len(server.seen) == 1


def test_ranges_are_parallel(server: ViciousServer, models: Path) -> None:
    """None is answered before three are asked for."""
    asked: set[str] = set()

    def with_others(headers: dict[str, str]) -> None:
        if headers["range"] != "bytes=0-0":
            asked.add(headers["range"])
            wait_until(lambda: len(asked) >= 3)

    url = server.serve("/m.safetensors", LARGE, needs=with_others)
    patient = options(stall=30.0)
    assert_brought(bring(models, spec(url), options=patient), models, LARGE)


def test_a_connection_is_kept_for_the_next_range_and_fills_one_buffer(
    server: ViciousServer,
) -> None:
    url = server.serve("/m.safetensors", LARGE)
    channel = Channel(AddressPolicy(allow_private=True))
    buffers: list[object] = []
    for first in (0, 1_000_000):
        reply = channel.get(url, headers={"Range": f"bytes={first}-{first + 299_999}"})
        brought = b""
        while piece := reply.read_some(64 * 1024):
            buffers.append(piece.obj)
            brought += piece
        assert brought == LARGE[first : first + 300_000]
    channel.close()
    assert len(server.clients) == 1
    assert len(set(map(id, buffers))) == 2 and len(buffers) >= 10


def test_a_bandwidth_limit_holds(server: ViciousServer, models: Path) -> None:
    url = server.serve("/m.safetensors", LARGE)
    started = time.monotonic()
    limited = options(rate_limiter=RateLimiter(10e6))
    assert_brought(bring(models, spec(url), options=limited), models, LARGE)
    assert time.monotonic() - started > 0.7


def stopped_midway(url: str, models: Path, data: bytes, at: float = 0.5) -> Download:
    """Begin a download and stop it at a share of the file; what is there is left for others."""
    stop = threading.Event()

    class StopsMidway(FileMeter):
        def add(self, count: int) -> None:
            super().add(count)
            if self.done > len(data) * at:
                stop.set()
                time.sleep(0.5)  # for each 64 KB that come before it stops

    source, wanted = Https(), Wanted("m.safetensors")
    link = spec(url)
    from bootstrap.models.sources import parse_link

    def locate(channel: Any) -> Any:
        return source.locate(parse_link(link.url), None, wanted, channel)

    meter = StopsMidway("m", None)
    download = Download(locate, models / "loras/m.safetensors", wanted, options(), meter)
    with pytest.raises(Stopped):
        download.run(stop)
    return download


def test_a_stopped_download_goes_on_from_there(server: ViciousServer, models: Path) -> None:
    url = server.serve("/m.safetensors", LARGE)
    stopped_midway(url, models, LARGE)
    server.seen.clear()
    assert_brought(bring(models, spec(url)), models, LARGE)
    assert bytes_asked(server) < len(LARGE) * 0.6


@pytest.mark.parametrize("how", ["changed", "no validator", "damaged note", "short part"])
def test_a_part_that_cannot_be_trusted_is_not_resumed(
    how: str, server: ViciousServer, models: Path
) -> None:
    url = server.serve("/m.safetensors", LARGE)
    stopped_midway(url, models, LARGE)
    (note,) = (models / "loras").glob(".model-*.state")
    if how == "changed":
        server.serve("/m.safetensors", OTHER)
    elif how == "no validator":
        server.files["/m.safetensors"].etag = None
    elif how == "damaged note":
        note.write_text(note.read_text()[:-20])
    else:
        os.truncate(note.with_suffix(".part"), 1000)
    result = bring(models, spec(url))
    assert result.receipt is not None
    data = OTHER if how == "changed" else LARGE
    assert (models / "loras/m.safetensors").read_bytes() == data


def test_bad_bytes_in_a_resumed_part_are_found_and_fetched_again(
    server: ViciousServer, models: Path
) -> None:
    url = server.serve("/m.safetensors", LARGE)
    stopped_midway(url, models, LARGE)
    (part,) = (models / "loras").glob(".model-*.part")
    with open(part, "r+b") as file:
        file.seek(1000)
        file.write(b"damage")
    assert_brought(bring(models, spec(url, hash=sha256(LARGE))), models, LARGE)


def test_an_expired_signed_url_is_asked_for_again(server: ViciousServer, models: Path) -> None:
    served = {f"/signed{n}": server.serve(f"/signed{n}", LARGE) for n in (1, 2)}
    server.files["/signed1"].statuses = dict.fromkeys(range(3, 99), 403)
    url = server.serve("/m.safetensors", LARGE, redirect=served["/signed1"])

    def second_time(_headers: dict[str, str]) -> int | None:
        if server.files["/m.safetensors"].requests > 1:
            server.files["/m.safetensors"].redirect = served["/signed2"]
        return None

    server.files["/m.safetensors"].needs = second_time
    assert_brought(bring(models, spec(url)), models, LARGE)


# --- disk -------------------------------------------------------------------------------------


class FullDisk(Disk):
    """Fails with `code` in one call."""

    def __init__(self, call: str, code: int) -> None:
        self.call, self.code = call, code

    def _fail(self, call: str) -> None:
        if call == self.call:
            raise OSError(self.code, os.strerror(self.code))

    def write_at(self, descriptor: int, data: memoryview, position: int) -> None:
        if len(data) > 1000:
            self._fail("write")
        super().write_at(descriptor, data, position)

    def flush(self, descriptor: int) -> None:
        self._fail("flush")
        super().flush(descriptor)

    def close(self, descriptor: int) -> None:
        super().close(descriptor)
        self._fail("close")

    def free_bytes(self, folder: Path) -> int:
        return 1000 if self.call == "look" else super().free_bytes(folder)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["write", "flush", "close", "look"])
@pytest.mark.parametrize("ranges", [True, False])
def test_a_full_disk_is_reported_with_what_is_needed(
    call: str, code: int, ranges: bool, server: ViciousServer, models: Path
) -> None:
    url = server.serve("/m.safetensors", LARGE, ranges=ranges)
    result = bring(models, spec(url), options=options(disk=FullDisk(call, code)))
    assert_failed(result, models, "download.no_space", "enlarge the network volume")
    if call == "look":
        assert "9.5 MiB" in (result.problem.message if result.problem else "")


class NoLinks(Disk):
    def link(self, source: Path, target: Path) -> None:
        raise OSError(errno.EOPNOTSUPP, "no hard links")


class NoLinksNoRename(NoLinks):
    def rename_to_free_name(self, source: Path, target: Path) -> None:
        raise OSError(errno.EINVAL, "no renameat2")


@pytest.mark.parametrize("disk", [Disk(), NoLinks(), NoLinksNoRename()])
def test_publishing_never_replaces(disk: Disk, server: ViciousServer, models: Path) -> None:
    """Another file appears while ours is being fetched."""
    final = models / "loras/m.safetensors"

    def appear(_headers: dict[str, str]) -> int | None:
        if server.files["/m.safetensors"].requests == 2:
            final.write_bytes(OTHER)
        return None

    url = server.serve("/m.safetensors", LARGE, needs=appear)
    result = bring(models, spec(url, hash=sha256(LARGE)), options=options(disk=disk))
    assert result.problem is not None
    assert result.problem.code == "download.occupied"
    assert visible(models) == ["loras/m.safetensors"]
    assert final.read_bytes() == OTHER


@pytest.mark.parametrize("disk", [NoLinks(), NoLinksNoRename()])
def test_it_publishes_without_hard_links(disk: Disk, server: ViciousServer, models: Path) -> None:
    url = server.serve("/m.safetensors", LARGE)
    assert_brought(bring(models, spec(url), options=options(disk=disk)), models, LARGE)


def test_old_leftovers_are_swept_and_nothing_else(tmp_path: Path) -> None:
    key, owner = "0123456789abcdef", "fedcba9876543210"
    ours = [f".model-{key}-{owner}.{end}" for end in ("part", "state", "state-new", "lease-old")]
    theirs = [".model-x.part", "m.safetensors", f".model-{key}-{owner}.part.safetensors", "a.part"]
    for name in [*ours, f".model-{key}.lease", *theirs]:
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, (1e9, 1e9))
    young = f".model-{key}-{owner[::-1]}.part"
    (tmp_path / young).write_bytes(b"x")
    assert sweep(tmp_path) == len(ours) + 1
    assert sorted(os.listdir(tmp_path)) == sorted([*theirs, young])


# --- addresses --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    "127.0.0.1 10.1.2.3 172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1 0.0.0.0 224.0.0.1 "
    "255.255.255.255 ::1 :: fe80::1 fc00::1 ff02::1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 "
    "64:ff9b::7f00:1 2002:7f00:1:: fec0::1 ::7f00:1".split(),
)
def test_private_addresses_in_any_notation(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8"])
def test_public_addresses(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1/m.safetensors",
        "https://127.1/m.safetensors",
        "https://2130706433/m.safetensors",
        "https://0x7f.1/m.safetensors",
        "https://[::1]/m.safetensors",
        "https://[::ffff:127.0.0.1]/m.safetensors",
        "https://localhost/m.safetensors",
        "https://localhost./m.safetensors",
    ],
)
def test_private_urls_are_refused(url: str, models: Path) -> None:
    result = bring(models, spec(url), options=options(policy=AddressPolicy()))
    assert_failed(result, models, "download.private_address", "ALLOW_PRIVATE_DOWNLOAD_URLS")


def test_a_name_is_resolved_once_and_that_address_is_used(
    server: ViciousServer, models: Path
) -> None:
    """A name server's second, different answer is never requested."""
    port = int(server.url.rpartition(":")[2])
    answers = iter([["127.0.0.1"], ["10.0.0.1"]])
    policy = AddressPolicy(
        exempt=frozenset({f"models.example:{port}"}), resolve=lambda host, p: next(answers)
    )
    server.serve("/m.safetensors", SMALL)
    url = f"http://models.example:{port}/m.safetensors"
    channel = options(policy=policy).channel()
    assert channel.get(url).status == 200
    assert server.seen[0][1]["host"] == f"models.example:{port}"


@pytest.mark.parametrize(
    ("target", "code"),
    [
        ("https://10.0.0.1/m", "download.private_address"),
        ("http://1.1.1.1/m", "download.redirect_refused"),
        ("file:///etc/passwd", "download.redirect_refused"),
        ("https://user:pw@1.1.1.1/m", "download.redirect_refused"),
        ("", "download.bad_answer"),
    ],
)
def test_redirects_are_judged_like_urls(
    target: str, code: str, server: ViciousServer, models: Path
) -> None:
    url = server.serve("/m.safetensors", SMALL, redirect=target)
    policy = AddressPolicy(exempt=frozenset({server.host_port}))
    result = bring(models, spec(url), options=options(policy=policy))
    assert_failed(result, models, code)
    assert "pw" not in str(result.problem and result.problem.message)


def test_a_proxy_of_the_environment_is_not_asked(
    server: ViciousServer, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would learn what is fetched, and resolve names that were checked here."""
    with ViciousServer() as proxy:
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
            monkeypatch.setenv(name.upper(), proxy.url)
        monkeypatch.setenv("no_proxy", "")
        result = bring(models, spec(server.serve("/m.safetensors", SMALL)))
        assert proxy.clients == set()
    assert_brought(result, models, SMALL)


def test_a_circle_of_redirects_is_left(server: ViciousServer, models: Path) -> None:
    url = server.serve("/a", b"", redirect="/b")
    server.serve("/b", b"", redirect="/a")
    assert_failed(bring(models, spec(url)), models, "download.redirect_loop")
    assert len(server.seen) < 30


# --- bookkeeping ------------------------------------------------------------------------------


def test_blocks_cover_the_file_once_and_large_ones_come_first() -> None:
    size = 1_000_000_007
    blocks = Blocks(size, [(5, 10), (600, 700)], connections=16)
    spans: list[tuple[int, int]] = []
    while (span := blocks.take()) and len(spans) < 10_000:
        length = span.end - span.position
        spans.append((span.position, length))
        blocks.advance(span, length)
        blocks.finish(span)
    assert blocks.missing == 0
    assert blocks.wait_beyond(0, 0) == size
    assert sum(length for _, length in spans) == size - 105
    assert blocks.done_ranges() == [(0, size)]
    assert max(spans, key=lambda s: s[1])[1] > 2 * spans[-1][1]


def test_an_idle_connection_takes_half_of_the_slowest() -> None:
    blocks = Blocks(8_000_000, connections=1)
    first = blocks.take()
    assert first is not None
    thief = blocks.take()
    while thief is not None and thief.end != first.end:
        first, thief = (first, None) if thief.position == first.end else (thief, blocks.take())
    assert blocks.missing == 8_000_000


def test_a_given_back_range_is_taken_again() -> None:
    blocks = Blocks(3_000_000, connections=4)
    span = blocks.take()
    assert span is not None
    blocks.advance(span, 1000)
    blocks.finish(span)
    again = blocks.take()
    assert again is not None
    assert again.position == 1000
    assert blocks.done_ranges() == [(0, 1000)]


def test_an_error_is_an_exception_with_code_and_fix() -> None:
    problem = DownloadError("download.gone", "it is gone.", "Find another.")
    finding = problem.finding("loras/m.safetensors")
    assert finding.code == "download.gone"
    assert finding.message == "loras/m.safetensors: it is gone."


def test_connections_that_give_up_at_the_same_moment_say_why(tmp_path: Path) -> None:
    """Neither is the last one then."""

    class Together:
        """A lock that both have left before either goes on."""

        def __init__(self) -> None:
            self._lock = threading.Lock()
            self._both = threading.Barrier(2)

        def __enter__(self) -> None:
            self._lock.acquire()

        def __exit__(self, *_: object) -> None:
            self._lock.release()
            with suppress(threading.BrokenBarrierError):
                self._both.wait(5)

    def nowhere(channel: Channel) -> Remote:
        raise AssertionError

    size = 2 * SMALLEST
    gone = Remote("http://127.0.0.1:9/m", "x", explain, size=size)
    part = Part.create(tmp_path, "m.safetensors", Disk())
    blocks = Blocks(size, connections=2)
    given = options(attempts=0, connections=2)
    fetch = RangeFetch(gone, nowhere, part, blocks, given, lambda count: None)
    fetch._lock = Together()  # type: ignore[assignment]
    with pytest.raises(DownloadError) as raised:
        fetch.run(threading.Event())
    assert raised.value.code == "download.unreachable"
    part.discard()
