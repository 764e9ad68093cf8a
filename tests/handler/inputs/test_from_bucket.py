"""Inputs at s3://bucket/key: with the bucket's credentials, and only what requests may read."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bootstrap.config import Settings
from bootstrap.config.bucket import Bucket, bucket_of
from bootstrap.core.redact import Secret
from handler.common.blocking import Calls
from handler.common.errors import Deadline, JobError
from handler.inputs.fetch import Fetcher, RemoteFile, signed_url
from tests.support.s3_server import BUCKET, KEY_ID, SECRET, S3Server, s3_server

CONTENT = b"\x89PNG\r\n\x1a\n content"
KEY = "uploads/a picture+ü.png"


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as running:
        running.client.put_object(Bucket=BUCKET, Key=KEY, Body=CONTENT)
        running.client.put_object(Bucket=BUCKET, Key="private/b.png", Body=CONTENT)
        yield running


def fetch(
    server: S3Server, folder: Path, url: str, bucket: Bucket | None = None, **env: str
) -> bytes:
    settings, problems = Settings.from_env({**server.env, **env})
    assert not problems
    network = Calls.on(Path("/")).network
    bucket = bucket or bucket_of(settings)
    fetcher = Fetcher(settings, Deadline(30), network, bucket)
    asyncio.run(fetcher.fetch([RemoteFile(url, folder / "f")]))
    return (folder / "f").read_bytes()


def refused(*given: Any, **more: Any) -> JobError:
    with pytest.raises(JobError) as caught:
        fetch(*given, **more)
    assert SECRET not in str(caught.value) and KEY_ID not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("places", [BUCKET, f"other,{BUCKET}/uploads/", f"{BUCKET}/uploads"])
def test_an_object_is_read_from_the_operators_own_bucket(
    server: S3Server, tmp_path: Path, places: str
) -> None:
    assert fetch(server, tmp_path, f"s3://{BUCKET}/{KEY}", BUCKET_INPUTS=places) == CONTENT


@pytest.mark.parametrize(
    ("places", "url"),
    [
        ("", f"s3://{BUCKET}/{KEY}"),
        (f"{BUCKET}/uploads/", f"s3://{BUCKET}/private/b.png"),
        (f"{BUCKET}/uploads/", f"s3://{BUCKET}/uploads/../private/b.png"),
        (f"{BUCKET}/up", f"s3://{BUCKET}/{KEY}"),
        (BUCKET, "s3://other/a.png"),
    ],
)
def test_what_is_not_named_is_refused(
    server: S3Server, tmp_path: Path, places: str, url: str
) -> None:
    error = refused(server, tmp_path, url, BUCKET_INPUTS=places)
    assert error.code == "input.bucket_refused" and "BUCKET_INPUTS" in error.fix


def test_a_requests_own_keys_read_what_they_may(server: S3Server, tmp_path: Path) -> None:
    own = Bucket(server.url, Secret(KEY_ID), Secret(SECRET), "another")
    private = {"ALLOW_PRIVATE_URLS": "true"}
    assert fetch(server, tmp_path, f"s3://{BUCKET}/{KEY}", own, **private) == CONTENT
    error = refused(server, tmp_path, f"s3://{BUCKET}/{KEY}", own)
    assert error.code == "input.url_refused", "their address must be public, as every other"


def test_one_that_is_not_there_is_said(server: S3Server, tmp_path: Path) -> None:
    error = refused(server, tmp_path, f"s3://{BUCKET}/none.png", BUCKET_INPUTS=BUCKET)
    assert error.code == "input.not_fetched" and "s3://results/none.png" in error.message
    assert "key" in error.fix


@pytest.mark.parametrize(
    "url", ["s3://", "s3:///key", "s3://a b/key", "s3://results", "s3://x@y/k"]
)
def test_what_is_not_such_an_address_is_refused(server: S3Server, tmp_path: Path, url: str) -> None:
    assert refused(server, tmp_path, url, BUCKET_INPUTS=BUCKET).code in (
        "input.url_refused",
        "input.bucket_refused",
    )


def test_without_a_bucket_it_is_said_what_to_set(tmp_path: Path) -> None:
    fetcher = Fetcher(Settings(), Deadline(30), Calls.on(Path("/")).network)
    with pytest.raises(JobError) as caught:
        asyncio.run(fetcher.fetch([RemoteFile("s3://a/b.png", tmp_path / "f")]))
    assert caught.value.code == "input.bucket_refused" and "s3Config" in caught.value.fix


def test_amazons_own_buckets_are_named_in_the_host() -> None:
    bucket = Bucket(
        "https://s3.eu-west-1.amazonaws.com", Secret("k"), Secret("s"), "mine", "eu-west-1"
    )
    url = signed_url(bucket, "a b/ü.png", 100)
    assert url.startswith("https://mine.s3.eu-west-1.amazonaws.com/a%20b/%C3%BC.png?")
    assert "X-Amz-Expires=100" in url and "Signature=" in url
