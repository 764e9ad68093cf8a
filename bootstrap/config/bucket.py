"""Pure: where results are uploaded to, from the endpoint's environment or from one request."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

from bootstrap.config.settings import Settings
from bootstrap.core.redact import Secret

# `https://NAME.s3.REGION.amazonaws.com`: the bucket's own address, as other workers expect it.
_NAMED_REGION = r"(?P<region>[a-z0-9]+(?:-[a-z0-9]+)+)"
_HOSTS = re.compile(
    r"(?:(?P<name>[a-z0-9.-]+)\.)?(?:"
    r"s3(?:-accelerate|-fips)?(?:\.dualstack)?(?:[.-]" + _NAMED_REGION + r")?"
    r"\.(?:amazonaws\.com(?:\.cn)?|(?:backblazeb2|wasabisys)\.com)"
    r"|(?P<space>[a-z]{3}[0-9])(?P<cdn>\.cdn)?\.digitaloceanspaces\.com)"
)
_REGION = re.compile(
    r"s3(?:api)?[.-](?:" + _NAMED_REGION + r"\.[^.]+\.|(?P<space>[a-z]+)\.io\.cloud\.ovh\.)"
)
_NO_BUCKET = "/storage/v1/s3"  # the end of Supabase's address
JOB_ID = "{job_id}"
_FIELDS = {
    "endpointUrl": "endpoint",
    "accessId": "key_id",
    "accessSecret": "secret",
    "bucketName": "name",
}
S3_CONFIG = "s3Config"


@dataclass(frozen=True)
class Bucket:
    """An S3-compatible bucket. `trusted`: set by the operator, so it may be anywhere; one from a
    request must be public and https. `public_url` is put before keys instead of signing URLs;
    `expiry` of signed ones in seconds. `prefix` may contain `{job_id}`."""

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
        """Is the bucket's name in the host? Amazon requires it, others use the path."""
        host = urlsplit(self.endpoint).hostname or ""
        return host.endswith((".amazonaws.com", ".amazonaws.com.cn"))

    def for_job(self, job_id: object) -> Bucket:
        """This bucket with the job's id filled into its prefix."""
        word = re.sub(r"[^A-Za-z0-9._-]+|^\.+", "-", str(job_id))[:100]
        return replace(self, prefix=self.prefix.replace(JOB_ID, word))

    @property
    def shown(self) -> str:
        """For people: the bucket and the host it is at."""
        return f"bucket {self.name} at {urlsplit(self.endpoint).hostname}"


def bucket_of(settings: Settings) -> Bucket | None:
    """The environment's bucket; None if there is none, or its variables are incomplete."""
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
        prefix=_joined(bucket.prefix, settings.bucket_prefix),
        expiry=settings.bucket_url_expiry,
        public_url=settings.bucket_public_url,
        trusted=True,
    )


def has_no_name(settings: Settings) -> bool:
    """Is the bucket named after the month, as in worker-comfyui, because nothing else names it?"""
    endpoint = settings.bucket_endpoint_url
    return bool(endpoint and not settings.bucket_name and not _place(endpoint, None)[1])


def missing_variables(settings: Settings) -> list[str]:
    """The variables that are missing if some of a bucket's are set."""
    given = {
        "BUCKET_ENDPOINT_URL": settings.bucket_endpoint_url,
        "BUCKET_ACCESS_KEY_ID": settings.bucket_access_key_id,
        "BUCKET_SECRET_ACCESS_KEY": settings.bucket_secret_access_key,
    }
    lacking = [name for name, value in given.items() if value is None]
    none = len(lacking) == len(given) and settings.bucket_name is None
    return [] if none else lacking


def bucket_from(given: Mapping[Any, Any], settings: Settings) -> Bucket:
    """The bucket of one request (`s3Config`). Raises ValueError, which holds no secret."""
    values: dict[str, str] = {}
    for key, name in _FIELDS.items():
        value = given.get(key)
        if key == "bucketName" and value is None and isinstance(given.get("endpointUrl"), str):
            value = _place(given["endpointUrl"], None)[1] or None
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{key} is missing or no text")
        if any(ord(c) <= 32 or ord(c) > 126 for c in value.strip()):
            raise ValueError(f"{key} holds white space or unprintable characters")
        values[name] = value.strip()
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}", values["name"]):
        raise ValueError("bucketName is not a valid bucket name")
    bucket = _bucket(
        values["endpoint"], Secret(values["key_id"]), Secret(values["secret"]), values["name"]
    )
    prefix = _joined(bucket.prefix, settings.bucket_prefix)
    return replace(bucket, prefix=prefix, expiry=settings.bucket_url_expiry)


def _bucket(endpoint: str, key_id: Secret, secret: Secret, name: str | None) -> Bucket:
    address, found, prefix = _place(endpoint, name)
    host = urlsplit(address).netloc.lower()
    known = _HOSTS.fullmatch(host) or _REGION.match(host)
    regions = known.groupdict() if known else {}
    region = regions.get("region") or regions.get("space")
    return Bucket(address, key_id, secret, found or month_name(), region or "us-east-1", prefix)


def month_name() -> str:
    """The bucket that worker-comfyui uses if its address names none: `11-26`."""
    return time.strftime("%m-%y")


def _place(endpoint: str, name: str | None) -> tuple[str, str, str]:
    """(address without the bucket, the bucket's name or "", key prefix). The bucket is in the host
    or first in the path; with another `name`, that path is the store's own."""
    try:
        parts = urlsplit(endpoint)
        known = _HOSTS.fullmatch((parts.hostname or "").lower())
    except ValueError:
        return endpoint, name or "", ""
    host, path = parts.netloc, parts.path.strip("/")
    own = known["name"] if known else None
    if known and known["cdn"]:  # which only reads
        host = host.replace(".cdn.", ".", 1)
    if own and name in (None, own):
        return f"{parts.scheme}://{host[len(own) + 1 :]}", own, path
    first, _, rest = path.partition("/")
    if first and first == (name or first) and not (name is None and f"/{path}" == _NO_BUCKET):
        return f"{parts.scheme}://{host}", first, rest
    return f"{parts.scheme}://{host}{path and '/' + path}", name or "", ""


def _joined(*parts: str | None) -> str:
    return "/".join(stripped for part in parts if (stripped := (part or "").strip("/")))
