"""A reply's files -> files in one folder, under their own names, never over an existing one."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import requests

from scripts.api_key import is_safe_for_a_key

_SECONDS = (10.0, 60.0)
_BLOCK_BYTES = 1 << 20
# What no file system takes, what a shell or terminal could take amiss, and the separators of all.
_UNFIT = re.compile(r'[\x00-\x1f\x7f-\x9f/\\:*?"<>|]+')
_MOST_NAME_BYTES = 200


@dataclass
class Saving:
    """What became of a reply's results. `elsewhere` are (name, path) of what is on the volume."""

    saved: list[Path] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    elsewhere: list[tuple[str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Result:
    name: str
    content: str | None
    url: str | None
    path: str | None
    text: str | None


def save(output: Any, folder: Path) -> tuple[Any, Saving]:
    """Save the files of a job's `output`; it comes back with `saved` in the place of contents.

    Takes this worker's replies and worker-comfyui's. What cannot be saved is among `problems`.
    """
    done = Saving()
    if not isinstance(output, Mapping):
        return output, done
    shown = dict(output)
    for key in ("results", "images"):
        if isinstance(output.get(key), list):
            shown[key] = [_save_entry(entry, folder, done) for entry in output[key]]
    texts = output.get("texts")  # RESPONSE_FORMAT=worker-comfyui has them apart
    done.texts += [str(text) for text in texts] if isinstance(texts, list) else []
    return shown, done


def _save_entry(entry: Any, folder: Path, done: Saving) -> Any:
    result = _read(entry)
    if result is None:
        done.problems.append(f"a result of an unknown form was left out: {str(entry)[:80]}")
        return entry
    if result.text is not None:
        done.texts.append(result.text)
        return entry
    if result.content is None and result.url is None:
        if result.path:
            done.elsewhere.append((result.name, result.path))
        else:
            done.problems.append(f"{result.name} came without content")
        return entry
    try:
        place = _store(result, folder)
    except (OSError, ValueError, requests.RequestException) as problem:
        why = problem.strerror if isinstance(problem, OSError) and problem.strerror else problem
        done.problems.append(f"{result.name} could not be saved in {folder}: {_plain(why)}")
        return entry
    done.saved.append(place)
    kept = {k: v for k, v in entry.items() if k not in ("image", "data", "url")}
    return {**kept, "saved": str(place)}


def _read(entry: Any) -> _Result | None:
    if not isinstance(entry, Mapping):
        return None
    texts = {key: value for key, value in entry.items() if isinstance(value, str)}
    if "text" in texts:
        return _Result("", None, None, None, texts["text"])
    content = texts.get("image") or texts.get("data")
    url = texts.get("url")
    if entry.get("type") == "s3_url":  # worker-comfyui's
        content, url = None, texts.get("data")
    return _Result(safe_name(texts.get("filename", "")), content, url, texts.get("path"), None)


def safe_name(given: str) -> str:
    """A plain file name: no folders, no hidden file, nothing a terminal would act on."""
    plain = given.encode("utf-8", "replace").decode("utf-8")
    last = re.split(r"[/\\]", plain)[-1]
    name = _UNFIT.sub("_", last).strip().lstrip(".").strip()
    stem, dot, suffix = name.rpartition(".")
    if len(name.encode()) > _MOST_NAME_BYTES:
        kept = (stem if dot else name).encode()[: _MOST_NAME_BYTES - 20].decode("utf-8", "ignore")
        name = kept + (f".{suffix}"[:20] if dot else "")
    return name or "result"


def _store(result: _Result, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if result.url is not None:
        return _fetch(result.url, folder, result.name)
    try:
        content = base64.b64decode(result.content or "", validate=True)
    except binascii.Error as problem:
        raise ValueError(f"it is not base64 ({problem})") from None
    place, file = created(folder, result.name)
    with file:
        file.write(content)
    return place


def _fetch(url: str, folder: Path, name: str) -> Path:
    """Download from a bucket. Its address may carry a signature: no error message holds it."""
    host = urlsplit(url).hostname
    if not is_safe_for_a_key(url):
        raise ValueError(f"its address at {host} is not https")
    with requests.Session() as session:
        session.auth = lambda request: request  # nothing from ~/.netrc
        answer = session.get(url, stream=True, timeout=_SECONDS, allow_redirects=False)
        with closing(answer):
            if answer.status_code != 200:
                raise ValueError(f"{host} answered {answer.status_code}")
            return _written(answer, folder, name)


def _written(answer: requests.Response, folder: Path, name: str) -> Path:
    place, file = created(folder, name)
    try:
        with file:
            for block in answer.iter_content(_BLOCK_BYTES):
                file.write(block)
    except BaseException:
        place.unlink(missing_ok=True)
        raise
    return place


def created(folder: Path, name: str) -> tuple[Path, IO[bytes]]:
    """A new file in `folder`; an existing one, or a link that waits there, is never written to."""
    for place in _candidates(folder, name):
        try:
            return place, place.open("xb")
        except FileExistsError:
            continue
    raise AssertionError("the numbers never end")


def _candidates(folder: Path, name: str) -> Iterator[Path]:
    path = folder / name
    yield path
    for number in count(2):
        yield path.with_name(f"{path.stem}-{number}{path.suffix}")


def _plain(problem: object) -> str:
    """What went wrong, without the address that `requests` would quote."""
    if isinstance(problem, requests.RequestException):
        return "the connection to the bucket failed"
    return str(problem)
