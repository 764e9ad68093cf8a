"""Uploads to a real S3 server and to bad ones; requests' endpoints; secrets."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from bootstrap.config import Settings
from bootstrap.config.bucket import Bucket, bucket_of, month_name
from bootstrap.core.redact import Secret
from bootstrap.net.addresses import AddressPolicy
from handler.common.errors import Deadline
from handler.outputs import uploads
from handler.outputs.uploads import BucketUploader, NotUploaded, Upload
from tests.support.s3_server import (
    BUCKET,
    KEY_ID,
    SECRET,
    Misbehaviour,
    S3Server,
    bad_s3_server,
)
from tests.support.trickling_server import trickling
from tests.support.waiting import wait_until

ANYWHERE = AddressPolicy(allow_private=True)


def bucket(endpoint: str, trusted: bool = True) -> Bucket:
    return Bucket(endpoint, Secret(KEY_ID), Secret(SECRET), BUCKET, trusted=trusted)


def store(given: Bucket, policy: AddressPolicy = ANYWHERE, seconds: float = 30) -> BucketUploader:
    return BucketUploader(given, policy, Deadline(seconds))


def a_file(folder: Path, size: int) -> Path:
    path = folder / "video.mp4"
    path.write_bytes(os.urandom(1024) * (size // 1024 + 1))
    os.truncate(path, size)
    return path


def failure(given: Bucket, local: Path, policy: AddressPolicy = ANYWHERE) -> str:
    with pytest.raises(NotUploaded) as caught:
        store(given, policy).put(Upload(local, "key", "video/mp4"))
    text = str(caught.value)
    assert SECRET not in text and KEY_ID not in text and len(text) < 400
    return text


@pytest.mark.parametrize("size", [0, 1000, 40_000_000], ids=["empty", "one part", "many parts"])
@pytest.mark.parametrize("trusted", [True, False])
def test_a_file_arrives_complete_with_its_type_and_its_signed_url_opens(
    server: S3Server, tmp_path: Path, size: int, trusted: bool
) -> None:
    local = a_file(tmp_path, size)
    key = f"a b/ü-{size}-{trusted}.mp4"
    url = store(bucket(server.url, trusted)).put(Upload(local, key, "video/mp4"))
    answer = requests.get(url, timeout=30)
    assert answer.headers["Content-Type"] == "video/mp4"
    assert answer.content == local.read_bytes()
    assert SECRET not in url


def test_a_public_url_stands_before_the_key(server: S3Server, tmp_path: Path) -> None:
    given = replace(bucket(server.url), public_url=f"{server.url}/{BUCKET}")
    url = store(given).put(Upload(a_file(tmp_path, 10), "x/ü.mp4", "video/mp4"))
    assert url == f"{server.url}/{BUCKET}/x/%C3%BC.mp4"
    server.client.put_object_acl(Bucket=BUCKET, Key="x/ü.mp4", ACL="public-read")
    assert len(requests.get(url, timeout=30).content) == 10


def test_a_bucket_that_is_not_there_is_reported(server: S3Server, tmp_path: Path) -> None:
    given = replace(bucket(server.url), name="nowhere")
    assert "404 (NoSuchBucket" in failure(given, a_file(tmp_path, 10))


@pytest.mark.parametrize(
    ("status", "code"), [(403, "AccessDenied"), (500, "InternalError"), (503, "SlowDown")]
)
@pytest.mark.parametrize("trusted", [True, False])
def test_a_server_that_refuses_is_quoted_without_secrets(
    tmp_path: Path, status: int, code: str, trusted: bool
) -> None:
    way = Misbehaviour(status, code)
    with bad_s3_server(way) as url:
        text = failure(bucket(url, trusted), a_file(tmp_path, 10))
    assert str(status) in text and code in text and "***" in text
    assert len(way.seen) == (1 if status == 403 else 3)


@pytest.mark.parametrize(("public", "status"), [(True, 403), (False, 403), (True, 404)])
def test_credentials_that_may_only_write_are_enough_for_a_public_address(
    tmp_path: Path, public: bool, status: int
) -> None:
    """A signed URL would not open, and an object that is not there was not uploaded."""
    with bad_s3_server(Misbehaviour(status, write_only=True)) as url:
        given = replace(bucket(url), public_url=f"{url}/public" if public else None)
        if public and status == 403:
            assert store(given).put(Upload(a_file(tmp_path, 10), "k", "x/y")) == f"{url}/public/k"
        else:
            assert f"answered {status}" in failure(given, a_file(tmp_path, 10))


@pytest.mark.parametrize("way", [Misbehaviour(403), Misbehaviour(500), Misbehaviour(cut_after=9)])
@pytest.mark.parametrize("size", [1000, 20_000_000], ids=["one part", "many parts"])
def test_an_upload_that_fails_is_none_for_a_public_address_either(
    tmp_path: Path, way: Misbehaviour, size: int
) -> None:
    """Although a HEAD that is refused, as for an object that is not there, would not be."""
    way.head = 403
    with bad_s3_server(way) as url:
        failure(replace(bucket(url), public_url=f"{url}/public"), a_file(tmp_path, size))


def test_a_server_that_cuts_is_reported(tmp_path: Path) -> None:
    with bad_s3_server(Misbehaviour(cut_after=1000)) as url:
        text = failure(bucket(url), a_file(tmp_path, 3_000_000))
    assert "could not be reached" in text or "ConnectionClosed" in text


def test_a_server_that_is_not_there_is_reported(tmp_path: Path) -> None:
    text = failure(bucket("http://127.0.0.1:9"), a_file(tmp_path, 10))
    assert "could not be reached" in text and "127.0.0.1" in text


def test_a_file_that_is_incomplete_in_the_bucket_is_not_uploaded(tmp_path: Path) -> None:
    with bad_s3_server(Misbehaviour(lies_about_size=7)) as url:
        assert "has 7 bytes" in failure(bucket(url), a_file(tmp_path, 10))


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_an_upload_through_a_proxy_can_be_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    """botocore has connections of another kind for the proxy that the environment names."""
    with trickling("headers") as proxy:
        monkeypatch.setenv(f"{scheme.upper()}_PROXY", proxy.url)
        uploads, said = store(bucket(f"{scheme}://bucket.example")), []

        def put() -> None:
            with pytest.raises(NotUploaded) as caught:
                uploads.put(Upload(a_file(tmp_path, 10), "key", "video/mp4"))
            said.append(str(caught.value))

        thread = threading.Thread(target=put, daemon=True)
        thread.start()
        wait_until(lambda: proxy.seen == 1)
        uploads.abort()
        thread.join(5)
    assert said == [uploads.too_slow]


def test_an_upload_ends_with_its_time(server: S3Server, tmp_path: Path) -> None:
    late = store(bucket(server.url), seconds=0)
    with pytest.raises(NotUploaded, match="took more than"):
        late.put(Upload(a_file(tmp_path, 20_000_000), "late", "video/mp4"))
    assert "late" not in server.stored()


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://169.254.169.254",
        "https://169.254.169.254",
        "https://127.0.0.1:1",
        "https://localhost:1",
        "https://2130706433",
        "https://0x7f.1",
        "https://017700000001",
        "https://[::1]",
        "https://[::ffff:127.0.0.1]",
        "https://[64:ff9b::7f00:1]",
        "https://10.0.0.1",
        "https://100.64.0.1",
        "http://s3.example.com",
        "file:///etc/passwd",
    ],
)
def test_a_requests_endpoint_must_be_public_and_https(endpoint: str, tmp_path: Path) -> None:
    text = failure(bucket(endpoint, trusted=False), a_file(tmp_path, 10), AddressPolicy())
    assert "public" in text or "http" in text or "resolved" in text


def test_a_name_that_resolves_differently_the_second_time_leads_nowhere(tmp_path: Path) -> None:
    """DNS rebinding: public when asked first, this machine when asked again."""
    asked: list[str] = []

    def resolve(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return ["127.0.0.1"]

    reached = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def accept() -> None:
            listener.accept()
            reached.set()

        threading.Thread(target=accept, daemon=True).start()
        given = bucket(f"https://rebinding.example:{port}", trusted=False)
        text = failure(given, a_file(tmp_path, 10), AddressPolicy(resolve=resolve))
        assert "not a public address" in text and asked
        assert not reached.is_set()


def test_no_other_credentials_are_used(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone-else")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "someone-elses-token")
    url = store(bucket(server.url)).put(Upload(a_file(tmp_path, 10), "k", "video/mp4"))
    assert KEY_ID in url and "someone" not in url


def test_a_job_without_a_bucket_does_not_import_boto3() -> None:
    assert "boto3" not in vars(uploads)


@pytest.mark.parametrize("address", ["{url}", "{url}/results", "{url}/results/deep/er/"])
def test_an_address_means_the_same_bucket_as_for_worker_comfyui(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    """Its own upload, through Runpod's SDK, beside ours with the same variables."""
    from runpod.serverless.utils import rp_upload

    env = {**server.env, "BUCKET_ENDPOINT_URL": address.format(url=server.url)}
    del env["BUCKET_NAME"]
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    server.client.create_bucket(Bucket=month_name())
    picture = tmp_path / "a.png"
    picture.write_bytes(b"picture")
    theirs = urlsplit(rp_upload.upload_image("job-1", str(picture))).path.split("/")
    settings, _ = Settings.from_env({**env, "BUCKET_PREFIX": "{job_id}"})
    chosen = bucket_of(settings)
    assert chosen is not None
    chosen = chosen.for_job("job-1")
    store = BucketUploader(chosen, ANYWHERE, Deadline(20))
    url = store.put(Upload(picture, f"{chosen.prefix}/a.png", "image/png"))
    ours = urlsplit(url).path.split("/")
    assert requests.get(url, timeout=20).content == b"picture"
    assert ours[-2] == theirs[-2] == "job-1"
    named = [part for part in theirs[1:-2] if part and part != month_name()] or [month_name()]
    assert ours[1:-2] == named
