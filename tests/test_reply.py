"""Replies: their form, their size, and that the SDK can post them."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootstrap.findings import error
from handler import reply
from handler.errors import JobError


def entry(size: int, name: str = "a.png", field: str = "image", **more: Any) -> dict[str, Any]:
    path = {"path": f"ComfyUI/output/{name}"}
    return {"filename": name, "size": size, field: "x" * size, **path, **more}


def test_a_completed_job_has_its_results_and_warnings_only_where_there_are_some() -> None:
    assert reply.completed([], []) == {"status": "completed", "results": []}
    more = reply.completed([{"a": 1}], ["odd"], timings={"total": 1.0})
    assert more == {
        "status": "completed",
        "results": [{"a": 1}],
        "timings": {"total": 1.0},
        "warnings": ["odd"],
    }


def test_a_failed_job_has_an_error_that_is_a_text_beside_its_code() -> None:
    failed = reply.failed(JobError("job.lost", "It is gone.", "Send it again.", node_id="4"))
    assert failed == {
        "status": "failed",
        "error": "It is gone. Send it again.",
        "error_code": "job.lost",
        "fix": "Send it again.",
        "details": {"node_id": "4"},
    }
    assert reply.failed(JobError("job.lost", "It is gone.")) == {
        "status": "failed",
        "error": "It is gone.",
        "error_code": "job.lost",
    }


def test_an_error_made_from_a_finding_says_the_same_whatever_its_details_are_called() -> None:
    found = error("volume.not_found", "No volume.", "Attach it.", code=1, message=2, fix=3)
    made = JobError.from_finding(found)
    assert (made.code, str(made)) == ("volume.not_found", "No volume. Attach it.")
    assert made.details == {"code": 1, "message": 2, "fix": 3}


def test_a_reply_that_fits_is_left_as_it_is() -> None:
    given = reply.completed([entry(100)], [])
    assert reply.fitted(copy.deepcopy(given), 1) == given


def test_the_largest_files_are_named_instead_of_sent() -> None:
    given = reply.completed([entry(100, "s.png"), entry(900, "b.mp4", "data")], [])
    fitted = reply.fitted(given, 0.0008)
    assert "image" in fitted["results"][0] and "data" not in fitted["results"][1]
    (warning,) = fitted["warnings"]
    assert "b.mp4 (900 bytes) is on the volume at ComfyUI/output/b.mp4" in warning


def test_a_large_file_that_is_not_on_the_volume_is_an_error() -> None:
    large = entry(900)
    del large["path"]
    with pytest.raises(JobError) as caught:
        reply.fitted(reply.completed([large], []), 0.0005)
    assert caught.value.code == "reply.too_large"
    assert caught.value.details["filename"] == "a.png"


def test_texts_that_are_too_large_by_themselves_are_an_error() -> None:
    text = {"kind": "text", "text": "x" * 2000}
    with pytest.raises(JobError) as caught:
        reply.fitted(reply.completed([text, entry(100)], []), 0.001)
    assert caught.value.code == "reply.too_large"


@given(st.lists(st.integers(0, 2000), max_size=30), st.integers(100, 20_000), st.text(max_size=300))
def test_a_fitted_reply_is_within_the_limit_or_an_error(
    sizes: list[int], limit: int, text: str
) -> None:
    results = [entry(size, f"ü{n}.png") for n, size in enumerate(sizes)]
    results.append({"kind": "text", "text": text})
    fitted = fitted_or_error(reply.completed(results, []), limit / 1e6)
    if isinstance(fitted, JobError):
        assert fitted.code == "reply.too_large"
        return
    assert len(json.dumps(fitted)) <= limit
    assert len(fitted["results"]) == len(sizes) + 1


def fitted_or_error(given: dict[str, Any], max_mb: float) -> dict[str, Any] | JobError:
    try:
        return reply.fitted(given, max_mb)
    except JobError as error:
        return error


_anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.binary()
    | st.builds(object)
    | st.just("\ud800 lone"),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers() | st.none() | st.floats(), inner)
        | st.sets(st.integers())
    ),
    max_leaves=15,
)


@given(_anything)
def test_whatever_is_made_postable_is_json_in_utf_8(value: Any) -> None:
    posted = reply.postable(value)
    text = json.dumps(posted, allow_nan=False, ensure_ascii=False)
    assert json.loads(text.encode("utf-8")) == posted


def test_json_is_posted_as_it_is_and_the_rest_as_what_comes_nearest() -> None:
    value = {"a": [1, 2.5, True, None, "ü"], "b": {"c": []}}
    assert reply.postable(value) == value
    assert reply.postable({1: float("nan"), "x": (float("inf"), "\ud800")}) == {
        "1": None,
        "x": [None, "?"],
    }
