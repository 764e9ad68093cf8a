"""Download requests: off unless allowed, and all faults of all entries at once."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bootstrap.config import Settings
from bootstrap.models.manifest import CODES as MANIFEST_CODES
from handler.common.errors import CODES, JobError
from handler.request.parse import DownloadRequest, Request, parse_request

ALLOWED = Settings(allow_download_requests=True, max_wait=300)
ENTRY = {"url": "https://example.com/a.safetensors", "directory": "loras"}


def refused(models: object, settings: Settings = ALLOWED, **more: Any) -> JobError:
    with pytest.raises(JobError) as caught:
        parse_request({"type": "download", "models": models, **more}, settings)
    return caught.value


def test_it_is_off_unless_allowed() -> None:
    error = refused([ENTRY], Settings())
    assert error.code == "request.download_off"
    assert "ALLOW_DOWNLOAD_REQUESTS=true" in error.fix


def test_entries_are_read_as_in_a_manifest() -> None:
    given = {"type": "download", "models": [ENTRY, {**ENTRY, "directory": "odd"}], "max_wait": 9}
    request = parse_request({**given, "wait": 1}, ALLOWED)
    assert isinstance(request, DownloadRequest)
    assert [str(spec.relative_path) for spec in request.models] == [
        "loras/a.safetensors",
        "odd/a.safetensors",
    ]
    assert request.max_wait == 9
    assert "no folder `odd`" in request.warnings[0] and "unknown fields" in request.warnings[1]
    assert parse_request({"type": "download", "models": [ENTRY]}, ALLOWED).max_wait == 300  # type: ignore[union-attr]


def test_every_fault_of_every_entry_comes_at_once() -> None:
    error = refused(
        [
            {"url": "https://example.com/a.safetensors", "directory": "../x"},
            {"name": "b.safetensors", "url": "ftp://example.com/b", "directory": "loras"},
            {"url": "https://example.com/c.ckpt", "directory": "checkpoints"},
            "text",
        ]
    )
    assert error.code == "manifest.name"
    codes = [finding["code"] for finding in error.details["findings"]]
    assert codes == ["manifest.name", "manifest.url", "manifest.pickle", "manifest.field"]
    for said in ("models[0]", "models[1]", "models[2]", "models[3]", "4 faults"):
        assert said in error.message
    assert error.fix


@pytest.mark.parametrize("models", [None, [], {}, "https://example.com/a.safetensors", 7])
def test_what_is_not_a_list_of_entries_is_reported(models: object) -> None:
    error = refused(models)
    assert error.code == "request.wrong_type" and "directory" in error.fix


def test_one_fault_is_reported_in_its_own_words() -> None:
    error = refused([{"url": "https://example.com/a.safetensors"}])
    assert error.code == "manifest.field" and "`directory`" in str(error)
    assert "faults" not in str(error)


def test_plain_http_is_refused_where_private_urls_are() -> None:
    entry = {"url": "http://example.com/a.safetensors", "directory": "loras"}
    assert refused([entry]).code == "manifest.url"
    open_settings = Settings(allow_download_requests=True, allow_private_download_urls=True)
    assert parse_request({"type": "download", "models": [entry]}, open_settings)


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
_entries = st.fixed_dictionaries(
    {},
    optional={
        name: st.sampled_from(["loras", "a.safetensors", "https://x.y/a.pt", "../..", ""]) | _values
        for name in ("name", "url", "directory", "hash", "size", "revision", "optional")
    },
)


@settings(deadline=None, max_examples=300)
@given(st.lists(_entries | _values, max_size=3) | _values)
def test_whatever_comes_is_a_request_or_a_job_error(models: Any) -> None:
    came = request_or_error(models)
    if isinstance(came, JobError):
        assert came.code in {**CODES, **MANIFEST_CODES}
        json.dumps(dict(came.details))
    else:
        assert isinstance(came, DownloadRequest) and came.models


def request_or_error(models: Any) -> Request | JobError:
    try:
        return parse_request({"type": "download", "models": models}, ALLOWED)
    except JobError as error:
        return error
