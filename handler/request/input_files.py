"""Pure: a request's input files, and which names and folders they may have."""

from __future__ import annotations

import posixpath
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

from handler.common.errors import JobError, short, wrong_type
from handler.request.options import read_flag
from handler.request.references import is_url

_MAX_NAME_BYTES = 200  # leaves room for the job's tag within most file systems' 255
_MAX_FOLDERS = 5
_FIX_NAME = "Use a plain file name such as photo.png, the one that the workflow's LoadImage names."
_FIX_FOLDER = 'Use a relative folder such as "clipspace", as the workflow names it.'


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
