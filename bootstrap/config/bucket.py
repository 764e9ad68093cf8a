"""Pure: where results are uploaded to, from the endpoint's environment or from one request."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

from bootstrap.config.settings import Settings
from bootstrap.core.redact import Secret

# `https://NAME.s3.REGION.amazonaws.com`: the bucket's own address, as other workers want it.
_AWS = re.compile(r"(?:(?P<name>[a-z0-9.-]+)\.)?s3[.-](?P<region>[a-z0-9-]+)\.amazonaws\.com")
_REGION = re.compile(r"s3(?:api)?[.-](?P<region>[a-z0-9-]+)\.")
_FIELDS = {
    "endpointUrl": "endpoint",
    "accessId": "key_id",
    "accessSecret": "secret",
    "bucketName": "name",
}
S3_CONFIG = "s3Config"


@dataclass(frozen=True)
class Bucket:
    """An S3-compatible bucket. `trusted`: the operator named it, so that it may be anywhere; one
    from a request must be public and https. `public_url` stands before keys instead of signed
    URLs; `expiry` of those in seconds."""

    endpoint: str
    key_id: Secret
    secret: Secret
    name: str
    region: str = "us-east-1"
    prefix: str = ""
    expiry: int = 86400
    public_url: str | None = None
    trusted: bool = field(default=False)

    @property
    def virtual_host(self) -> bool:
        """Does the bucket's name stand in the host? Amazon wants it, others know the path."""
        return (urlsplit(self.endpoint).hostname or "").endswith(".amazonaws.com")

    @property
    def shown(self) -> str:
        """For people: the bucket and the host it is at."""
        return f"bucket {self.name} at {urlsplit(self.endpoint).hostname}"


def bucket_of(settings: Settings) -> Bucket | None:
    """The bucket of the environment; None when it names none, or not all of it."""
    if missing_variables(settings) or settings.bucket_endpoint_url is None:
        return None
    assert settings.bucket_access_key_id and settings.bucket_secret_access_key
    bucket = _bucket(
        settings.bucket_endpoint_url,
        settings.bucket_access_key_id,
        settings.bucket_secret_access_key,
        settings.bucket_name,
    )
    return replace(
        bucket,
        region=settings.bucket_region or bucket.region,
        prefix=(settings.bucket_prefix or "").strip("/"),
        expiry=settings.bucket_url_expiry,
        public_url=settings.bucket_public_url,
        trusted=True,
    )


def missing_variables(settings: Settings) -> list[str]:
    """What a bucket still lacks where some of it is set."""
    given = {
        "BUCKET_ENDPOINT_URL": settings.bucket_endpoint_url,
        "BUCKET_ACCESS_KEY_ID": settings.bucket_access_key_id,
        "BUCKET_SECRET_ACCESS_KEY": settings.bucket_secret_access_key,
        "BUCKET_NAME": settings.bucket_name or _own_name(settings.bucket_endpoint_url or ""),
    }
    lacking = [name for name, value in given.items() if value is None]
    return [] if len(lacking) == len(given) else lacking


def bucket_from(given: Mapping[Any, Any], settings: Settings) -> Bucket:
    """The bucket of one request (`s3Config`). Raises ValueError, which holds no secret."""
    values: dict[str, str] = {}
    for key, name in _FIELDS.items():
        value = given.get(key)
        if key == "bucketName" and value is None and isinstance(given.get("endpointUrl"), str):
            value = _own_name(given["endpointUrl"])
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{key} is missing or no text")
        if any(ord(c) <= 32 or ord(c) > 126 for c in value.strip()):
            raise ValueError(f"{key} holds white space or unprintable characters")
        values[name] = value.strip()
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}", values["name"]):
        raise ValueError("bucketName is no name of a bucket")
    bucket = _bucket(
        values["endpoint"], Secret(values["key_id"]), Secret(values["secret"]), values["name"]
    )
    prefix = (settings.bucket_prefix or "").strip("/")
    return replace(bucket, prefix=prefix, expiry=settings.bucket_url_expiry)


def _bucket(endpoint: str, key_id: Secret, secret: Secret, name: str | None) -> Bucket:
    own = _own_name(endpoint)
    parts = urlsplit(endpoint)
    host = parts.netloc
    if own is not None and name in (None, own):
        name, host = own, host[len(own) + 1 :]
    found = _AWS.fullmatch(host.lower()) or _REGION.match(host.lower())
    region = found["region"] if found else "us-east-1"
    path = parts.path.rstrip("/")
    return Bucket(f"{parts.scheme}://{host}{path}", key_id, secret, name or "", region)


def _own_name(endpoint: str) -> str | None:
    """The bucket that an address of Amazon's names itself."""
    try:
        found = _AWS.fullmatch((urlsplit(endpoint).hostname or "").lower())
    except ValueError:
        return None
    return found["name"] if found else None
