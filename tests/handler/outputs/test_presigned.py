"""Results uploaded to a request's addresses, and all of them as one file."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
import zipfile
from collections.abc import Iterator
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests

from bootstrap.comfyui import WorkDir
from bootstrap.config import Settings
from bootstrap.net.addresses import AddressPolicy
from bootstrap.volume import Layout
from handler.common.errors import Deadline, JobError
from handler.outputs.produced import ProducedText
from handler.outputs.uploads import NotUploaded, PresignedUploader, Upload
from handler.request.fields import PutAddress, read_options
from tests.handler.outputs.test_delivery import PNG, Jobs, image, kept_files, put
from tests.support.s3_server import BUCKET, S3Server

ANYWHERE = AddressPolicy(allow_private=True)
QUERY = "X-Signature=s3cret-marker"


class Target:
    """Takes PUTs. `statuses` are what the first ones get; `trickle`: the answer never ends."""

    def __init__(self) -> None:
        self.got: dict[str, bytes] = {}
        self.headers: list[dict[str, str]] = []
        self.sent: list[Message] = []
        self.statuses: list[int] = []
        self.trickle = False
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_PUT(self) -> None:
                owner.sent.append(self.headers)
                owner.headers.append({k.lower(): v for k, v in self.headers.items()})
                body = self.rfile.read(int(self.headers["Content-Length"]))
                while owner.trickle:
                    self.wfile.write(b"H")
                    time.sleep(0.1)
                status = owner.statuses.pop(0) if owner.statuses else 200
                if status == 200:
                    owner.got[self.path] = body
                self.send_response(status)
                if status == 307:
                    self.send_header("Location", "http://169.254.169.254/")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def target() -> Iterator[Target]:
    made = Target()
    threading.Thread(target=made.server.serve_forever, args=(0.02,), daemon=True).start()
    yield made
    made.trickle = False
    made.server.shutdown()
    made.server.server_close()


def addresses(target: Target, count: int = 2) -> tuple[PutAddress, ...]:
    return tuple(PutAddress(f"{target.url}/{n}?{QUERY}") for n in range(count))


def lenient(work: WorkDir, layout: Layout, **env: str) -> Jobs:
    return Jobs(work, layout, ALLOW_PRIVATE_URLS="true", **env)


def uploader(
    target: Target, seconds: float = 20, policy: AddressPolicy = ANYWHERE
) -> PresignedUploader:
    return PresignedUploader({"k": addresses(target)[0]}, policy, Deadline(seconds))


def test_results_go_to_their_addresses_in_order(
    work: WorkDir,
    layout: Layout,
    target: Target,
) -> None:
    for n in (1, 2, 3):
        put(work.output, f"a_{n}_.png", PNG + bytes([n]))
    produced = [image(f"a_{n}_.png") for n in (1, 2, 3)]
    jobs = lenient(work, layout)
    answer = jobs.deliver(*produced, ProducedText("4", "hello"), upload_urls=addresses(target))
    assert target.got == {f"/{n}?{QUERY}": PNG + bytes([n + 1]) for n in range(2)}
    first, second, third, text = answer["results"]
    assert [first["url"], second["url"]] == [f"{target.url}/{n}" for n in range(2)]
    assert "image" not in first and "path" in first, "kept on the volume as ever"
    assert base64.b64decode(third["image"]) == PNG + b"\3" and text["text"] == "hello"
    assert any("more results than upload_urls" in w for w in answer["warnings"])
    assert "s3cret" not in json.dumps(answer)
    assert target.headers[0]["content-type"] == "image/png"


def test_a_presigned_address_of_a_real_bucket(
    work: WorkDir,
    layout: Layout,
    server: S3Server,
) -> None:
    where = {"Bucket": BUCKET, "Key": "by-put.png"}
    url = server.client.generate_presigned_url("put_object", where)
    put(work.output, "a_1_.png")
    entry = lenient(work, layout).entry(image("a_1_.png"), upload_urls=(PutAddress(url),))
    assert server.client.get_object(**where)["Body"].read() == PNG
    assert entry["url"].endswith("/by-put.png") and "?" not in entry["url"]


def test_an_address_comes_back_whole(target: Target, tmp_path: Path) -> None:
    url = f"{target.url}/{'k' * 500}.png"
    store = PresignedUploader({"k": PutAddress(f"{url}?{QUERY}")}, ANYWHERE, Deadline(20))
    assert store.put(Upload(put(tmp_path, "a.png"), "k", "image/png")) == url


@pytest.mark.parametrize("name", ["Content-Type", "content-type", "CONTENT-TYPE"])
def test_headers_that_the_signature_needs_go_along(
    target: Target, tmp_path: Path, name: str
) -> None:
    more = {"x-ms-blob-type": "BlockBlob", name: "application/x-own", "user-Agent": "mine"}
    store = PresignedUploader({"k": PutAddress(target.url, more)}, ANYWHERE, Deadline(20))
    store.put(Upload(put(tmp_path, "a.png"), "k", "image/png"))
    assert target.headers[0]["x-ms-blob-type"] == "BlockBlob"
    assert target.sent[0].get_all("content-type") == ["application/x-own"]
    assert target.sent[0].get_all("user-agent") == ["mine"]


def test_a_server_that_recovers_is_tried_again(target: Target, tmp_path: Path) -> None:
    target.statuses = [503, 500]
    uploader(target).put(Upload(put(tmp_path, "a.png"), "k", "image/png"))
    assert len(target.headers) == 3 and list(target.got.values()) == [PNG]


@pytest.mark.parametrize("status", [403, 307, 404])
def test_one_that_refuses_is_not_and_no_redirect_is_followed(
    target: Target, tmp_path: Path, status: int
) -> None:
    target.statuses = [status] * 5
    with pytest.raises(NotUploaded, match=f"answers with status {status}") as caught:
        uploader(target).put(Upload(put(tmp_path, "a.png"), "k", "image/png"))
    assert len(target.headers) == 1 and "s3cret" not in str(caught.value)


def test_a_failed_upload_costs_no_result(
    work: WorkDir,
    layout: Layout,
    target: Target,
) -> None:
    target.statuses = [403]
    put(work.output, "a_1_.png")
    answer = lenient(work, layout).deliver(image("a_1_.png"), upload_urls=addresses(target))
    assert base64.b64decode(answer["results"][0]["image"]) == PNG
    assert any("could not be uploaded" in w for w in answer["warnings"])


def test_a_server_that_trickles_is_given_up(target: Target, tmp_path: Path) -> None:
    target.trickle = True
    store = uploader(target, 1)
    threading.Timer(1, store.abort).start()
    with pytest.raises(NotUploaded, match="took more than 1 s"):
        store.put(Upload(put(tmp_path, "a.png"), "k", "image/png"))


def test_a_name_that_turns_private_later_is_refused(target: Target, tmp_path: Path) -> None:
    policy = AddressPolicy(resolve=lambda host, port: ["127.0.0.1"])
    store = PresignedUploader({"k": PutAddress("https://example.com/x")}, policy, Deadline(5))
    with pytest.raises(NotUploaded, match="not a public address"):
        store.put(Upload(put(tmp_path, "a.png"), "k", "image/png"))


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ("https://example.com", "request.wrong_type"),
        ([], "request.wrong_type"),
        ([7], "request.wrong_type"),
        ([{"headers": {}}], "request.wrong_type"),
        (["http://example.com/x"], "output.bad_address"),
        (["https://169.254.169.254/x"], "output.bad_address"),
        (["https://127.1/x"], "output.bad_address"),
        (["https://u:p@example.com/x"], "output.bad_address"),
        (["ftp://example.com/x"], "output.bad_address"),
        ([{"url": "https://example.com", "headers": {"a": "b\r\nc: d"}}], "output.bad_address"),
        ([{"url": "https://example.com", "headers": {"Host": "x"}}], "output.bad_address"),
        ([{"url": "https://example.com", "headers": {"a b": "x"}}], "output.bad_address"),
        ([{"url": "https://example.com", "headers": {"a": 7}}], "output.bad_address"),
    ],
)
def test_addresses_that_may_not_be_used_are_refused_before_the_job_runs(
    given: Any, code: str
) -> None:
    with pytest.raises(JobError) as caught:
        read_options({"upload_urls": given}, Settings())
    assert caught.value.code == code and caught.value.fix


def test_upload_urls_beside_another_delivery_are_refused() -> None:
    given = {"upload_urls": ["https://example.com/x"], "delivery": "base64"}
    with pytest.raises(JobError):
        read_options(given, Settings())


def members(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as opened:
        assert opened.testzip() is None
        return {name: opened.read(name) for name in opened.namelist()}


def test_all_results_come_as_one_file(work: WorkDir, layout: Layout) -> None:
    put(work.output, "a_1_.png", PNG + b"1")
    put(work.output, "sub/a_1_.png", PNG + b"2")
    items = (image("a_1_.png"), image("a_1_.png", "sub"), ProducedText("4", "hello"))
    answer = Jobs(work, layout).deliver(*items, zip=True)
    made, text = answer["results"]
    assert made["mime_type"] == "application/zip" and made["kind"] == "file"
    inside = members(base64.b64decode(made["data"]))
    assert sorted(inside.values()) == [PNG + b"1", PNG + b"2"]
    assert [entry["size"] for entry in made["files"]] == [len(PNG) + 1] * 2
    assert all((layout.root / entry["path"]).read_bytes() for entry in made["files"])
    assert text["text"] == "hello"
    assert not [name for name in kept_files(layout) if name.endswith(".zip")], "kept singly"


def test_a_zip_goes_wherever_results_go(
    work: WorkDir,
    layout: Layout,
    server: S3Server,
    target: Target,
) -> None:
    def results() -> Any:
        put(work.output, "a_1_.png")
        return image("a_1_.png")

    entry = lenient(work, layout, **server.env).entry(results(), mark="b" * 12, zip=True)
    assert list(members(requests.get(entry["url"], timeout=30).content).values()) == [PNG]
    jobs = lenient(work, layout)
    jobs.entry(results(), mark="c" * 12, zip=True, upload_urls=addresses(target))
    (content,) = target.got.values()
    assert list(members(content).values()) == [PNG]
    entry = jobs.entry(results(), mark="d" * 12, zip=True, delivery="volume")
    assert list(members((layout.root / entry["path"]).read_bytes()).values()) == [PNG]


def test_a_zip_that_is_too_large_for_the_reply_goes_to_the_volume(
    work: WorkDir,
    layout: Layout,
) -> None:
    put(work.output, "a_1_.png", PNG + bytes(400_000))
    entry = Jobs(work, layout, MAX_REPLY_MB="0.2", KEEP_OUTPUTS="false").entry(
        image("a_1_.png"), zip=True
    )
    assert "data" not in entry
    assert members((layout.root / entry["path"]).read_bytes())


def test_a_job_without_files_has_no_zip(work: WorkDir, layout: Layout) -> None:
    answer = Jobs(work, layout).deliver(ProducedText("4", "hello"), zip=True)
    assert [entry["kind"] for entry in answer["results"]] == ["text"]


def test_the_files_of_an_undelivered_zip_are_kept_with_the_next_job(
    work: WorkDir, layout: Layout
) -> None:
    put(work.output, "a_1_.png", PNG + bytes(400_000))
    layout.output.parent.mkdir(parents=True, exist_ok=True)
    layout.output.write_text("in the way")
    jobs = Jobs(work, layout, MAX_REPLY_MB="0.2", KEEP_OUTPUTS="false")
    with pytest.raises(JobError) as caught:
        jobs.deliver(image("a_1_.png"), zip=True)
    assert caught.value.code == "reply.too_large"
    layout.output.unlink()
    (kept,) = jobs.kept_from_failed("b" * 12)
    assert kept.endswith(f"a_1_{'b' * 12}.png") or "a_1_" in kept
