"""Where results are uploaded to: bucket and region in an address, and what is missing."""

from __future__ import annotations

import pytest

from bootstrap.config.bucket import Bucket, bucket_of, missing_variables, month_name
from bootstrap.config.settings import Settings

KEYS = {"BUCKET_ACCESS_KEY_ID": "id-marker", "BUCKET_SECRET_ACCESS_KEY": "secret-marker"}


def bucket(**env: str) -> Bucket | None:
    settings, findings = Settings.from_env({**KEYS, **env})
    assert not findings
    return bucket_of(settings)


@pytest.mark.parametrize(
    ("address", "name", "endpoint", "found", "region", "virtual"),
    [
        ("https://s3.eu-west-1.amazonaws.com", "b", "https://s3.eu-west-1.amazonaws.com",
         "b", "eu-west-1", True),
        ("https://mine.s3.us-east-2.amazonaws.com", None, "https://s3.us-east-2.amazonaws.com",
         "mine", "us-east-2", True),
        ("https://mine.s3.us-east-2.amazonaws.com", "mine", "https://s3.us-east-2.amazonaws.com",
         "mine", "us-east-2", True),
        ("https://abc.r2.cloudflarestorage.com/", "b", "https://abc.r2.cloudflarestorage.com",
         "b", "us-east-1", False),
        ("https://s3api-eu-ro-1.runpod.io", "vol", "https://s3api-eu-ro-1.runpod.io",
         "vol", "eu-ro-1", False),
        ("http://127.0.0.1:9000", "b", "http://127.0.0.1:9000", "b", "us-east-1", False),
        ("https://abc.r2.cloudflarestorage.com/mine", None, "https://abc.r2.cloudflarestorage.com",
         "mine", "us-east-1", False),
        ("https://abc.r2.cloudflarestorage.com/mine/", "mine",
         "https://abc.r2.cloudflarestorage.com", "mine", "us-east-1", False),
        ("https://minio.example.com/base", "b", "https://minio.example.com/base", "b", "us-east-1",
         False),
        ("https://x.supabase.co/storage/v1/s3", "b", "https://x.supabase.co/storage/v1/s3", "b",
         "us-east-1", False),
        ("https://mine.s3.us-west-004.backblazeb2.com", None,
         "https://s3.us-west-004.backblazeb2.com", "mine", "us-west-004", False),
        ("https://mine.ams3.digitaloceanspaces.com", None, "https://ams3.digitaloceanspaces.com",
         "mine", "ams3", False),
        ("https://ams3.digitaloceanspaces.com", "b", "https://ams3.digitaloceanspaces.com", "b",
         "ams3", False),
        ("https://mine.s3.amazonaws.com", None, "https://s3.amazonaws.com", "mine", "us-east-1",
         True),
        ("https://s3.amazonaws.com", "b", "https://s3.amazonaws.com", "b", "us-east-1", True),
        ("https://s3.amazonaws.com/mine", None, "https://s3.amazonaws.com", "mine", "us-east-1",
         True),
        ("https://my.own.s3.dualstack.us-west-2.amazonaws.com", None,
         "https://s3.dualstack.us-west-2.amazonaws.com", "my.own", "us-west-2", True),
        ("https://s3.dualstack.eu-west-1.amazonaws.com", "b",
         "https://s3.dualstack.eu-west-1.amazonaws.com", "b", "eu-west-1", True),
        ("https://mine.s3-us-west-2.amazonaws.com", None, "https://s3-us-west-2.amazonaws.com",
         "mine", "us-west-2", True),
        ("https://mine.s3-accelerate.amazonaws.com", None, "https://s3-accelerate.amazonaws.com",
         "mine", "us-east-1", True),
        ("https://mine.s3.cn-north-1.amazonaws.com.cn", None,
         "https://s3.cn-north-1.amazonaws.com.cn", "mine", "cn-north-1", True),
        ("https://mine.s3.wasabisys.com", None, "https://s3.wasabisys.com", "mine", "us-east-1",
         False),
        ("https://s3.wasabisys.com", "b", "https://s3.wasabisys.com", "b", "us-east-1", False),
        ("https://mine.fra1.cdn.digitaloceanspaces.com", None,
         "https://fra1.digitaloceanspaces.com", "mine", "fra1", False),
        ("https://s3.nl-ams.scw.cloud", "b", "https://s3.nl-ams.scw.cloud", "b", "nl-ams", False),
        ("https://s3.gra.io.cloud.ovh.net", "b", "https://s3.gra.io.cloud.ovh.net", "b", "gra",
         False),
        ("https://s3.my-firm.com", "b", "https://s3.my-firm.com", "b", "us-east-1", False),
        ("https://s3.minio.example.com", "b", "https://s3.minio.example.com", "b", "us-east-1",
         False),
        ("https://minio.example.com", None, "https://minio.example.com", month_name(), "us-east-1",
         False),
        ("https://x.supabase.co/storage/v1/s3", None, "https://x.supabase.co/storage/v1/s3",
         month_name(), "us-east-1", False),
    ],
)  # fmt: skip
def test_an_address_says_bucket_and_region(
    address: str, name: str | None, endpoint: str, found: str, region: str, virtual: bool
) -> None:
    made = bucket(BUCKET_ENDPOINT_URL=address, **({"BUCKET_NAME": name} if name else {}))
    assert made is not None
    assert (made.endpoint, made.name, made.region) == (endpoint, found, region)
    assert made.virtual_host is virtual and made.trusted and made.prefix == ""


@pytest.mark.parametrize(
    ("address", "prefix"),
    [
        ("https://s3.example.com/mine/a/b/", "a/b/out"),
        ("https://mine.s3.us-east-2.amazonaws.com/a/b", "a/b/out"),
        ("https://s3.example.com/mine", "out"),
    ],
)
def test_what_follows_the_bucket_in_an_address_stands_before_all_keys(
    address: str, prefix: str
) -> None:
    made = bucket(BUCKET_ENDPOINT_URL=address, BUCKET_PREFIX="/out/")
    assert made is not None and (made.name, made.prefix) == ("mine", prefix)


@pytest.mark.parametrize(
    ("job_id", "prefix"),
    [
        ("sync-1a2b-u1", "jobs/sync-1a2b-u1"),
        ("../../etc", "jobs/--..-etc"),
        ("a b/c\n", "jobs/a-b-c-"),
        (None, "jobs/None"),
    ],
)
def test_the_jobs_id_may_stand_in_the_keys(job_id: object, prefix: str) -> None:
    made = bucket(BUCKET_ENDPOINT_URL="https://s3.example.com", BUCKET_PREFIX="jobs/{job_id}")
    assert made is not None and made.for_job(job_id).prefix == prefix


def test_more_settings_of_a_bucket_are_taken() -> None:
    made = bucket(
        BUCKET_ENDPOINT_URL="https://s3.example.com",
        BUCKET_NAME="b",
        BUCKET_REGION="auto",
        BUCKET_PREFIX="/comfy/out/",
        BUCKET_URL_EXPIRY="60",
        BUCKET_PUBLIC_URL="https://cdn.example.com/",
    )
    assert made is not None
    assert (made.region, made.prefix, made.expiry) == ("auto", "comfy/out", 60)
    assert made.public_url == "https://cdn.example.com"
    assert "marker" not in repr(made)


def test_what_a_bucket_lacks_is_named() -> None:
    settings, _ = Settings.from_env({"BUCKET_ENDPOINT_URL": "https://s3.example.com"})
    assert bucket_of(settings) is None
    assert missing_variables(settings) == [
        "BUCKET_ACCESS_KEY_ID",
        "BUCKET_SECRET_ACCESS_KEY",
    ]
    settings, _ = Settings.from_env({"BUCKET_NAME": "b"})
    assert len(missing_variables(settings)) == 3
    assert missing_variables(Settings()) == []


@pytest.mark.parametrize("address", ["s3.example.com", "ftp://x", "https://a:b@x", "https://x?y=1"])
def test_an_address_that_is_none_is_a_finding(address: str) -> None:
    _, (finding,) = Settings.from_env({"BUCKET_ENDPOINT_URL": address})
    assert finding.code == "settings.invalid" and "BUCKET_ENDPOINT_URL" in finding.message
