"""Replies: format, size, and that the SDK can post them."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from bootstrap.core.findings import docs_url, error
from handler.common import reply
from handler.common.errors import JobError


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
        "docs": docs_url("job.lost"),
        "fix": "Send it again.",
        "details": {"node_id": "4"},
    }
    assert reply.failed(JobError("job.lost", "It is gone.")) == {
        "status": "failed",
        "error": "It is gone.",
        "error_code": "job.lost",
        "docs": docs_url("job.lost"),
    }


def test_an_error_made_from_a_finding_says_the_same_whatever_its_details_are_called() -> None:
    found = error("volume.not_found", "No volume.", "Attach it.", code=1, message=2, fix=3)
    made = JobError.from_finding(found)
    assert (made.code, str(made)) == ("volume.not_found", "No volume. Attach it.")
    assert made.details == {"code": 1, "message": 2, "fix": 3}


def test_nothing_is_left_out_of_a_reply_with_room() -> None:
    assert reply.to_leave_out([5000, 9000], 14_000) == []


def test_the_largest_contents_are_left_out_first() -> None:
    assert reply.to_leave_out([5000, 90_000, 7000, 80_000], 20_000) == [1, 3]


def test_what_is_smaller_than_the_note_about_it_stays() -> None:
    assert reply.to_leave_out([100] * 50, 1000) == []


@given(st.lists(st.integers(0, 20_000), max_size=30), st.integers(0, 100_000))
def test_what_stays_has_room_or_is_small(sizes: list[int], room: int) -> None:
    left_out = reply.to_leave_out(sizes, room)
    assert len(set(left_out)) == len(left_out)
    staying = [size for index, size in enumerate(sizes) if index not in left_out]
    notes = len(left_out) * 2500
    assert sum(staying) + notes <= room or max(staying, default=0) <= 2500


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


def test_json_is_posted_unchanged_and_other_values_as_the_nearest_json() -> None:
    value = {"a": [1, 2.5, True, None, "ü"], "b": {"c": []}}
    assert reply.postable(value) == value
    assert reply.postable({1: float("nan"), "x": (float("inf"), "\ud800")}) == {
        "1": None,
        "x": [None, "?"],
    }
