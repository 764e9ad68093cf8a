"""A request's URLs: fetched from servers that cut, stall, lie and redirect, and only from public
addresses."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bootstrap.config import Settings
from bootstrap.volume import Layout
from handler.common import errors
from handler.common.blocking import Calls
from handler.common.errors import CODES, Deadline, JobError
from handler.inputs.fetch import Fetcher, RemoteFile
from handler.inputs.job_inputs import JobInputs
from handler.inputs.volume_cache import VolumeInputs
from handler.request.fields import InputFile
from tests.support.vicious_server import ViciousServer
from tests.support.waiting import until, wait_until

PNG = b"\x89PNG\r\n\x1a\n" + b"pixel" * 100
QUERY = "?token=query-marker-99"
CALLS = Calls.on(Path("/"))
NETWORK = CALLS.network
LENIENT = Settings(allow_private_urls=True, max_input_mb=1, input_timeout=5)


@pytest.fixture(scope="module")
def server() -> Iterator[ViciousServer]:
    with ViciousServer() as running:
        yield running


def fetcher(settings: Settings = LENIENT, seconds: float = 30) -> Fetcher:
    return Fetcher(settings, Deadline(seconds), NETWORK)


def fetch(wanted: Sequence[RemoteFile], settings: Settings = LENIENT, seconds: float = 30) -> None:
    asyncio.run(fetcher(settings, seconds).fetch(wanted))


def refused(url: str, folder: Path, settings: Settings = LENIENT, seconds: float = 30) -> JobError:
    with pytest.raises(JobError) as caught:
        fetch([RemoteFile(url, folder / "f")], settings, seconds)
    assert caught.value.code in CODES and caught.value.fix
    assert "query-marker" not in str(caught.value) + repr(caught.value.details)
    return caught.value


def test_several_files_come_at_once(server: ViciousServer, folder: Path) -> None:
    urls = [server.serve(f"/{n}.png", PNG + bytes([n])) for n in range(10)]
    fetch([RemoteFile(url, folder / str(n)) for n, url in enumerate(urls)])
    assert [(folder / str(n)).read_bytes()[-1] for n in range(10)] == list(range(10))


@pytest.mark.parametrize(
    "vices", [{"chunked": True}, {"no_length": True}, {"cut_after": 100, "cuts": 1}]
)
def test_a_file_arrives_complete_from_imperfect_servers(
    server: ViciousServer, folder: Path, vices: dict[str, Any]
) -> None:
    url = server.serve("/small-vice.png", PNG, **vices)
    fetch([RemoteFile(url, folder / "f")])
    assert (folder / "f").read_bytes() == PNG


def test_redirects_are_followed(server: ViciousServer, folder: Path) -> None:
    end = server.serve("/end.png", PNG)
    fetch([RemoteFile(server.serve("/start", b"", redirect=end), folder / "f")])
    assert (folder / "f").read_bytes() == PNG


@pytest.mark.parametrize(
    ("vices", "said"),
    [
        ({"status": 404}, "status 404"),
        ({"status": 403}, "status 403"),
        ({"status": 500}, "status 500"),
        ({"cut_after": 100}, "cut after 100 of"),
        ({"encoding": "gzip"}, "compresses"),
        ({"redirect": "/vice" + QUERY}, "circles"),
    ],
)
def test_a_server_that_fails_is_reported(
    server: ViciousServer, folder: Path, vices: dict[str, Any], said: str
) -> None:
    error = refused(server.serve("/vice", PNG, **vices) + QUERY, folder)
    assert error.code == "input.not_fetched" and said in error.message


@pytest.mark.parametrize("vices", [{}, {"chunked": True}, {"no_length": True}])
def test_a_file_that_is_too_large_is_not_read_to_its_end(
    server: ViciousServer, folder: Path, vices: dict[str, Any]
) -> None:
    error = refused(server.serve("/large.png", b"x" * 3_000_000, **vices), folder)
    assert error.code == "input.too_large" and "MAX_INPUT_MB" in error.fix


@pytest.mark.parametrize("vices", [{"trickle": True}, {"stall_after": 64 * 1024}])
def test_a_server_that_takes_too_long_is_given_up(
    server: ViciousServer, folder: Path, vices: dict[str, Any]
) -> None:
    url = server.serve("/slow.png", b"x" * 200_000, **vices)
    error = refused(url, folder, seconds=1)
    assert error.code == "input.not_fetched" and "within 1 s" in error.message


def test_the_time_for_inputs_starts_with_the_first_fetch(
    server: ViciousServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job may have waited for its models longer than INPUT_TIMEOUT before."""
    now = [0.0]
    monkeypatch.setattr(errors, "time", SimpleNamespace(monotonic=lambda: now[0]))
    job = Fetcher(LENIENT, Deadline(300), NETWORK)
    now[0] = 200.0
    asyncio.run(job.fetch([RemoteFile(server.serve("/late.png", PNG), folder / "f")]))
    assert (folder / "f").read_bytes() == PNG


def test_one_that_fails_ends_the_others(server: ViciousServer, folder: Path) -> None:
    slow = server.serve("/slow.png", b"x" * 200_000, stall_after=64 * 1024)
    bad = server.serve("/bad.png", b"", status=404)
    patient = replace(LENIENT, input_timeout=60)
    start = time.monotonic()
    with pytest.raises(JobError, match="404"):
        fetch([RemoteFile(slow, folder / "a"), RemoteFile(bad, folder / "b")], patient, 60)
    assert time.monotonic() - start < 20, "the slow one stalls for 30 s"


def test_a_cancel_ends_a_fetch_and_its_thread(server: ViciousServer, folder: Path) -> None:
    url = server.serve("/cancelled.png", b"x" * 200_000, stall_after=64 * 1024)

    async def cancelled() -> None:
        fetching = asyncio.ensure_future(fetcher().fetch([RemoteFile(url, folder / "f")]))
        await until(lambda: any(url.endswith(path) for path, _ in server.seen))
        fetching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetching

    asyncio.run(cancelled())
    wait_until(lambda: NETWORK.hanging == 0)


PRIVATE = [
    "127.0.0.1", "localhost", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "127.1", "0",
    "0.0.0.0", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]",
    "[64:ff9b::127.0.0.1]", "[2002:7f00:1::]", "[fe80::1]", "[fc00::1]", "[fec0::1]",
    "[ff02::1]", "169.254.169.254", "[fd00:ec2::254]", "10.1.2.3", "172.16.0.1", "192.168.1.1",
    "100.64.0.1", "198.18.0.1", "224.0.0.1", "255.255.255.255", "192.0.2.1", "127.0.0.1.",
    "①②⑦.⓪.⓪.①", "127。0。0。1", "LOCALHOST", "localhost.", "%31%32%37.0.0.1",
]  # fmt: skip
ODD = [
    "http://example.com/a.png", "ftp://example.com/a", "file:///etc/passwd", "gopher://x/",
    "https://user:pass@example.com/a", "https:///a", "https://", "https://exa mple.com/",
    "https://example.com:99999/", "https://example.com:x/", "https://[::1", "https://\\evil/",
    "https://example.com/\ud800.png", "https://example.com/a.png?\udfff",
    "https://example.com/a\r\nHost: evil", "https://example.com/\0", "//example.com/a", "",
    "https://" + "a" * 300 + ".com/", "https://\ud800.com/", "https://xn--.com/", "https://..com/",
    "jar:https://example.com!/", "https://example.com\t/a", "data:text/plain,x",
]  # fmt: skip


@pytest.mark.parametrize("host", PRIVATE)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_no_private_address_is_reached_in_any_notation(
    server: ViciousServer, folder: Path, scheme: str, host: str
) -> None:
    before = len(server.seen)
    port = server.host_port.partition(":")[2]
    refused(f"{scheme}://{host}:{port}/secret.png{QUERY}", folder, Settings())
    assert len(server.seen) == before and not (folder / "f").exists()


@pytest.mark.parametrize("url", ODD)
def test_no_odd_address_is_fetched(folder: Path, url: str) -> None:
    refused(url, folder, Settings())


def test_a_refused_address_is_written_as_it_was_sent(folder: Path) -> None:
    said = refused("http://169.254.169.254/meta", folder, Settings()).message
    assert said.startswith("http://169.254.169.254/meta is plain http")


@pytest.mark.parametrize(
    "target", ["http://169.254.169.254/meta", "file:///etc/passwd", "gopher://x"]
)
def test_no_redirect_leads_to_a_private_place(
    server: ViciousServer, folder: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the first server is exempt, as if it were a public one."""
    url = server.serve("/jump", b"", redirect=target)
    fetching = fetcher(Settings())
    object.__setattr__(fetching._policy, "exempt", frozenset({server.host_port}))
    with pytest.raises(JobError) as caught:
        asyncio.run(fetching.fetch([RemoteFile(url, folder / "f")]))
    assert caught.value.code == "input.url_refused"


# --- as a job has them ------------------------------------------------------------------------


def placed(
    folder: Path, workflow: dict[str, Any], *files: InputFile, mark: str = "m1"
) -> JobInputs:
    inputs = job_inputs(folder, mark)
    try:
        asyncio.run(inputs.materialize(files, workflow, Deadline(30)))
    except BaseException:
        inputs.remove()
        raise
    return inputs


def job_inputs(folder: Path, mark: str = "m1") -> JobInputs:
    shared = VolumeInputs(Layout(folder / "no volume", False, None), folder, CALLS.volume)
    return JobInputs(folder, mark, fetcher(), shared, CALLS.local)


def load(value: object, class_type: str = "LoadImage", name: str = "image") -> dict[str, Any]:
    return {"1": {"class_type": class_type, "inputs": {name: value}}}


def test_a_url_in_a_loader_becomes_a_file_of_this_job(server: ViciousServer, folder: Path) -> None:
    workflow = load(server.serve("/p/photo.png", PNG) + QUERY)
    inputs = placed(folder, workflow)
    assert workflow == load("photo-m1-1.png") and (folder / "photo-m1-1.png").read_bytes() == PNG
    inputs.remove()
    assert list(folder.iterdir()) == []


def test_urls_with_one_name_are_two_files_and_one_url_is_one(
    server: ViciousServer, folder: Path
) -> None:
    one, two = server.serve("/1/x.png", PNG), server.serve("/2/x.png", PNG + b"2")
    workflow = {str(n): load(url)["1"] for n, url in enumerate((one, two, one))}
    placed(folder, workflow)
    names = [workflow[key]["inputs"]["image"] for key in "012"]
    assert names == ["x-m1-1.png", "x-m1-2.png", "x-m1-1.png"]
    assert (folder / names[1]).read_bytes() == PNG + b"2"


def test_a_url_without_extension_gets_that_of_its_content(
    server: ViciousServer, folder: Path
) -> None:
    workflow = load(server.serve("/download", PNG))
    placed(folder, workflow).remove()
    assert workflow == load("download-m1-1.png") and list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("class_type", "name"),
    [("CLIPTextEncode", "text"), ("LoadImageFromUrl", "image"), ("LoadImage", "upload")],
)
def test_urls_elsewhere_are_left_alone(folder: Path, class_type: str, name: str) -> None:
    workflow = load("https://example.com/a.png", class_type, name)
    placed(folder, workflow)
    assert workflow == load("https://example.com/a.png", class_type, name)


@pytest.mark.parametrize("value", ["clip/photo.png", "clip/photo.png [input]", "clip\\photo.png"])
def test_a_file_in_a_subfolder_is_found_however_it_is_written(
    server: ViciousServer, folder: Path, value: str
) -> None:
    workflow = load(value)
    workflow["2"] = {"class_type": "Batch", "inputs": {"list": [value, {"deep": value}, "other"]}}
    url = server.serve("/any", PNG)
    inputs = placed(folder, workflow, InputFile("photo.png", url=url, subfolder="clip"))
    suffix = " [input]" if value.endswith("]") else ""
    new = f"clip/photo-m1-1.png{suffix}"
    assert workflow["1"]["inputs"]["image"] == new
    assert workflow["2"]["inputs"]["list"] == [new, {"deep": new}, "other"]
    assert (folder / "clip/photo-m1-1.png").is_file()
    inputs.remove()
    assert not any(path.is_file() for path in folder.rglob("*"))


@pytest.mark.parametrize(
    "content", [b"<!doctype html><p>Log in", b'{"error": 1}', b"PK\3\4 a zip", b""]
)
def test_what_a_url_gives_must_be_what_its_name_says(
    server: ViciousServer, folder: Path, content: bytes
) -> None:
    with pytest.raises(JobError) as caught:
        placed(folder, load(server.serve("/page.png", content) + QUERY))
    assert caught.value.code in ("input.wrong_content", "image.no_data")
    assert "query-marker" not in str(caught.value)
    assert list(folder.iterdir()) == []


def test_nothing_is_left_when_one_of_several_fails(server: ViciousServer, folder: Path) -> None:
    good = InputFile("a.png", url=server.serve("/ok.png", PNG))
    sent = InputFile("b.png", data="iVBORw0KGgo=")
    bad = InputFile("c.png", url=server.serve("/no.png", b"", status=404))
    with pytest.raises(JobError):
        placed(folder, {}, good, sent, bad)
    assert list(folder.iterdir()) == []


def test_a_job_that_is_over_leaves_nothing_though_its_files_still_come(
    server: ViciousServer, folder: Path
) -> None:
    url = server.serve("/over.png", b"x" * 200_000, stall_after=64 * 1024)
    inputs = job_inputs(folder)

    async def cancelled() -> None:
        sent = [InputFile("a.png", url=url)]
        placing = asyncio.ensure_future(inputs.materialize(sent, {}, Deadline(30)))
        await until(lambda: any(url.endswith(path) for path, _ in server.seen))
        placing.cancel()
        await asyncio.wait({placing})
        inputs.remove()

    asyncio.run(cancelled())
    wait_until(lambda: NETWORK.hanging == 0)
    assert list(folder.iterdir()) == []


def test_files_that_are_placed_after_the_job_is_over_go_too(folder: Path) -> None:
    inputs = job_inputs(folder)
    inputs.remove()
    sent = [InputFile("a.png", data="iVBORw0KGgo=")]
    asyncio.run(inputs.materialize(sent, {}, Deadline(30)))
    assert list(folder.iterdir()) == []
