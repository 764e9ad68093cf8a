"""Malformed requests: valid ones with a part replaced, removed or added."""

from __future__ import annotations

import base64
import copy
import json
import os
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from scripts.document import all_codes
from tests.conftest import BootedWorker
from tests.end_to_end.test_worker import plain, png
from tests.support.schemas import check_reply

SECRET = "secret-marker-6622"  # of a bucket: never in a reply
TOKEN = "token-marker-7733"  # of a URL: not in messages about fetching it
CODES = all_codes()
_PIXEL = base64.b64encode(png(1, 1)).decode()
WHOLE: dict[str, Any] = {
    "workflow": {
        **plain(),
        "3": {"class_type": "LoadImage", "inputs": {"image": "photo.png"}},
        "4": {"class_type": "PreviewImage", "inputs": {"images": ["3", 0]}},
    },
    "overrides": {"1": {"width": 8}},
    "images": [{"name": "photo.png", "image": _PIXEL}],
    "files": [{"name": "b.png", "data": _PIXEL, "subfolder": "sub", "unpack": False}],
    "output": {
        "delivery": "base64",
        "format": "webp",
        "quality": 50,
        "metadata": False,
        "zip": False,
    },
    "progress": {"previews": True, "preview_size": 64},
    "max_wait": 20,
    "retry_on_oom": True,
}
NAMED: dict[str, Any] = {"workflow_name": "a", "params": {}, "overrides": {}, "max_wait": 20}
UPLOADED: dict[str, Any] = {
    "workflow": plain(),
    "output": {"upload_urls": [{"url": "https://s3.invalid/a", "headers": {"x-a": "b"}}]},
    "max_wait": 20,
}
BUCKET: dict[str, Any] = {
    "workflow": plain(),
    "s3Config": {
        "accessId": SECRET,
        "accessSecret": SECRET,
        "bucketName": "bucket",
        "endpointUrl": "https://s3.invalid",
    },
    "max_wait": 20,
}
OTHERS: list[dict[str, Any]] = [
    {"type": "models"},
    {"type": "workflows", "openapi": True},
    {"type": "diagnostics", "sections": ["environment"], "deep": False},
]
URLS = [
    f"{scheme}://{host}/a.png?token={TOKEN}"
    for scheme in ("https", "http")
    for host in (
        "127.0.0.1:9", "2130706433:9", "0x7f.1:9", "0177.1:9", "[::1]:9", "[::ffff:127.0.0.1]:9",
        "[64:ff9b::7f00:1]", "169.254.169.254", "10.0.0.1", "100.64.0.1", "name.invalid",
        "user:pass@127.0.0.1", "127.0.0.1:99999", "", "[", "a b",
    )
]  # fmt: skip
# Addresses of other kinds too: an input in a bucket, a model at Hugging Face.
ADDRESSES = [*URLS, *(u.replace("https", kind, 1) for kind in ("s3", "hf") for u in URLS[:16])]
NAMES = [
    "../x.png", "/etc/passwd", "..", ".", "", " ", "a/b.png", "a\\b.png", "a\0.png",
    "a\r\nX: y.png", "..%2fx.png", "%2e%2e/x", "\u202egnp.exe", "\ud800.png", "x" * 300, "CON",
    "~/x", "$(id).png", "-rf.png", "a.png [output]", "a.png [temp]", "../../x.png [input]", "file:///etc/passwd",
]  # fmt: skip
_TEXTS = st.sampled_from(URLS) | st.sampled_from(NAMES) | st.text(max_size=30)
_NUMBERS = st.sampled_from(
    [0, -1, 1, 2**31, 2**63, 10**30, -0.5, 1e300, float("nan"), float("inf")]
)
_SCALARS = st.none() | st.booleans() | _NUMBERS | _TEXTS
_JUNK = st.recursive(
    _SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "url", "1", "inputs"]) | _TEXTS, inner, max_size=3
        )
    ),
    max_leaves=8,
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a request, as the keys that lead there."""
    found = [path] if path else []
    if isinstance(value, list):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        for key, inner in value.items():
            found += _places(inner, (*path, key))
    return found


def _changed(whole: Any, place: tuple[Any, ...], way: str, junk: Any) -> Any:
    """A copy with one place removed, replaced by `junk`, or with `junk` added beside it."""
    request = copy.deepcopy(whole)
    parent = request
    for key in place[:-1]:
        parent = parent[key]
    if way == "remove":
        del parent[place[-1]]
    elif way == "add" and isinstance(parent, dict):
        parent[str(junk)[:50]] = junk
    else:
        parent[place[-1]] = junk
    return request


def _wrong(whole: dict[str, Any]) -> st.SearchStrategy[Any]:
    ways = st.sampled_from(["replace", "replace", "replace", "remove", "add"])
    return st.builds(_changed, st.just(whole), st.sampled_from(_places(whole)), ways, _JUNK)


def _aimed(whole: dict[str, Any], place: tuple[Any, ...], junk: Any) -> st.SearchStrategy[Any]:
    """`junk` at exactly the place where it could do harm."""
    return st.builds(_changed, st.just(whole), st.just(place), st.just("replace"), junk)


def _loader(name: str) -> dict[str, Any]:
    """A loader of models, for an address or a name."""
    return {"class_type": "VAELoader", "inputs": {"vae_name": name}}


_URLS, _NAMES = st.sampled_from(ADDRESSES), st.sampled_from(NAMES)
_AIMED = [
    *(
        _aimed(WHOLE, ("images", 0, key), _NAMES | _URLS | _JUNK)
        for key in ("name", "image", "url")
    ),
    *(_aimed(WHOLE, ("files", 0, key), _NAMES | _URLS | _JUNK) for key in ("name", "subfolder")),
    _aimed(WHOLE, ("files", 0), st.fixed_dictionaries({"name": _NAMES, "url": _URLS})),
    _aimed(WHOLE, ("workflow", "3", "inputs", "image"), _NAMES | _URLS | _JUNK),
    _aimed(WHOLE, ("workflow", "2", "inputs", "filename_prefix"), _NAMES),
    _aimed(WHOLE, ("workflow", "4", "class_type"), _NAMES),
    _aimed(WHOLE, ("overrides", "1"), st.dictionaries(st.just("width"), _JUNK)),
    _aimed(NAMED, ("workflow_name",), _NAMES),
    _aimed(WHOLE, ("files", 0, "unpack"), st.just(True)),
    _aimed(WHOLE, ("workflow", "3"), st.builds(_loader, _URLS | _NAMES)),
    _aimed(NAMED, ("params",), st.dictionaries(st.text(max_size=3), _JUNK, max_size=2) | _JUNK),
    _aimed(UPLOADED, ("output", "upload_urls", 0), _URLS | _NAMES | _JUNK),
    _aimed(UPLOADED, ("output", "upload_urls", 0, "headers"), st.dictionaries(_NAMES, _NAMES)),
    _aimed(BUCKET, ("s3Config", "endpointUrl"), _URLS | _NAMES),
    _aimed(BUCKET, ("s3Config", "bucketName"), _NAMES),
]
requests = st.one_of(
    *_AIMED,
    _wrong(WHOLE),
    _wrong(WHOLE),
    _wrong(NAMED),
    _wrong(BUCKET),
    _wrong(UPLOADED),
    *(_wrong(other) for other in OTHERS),
    st.builds(_changed, _wrong(WHOLE), st.just(("output",)), st.just("replace"), _JUNK),
    st.builds(json.dumps, _JUNK).map(lambda text: {"workflow": text}),
    _JUNK,
)


def check_answer(worker: BootedWorker, given: Any) -> str:
    """Ask, and check what every reply must satisfy; its code, or `completed`."""
    before = copy.deepcopy(given)
    reply = worker.ask(given)
    text = json.dumps(reply, allow_nan=False)
    text.encode("utf-8")
    check_reply(reply)
    if reply["status"] == "failed":
        code = reply["error_code"]
        assert code in CODES and code != "worker.internal", (code, reply, before)
        assert reply["fix"] and len(reply["error"]) < 4000, (reply, before)
        assert TOKEN not in text or not code.startswith(("input.", "output.")), (reply, before)
    assert SECRET not in text, (reply, before)
    return str(reply.get("error_code", "completed"))


def check_whole(worker: BootedWorker) -> None:
    """The worker works, and nothing is left of earlier jobs."""
    assert worker.ask(copy.deepcopy(WHOLE))["status"] == "completed"
    work = worker.serving.work
    assert work is not None
    assert not any(path.is_file() for path in work.input.rglob("*"))
    assert len([path for path in work.output.rglob("*") if path.is_file()]) <= 2


def elsewhere(worker: BootedWorker, volume: Path) -> list[str]:
    """All files in the worker's own folder and on the volume that no job may touch."""
    work = worker.serving.work
    assert work is not None
    theirs = [work.input, work.output, work.temp, work.user, volume / "ComfyUI" / "output"]
    found: list[str] = []
    for top in (work.root, volume):
        for parent, folders, names in os.walk(top):
            here = Path(parent)
            folders[:] = [f for f in folders if here / f not in theirs and f != "__pycache__"]
            found += [str(here / name) for name in names if not name.startswith("comfyui.db")]
    return sorted(found)
