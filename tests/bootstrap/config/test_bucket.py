"""Where results are uploaded to: what an address says of bucket and region, and what is missing."""

from __future__ import annotations

import pytest

from bootstrap.config.bucket import Bucket, bucket_of, missing_variables
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
    ],
)  # fmt: skip
def test_an_address_says_bucket_and_region(
    address: str, name: str | None, endpoint: str, found: str, region: str, virtual: bool
) -> None:
    made = bucket(BUCKET_ENDPOINT_URL=address, **({"BUCKET_NAME": name} if name else {}))
    assert made is not None
    assert (made.endpoint, made.name, made.region) == (endpoint, found, region)
    assert made.virtual_host is virtual and made.trusted


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
        "BUCKET_NAME",
    ]
    assert missing_variables(Settings()) == []


@pytest.mark.parametrize("address", ["s3.example.com", "ftp://x", "https://a:b@x", "https://x?y=1"])
def test_an_address_that_is_none_is_a_finding(address: str) -> None:
    _, (finding,) = Settings.from_env({"BUCKET_ENDPOINT_URL": address})
    assert finding.code == "settings.invalid" and "BUCKET_ENDPOINT_URL" in finding.message
