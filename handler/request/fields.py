"""Pure: what a request has besides its workflow: input files, with the names and folders that they
may have; options for results, progress and bucket; and the addresses that it may name.

A bucket that cannot work is refused here, before the GPU computes results that could not be
uploaded.
"""

from __future__ import annotations

import posixpath
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

from bootstrap.config import Settings
from bootstrap.config.bucket import S3_CONFIG, Bucket, bucket_from, bucket_of
from bootstrap.models.sources import BadLink, host_of, parse_link
from bootstrap.net import DownloadError
from bootstrap.net.addresses import AddressPolicy, without_query
from handler.common.errors import JobError, short, wrong_type
from handler.request.references import is_url

_MAX_NAME_BYTES = 200  # leaves room for the job's tag within most file systems' 255
_MAX_FOLDERS = 5
_FIX_NAME = "Use a plain file name such as photo.png, the one that the workflow's LoadImage names."
_FIX_FOLDER = 'Use a relative folder such as "clipspace", as the workflow names it.'
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


@dataclass(frozen=True)
class InputFile:
    """A request's file: `data` is base64 with or without a data URI prefix, or `url` its address.
    The workflow refers to it by `reference`; with `unpack` it is a zip file, whose contents are in
    the folder of that name without the extension."""

    name: str
    data: str | None = field(default=None, repr=False)
    url: str | None = field(default=None, repr=False)
    subfolder: str = ""
    unpack: bool = False

    @property
    def reference(self) -> str:
        """The workflow's name for the file: `subfolder/name`."""
        name = posixpath.splitext(self.name)[0] if self.unpack else self.name
        return posixpath.join(self.subfolder, name)


def read_files(
    images: object, files: object, others: tuple[InputFile, ...] = ()
) -> tuple[InputFile, ...]:
    """The files of both fields, and those that the request names in another way. Raises
    JobError."""
    listed = (*_read_list("images", "image", images), *_read_list("files", "data", files))
    found = (*listed, *(file for file in others if file not in listed))
    seen: set[str] = set()
    for file in found:
        if file.reference in seen:
            raise JobError(
                "input.named_twice",
                f"Two input files are called {short(file.reference)}.",
                "Give each file its own name.",
            )
        seen.add(file.reference)
    return found


def filename_in(url: str) -> str:
    """The file name at the end of a URL's path; `file` if there is no usable one."""
    try:
        name = unquote(urlsplit(url).path.rpartition("/")[2])
        return checked_name(name)
    except (ValueError, JobError):
        return "file"


def checked_name(name: str) -> str:
    """`name` in NFC if it is one plain file name. Raises JobError."""
    plain = unicodedata.normalize("NFC", name)
    problem = _problem_with(plain)
    if problem is None:
        return plain
    raise JobError("image.bad_name", f"The image name {_cut(plain)!r} {problem}.", _FIX_NAME)


def checked_folder(folder: str) -> str:
    """`folder` in NFC if it is a plain relative folder. Raises JobError."""
    plain = unicodedata.normalize("NFC", folder).strip("/") if folder != "/" else folder
    parts = plain.split("/") if plain else []
    problem = next((p for p in map(_problem_with, parts) if p is not None), None)
    if folder.startswith("/"):
        problem = "is not relative"
    if len(parts) > _MAX_FOLDERS or len(plain.encode("utf-8", "replace")) > _MAX_NAME_BYTES:
        problem = "is too long"
    if problem is None:
        return plain
    raise JobError("image.bad_name", f"The subfolder {_cut(plain)!r} {problem}.", _FIX_FOLDER)


def _read_list(name: str, data_field: str, given: object) -> Iterator[InputFile]:
    if given is None:
        return
    if not isinstance(given, list):
        raise wrong_type(name, f'a list of {{"name", "{data_field}"}} objects', given)
    for index, item in enumerate(given):
        yield _read_file(f"{name}[{index}]", data_field, item)


def _read_file(where: str, data_field: str, given: object) -> InputFile:
    if not isinstance(given, Mapping):
        raise wrong_type(where, f'an object with "name" and "{data_field}"', given)
    data, url = _content_of(where, data_field, given)
    name, subfolder = given.get("name"), given.get("subfolder") or ""
    if name is None and url is not None:
        name = filename_in(url)
    if not isinstance(name, str) or not name:
        raise JobError(
            "image.no_name",
            f"{where} has no name.",
            f'Give it the name the workflow uses: {{"name": "photo.png", "{data_field}": "…"}}.',
        )
    if not isinstance(subfolder, str):
        raise wrong_type(f"{where}.subfolder", "a relative folder", subfolder)
    unpack = read_flag(given, "unpack", within=f"{where}.")
    return InputFile(checked_name(name), data, url, checked_folder(subfolder), unpack)


def _content_of(
    where: str, data_field: str, given: Mapping[Any, Any]
) -> tuple[str | None, str | None]:
    """(data, url) of an entry, one of them None."""
    data, url = given.get(data_field), given.get("url")
    for key, value in ((data_field, data), ("url", url)):
        if value is not None and not isinstance(value, str):
            raise wrong_type(f"{where}.{key}", "a string", value)
    if data and url:
        raise JobError(
            "request.wrong_type",
            f'{where} has both "{data_field}" and "url".',
            "Send one of them.",
            field=where,
        )
    if not data and not url:
        raise JobError(
            "image.no_data",
            f"{where} ({short(given.get('name'))}) has no data.",
            f'Put the file\'s content, base64 encoded, into its "{data_field}" field, or an https '
            'address into "url".',
        )
    if data and is_url(data):
        return None, data
    return data or None, url or None


def _problem_with(name: str) -> str | None:
    if "/" in name or "\\" in name:
        return 'holds a folder separator; folders go into "subfolder"'
    if any(unicodedata.category(c) in ("Cc", "Cs") for c in name):
        return "holds a control character"
    if name.strip(". ") == "" or name != name.strip():
        return "is not a file name"
    if len(name.encode()) > _MAX_NAME_BYTES:
        return f"has {len(name.encode())} bytes, more than {_MAX_NAME_BYTES}"
    return None


def _cut(name: str) -> str:
    return name if len(name) <= 60 else name[:57] + "…"


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
