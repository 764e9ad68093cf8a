"""Pure: a request's options for results, progress and bucket, and the addresses that it may name.

A bucket that cannot work is refused here, before the GPU computes results that could not be
uploaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from bootstrap.config import Settings
from bootstrap.config.bucket import S3_CONFIG, Bucket, bucket_from, bucket_of
from bootstrap.models.sources import BadLink, host_of, parse_link
from bootstrap.net import DownloadError
from bootstrap.net.addresses import AddressPolicy, without_query
from handler.common.errors import JobError, short, wrong_type

_BUCKET_SHAPE = 'an object {"accessId", "accessSecret", "bucketName", "endpointUrl"}'
PUBLIC_FIX = (
    "Send a public https address without a login; where addresses of your own network are meant, "
    "set ALLOW_PRIVATE_URLS=true in the endpoint's environment."
)
DELIVERIES = ("base64", "s3", "volume")
FORMATS = ("png", "jpeg", "webp")
_OUTPUT_FIELDS = (
    "delivery", "format", "quality", "metadata", "include_temp", "zip", "upload_urls",
)  # fmt: skip
_PROGRESS_FIELDS = ("previews", "preview_size")
_MOST_ADDRESSES = 1000
_ADDRESS_SHAPE = 'a list of https addresses, or of {"url", "headers"}'
_HEADER_NAME = re.compile(r"[A-Za-z0-9-]{1,64}")
_HEADER_TEXT = re.compile(r"[\x20-\x7e]{0,1024}")
_OUR_HEADERS = frozenset(("host", "content-length", "transfer-encoding", "connection"))


def check_model_host(url: str, settings: Settings) -> None:
    """May a job fetch a model from there? Invalid addresses are refused elsewhere. Raises
    JobError."""
    try:
        host = host_of(parse_link(url))
    except BadLink:
        return
    allowed = settings.model_hosts
    if not allowed or any(
        host == name or (name.startswith("*.") and host.endswith(name[1:])) for name in allowed
    ):
        return
    raise JobError(
        "request.model_host",
        f"Models may not be fetched from {host} on this endpoint.",
        f"Use one of {', '.join(allowed)}, or add {host} to MODEL_HOSTS in the endpoint's "
        "environment variables.",
        host=host,
        allowed=list(allowed),
    )


def read_bucket(s3_config: object, settings: Settings) -> Bucket | None:
    """The request's own bucket, else the endpoint's. Raises JobError, without secrets."""
    if s3_config is None:
        return bucket_of(settings)
    if not isinstance(s3_config, Mapping):
        raise JobError(
            "request.wrong_type", f"{S3_CONFIG} is not an object.", f"Send {_BUCKET_SHAPE}."
        )
    try:
        bucket = bucket_from(s3_config, settings)
    except ValueError as problem:
        raise JobError(
            "output.bad_bucket", f"{S3_CONFIG}: {problem}.", f"Send {_BUCKET_SHAPE}, all strings."
        ) from None
    endpoint = s3_config["endpointUrl"].strip()
    _check_address(endpoint, settings, "output.bad_bucket", f"{S3_CONFIG}: endpointUrl")
    return bucket


def _check_address(url: str, settings: Settings, code: str, name: str) -> None:
    """Raises JobError for an address in the field `name` that may not be used, without resolving
    it."""
    try:
        AddressPolicy(settings.allow_private_urls).at_sight(url)
    except DownloadError as problem:
        raise JobError(code, f"{name}: {problem.message}", PUBLIC_FIX) from None


@dataclass(frozen=True)
class PutAddress:
    """An address and headers for a PUT of a result. Neither is shown: queries are secret."""

    url: str = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class OutputOptions:
    """`delivery` None: to the bucket if there is one, else in the reply. `format` None: as the
    workflow saves it; `quality` 1 to 100 for jpeg and webp (100 is lossless for webp). Without
    `metadata` the workflow is removed from pictures; `include_temp` adds previews. `zip`: all files
    as one. `upload_urls`: upload addresses in order, instead of a bucket."""

    delivery: str | None = None
    format: str | None = None
    quality: int = 90
    metadata: bool = True
    include_temp: bool = False
    zip: bool = False
    upload_urls: tuple[PutAddress, ...] = ()

    @property
    def changes_images(self) -> bool:
        """Must pictures be converted?"""
        return self.format is not None or not self.metadata


@dataclass(frozen=True)
class ProgressOptions:
    """Progress options: `previews` of at most `preview_size` pixels a side."""

    previews: bool = False
    preview_size: int = 256


def read_progress(given: object) -> tuple[ProgressOptions, tuple[str, ...]]:
    """The options, and a warning for fields that do not exist. Raises JobError."""
    fields, warnings = _fields_of("progress", given, _PROGRESS_FIELDS, '{"previews": true}')
    options = ProgressOptions(
        previews=read_flag(fields, "previews", within="progress."),
        preview_size=_whole(fields, "preview_size", 256, (32, 512), "progress."),
    )
    return options, warnings


def read_options(given: object, settings: Settings) -> tuple[OutputOptions, tuple[str, ...]]:
    """The options, and a warning for fields that do not exist. Raises JobError."""
    fields, warnings = _fields_of("output", given, _OUTPUT_FIELDS, '{"delivery": "base64"}')
    options = OutputOptions(
        quality=_whole(fields, "quality", 90, (1, 100), "output."),
        delivery=_one_of(fields, "delivery", DELIVERIES),
        format=_one_of(fields, "format", FORMATS),
        metadata=read_flag(fields, "metadata", True, "output."),
        include_temp=read_flag(fields, "include_temp", within="output."),
        zip=read_flag(fields, "zip", within="output."),
        upload_urls=tuple(_addresses(fields.get("upload_urls"), settings)),
    )
    if options.upload_urls and options.delivery not in (None, "s3"):
        wanted = "no delivery beside upload_urls, or s3"
        raise wrong_type("output.delivery", wanted, options.delivery)
    return options, warnings


def _fields_of(
    name: str, given: object, known: tuple[str, ...], example: str
) -> tuple[Mapping[Any, Any], tuple[str, ...]]:
    """An object's fields, and a warning about unknown ones. Raises JobError."""
    if given is None:
        return {}, ()
    if not isinstance(given, Mapping):
        raise wrong_type(name, f"an object such as {example}", given)
    # A name may be an address with a token in it, by mistake.
    unknown = ", ".join(sorted(without_query(str(key)) for key in given if key not in known))
    warning = f"ignored unknown fields of {name}: {unknown[:300]}"
    return given, ((warning,) if unknown else ())


def _whole(
    given: Mapping[Any, Any], name: str, default: int, bounds: tuple[int, int], within: str
) -> int:
    value, (low, high) = given.get(name, default), bounds
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise wrong_type(f"{within}{name}", f"a whole number from {low} to {high}", value)
    return value


def _one_of(given: Mapping[Any, Any], name: str, allowed: tuple[str, ...]) -> str | None:
    value = given.get(name)
    if value is not None and (not isinstance(value, str) or value not in allowed):
        raise wrong_type(f"output.{name}", f"one of {', '.join(allowed)}", value)
    return value


def read_flag(given: Mapping[Any, Any], name: str, default: bool = False, within: str = "") -> bool:
    """A boolean field, `within` another one. Raises JobError."""
    value = given.get(name, default)
    if not isinstance(value, bool):
        raise wrong_type(f"{within}{name}", "true or false", value)
    return value


def _addresses(given: object, settings: Settings) -> Iterator[PutAddress]:
    """The upload addresses. Raises JobError for one that may not be used."""
    if given is None:
        return
    if not isinstance(given, list) or not 0 < len(given) <= _MOST_ADDRESSES:
        raise wrong_type("output.upload_urls", _ADDRESS_SHAPE, given)
    for item in given:
        entry = item if isinstance(item, Mapping) else {"url": item}
        url, headers = entry.get("url"), entry.get("headers") or {}
        if not isinstance(url, str) or not isinstance(headers, Mapping):
            raise wrong_type("output.upload_urls", _ADDRESS_SHAPE, item)
        _check_address(url, settings, "output.bad_address", "upload_urls")
        yield PutAddress(url, dict(_header(name, text) for name, text in headers.items()))


def _header(name: object, text: object) -> tuple[str, str]:
    plain = isinstance(name, str) and isinstance(text, str)
    if (
        not plain
        or not _HEADER_NAME.fullmatch(str(name))
        or not _HEADER_TEXT.fullmatch(str(text))
        or str(name).lower() in _OUR_HEADERS
    ):
        raise JobError(
            "output.bad_address",
            f"upload_urls: the header {short(str(name))} cannot be sent.",
            "Send plain names and values; Host and the lengths are the worker's own.",
        )
    return str(name), str(text)
