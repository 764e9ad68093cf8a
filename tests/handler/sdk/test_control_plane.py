"""The protocol between the SDK's worker loop and a control plane (runpod 1.12.0).

The real SDK in production mode, in a child process. These are facts the handler is built upon;
when a new SDK changes one, the test that holds it fails here and not on an endpoint.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from tests.support.control_plane import API_KEY, DROP, PlaneTimeout
from tests.support.plane_records import now
from tests.support.rig import Rig, ready_rig
from tests.support.waiting import wait_until


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    """One worker with four slots for all tests that leave it as they found it."""
    with ready_rig(CONCURRENCY="4") as shared:
        yield shared
        unknown = shared.plane.select("unknown")
        assert not unknown, f"the SDK asked for what the plane does not have: {unknown}"


def give_back(rig: Rig, value: Any) -> Any:
    return rig.plane.result(rig.plane.submit({"do": "return", "value": value}))


def lost(rig: Rig, job: str) -> bool:
    """Whether the SDK has finished this job without a result that was accepted."""
    rig.wait_until_settled(job)
    return not any(event.status == 200 for event in rig.plane.select("done", job))


# --- what a handler returns -------------------------------------------------------------------


def test_a_job_goes_in_and_its_result_comes_out(rig: Rig) -> None:
    job = rig.plane.submit({"prompt": "a cat"}, job_id="cat-u1")
    output = rig.plane.result(job)["output"]
    assert output["job"] == {"id": "cat-u1", "input": {"prompt": "a cat"}}
    done = rig.plane.select("done", job)
    assert len(done) == 1
    assert done[0].worker == "worker-1"
    assert done[0].query == {"gpu": "NVIDIA L4", "isStream": "false"}
    assert done[0].headers["content-type"] == "application/x-www-form-urlencoded"
    assert [event.kind for event in rig.plane.select(job_id=job)] == ["submit", "take", "done"]


def test_every_job_runs_in_one_loop_on_the_main_thread(rig: Rig) -> None:
    for _ in range(2):
        output = rig.plane.result(rig.plane.submit({}))["output"]
        assert output["main thread"]
        assert output["loop of the first job"]
        assert not output["loop of the fitness check"]


def test_an_error_text_is_lifted_out_of_the_output(rig: Rig) -> None:
    body = give_back(rig, {"error": "bad", "error_code": "X"})
    assert body == {"output": {"error_code": "X"}, "error": "bad"}


def test_an_error_that_is_not_text_is_posted_unchanged(rig: Rig) -> None:
    assert give_back(rig, {"error": {"code": 1}, "a": 1})["error"] == {"code": 1}


def test_a_falsy_error_vanishes(rig: Rig) -> None:
    assert give_back(rig, {"error": "", "a": 1}) == {"output": {"a": 1}}


def test_an_empty_output_vanishes(rig: Rig) -> None:
    assert give_back(rig, {}) == {}


def test_refresh_worker_becomes_stop_pod(rig: Rig) -> None:
    assert give_back(rig, {"a": 1, "refresh_worker": True}) == {"output": {"a": 1}, "stopPod": True}


def test_an_exception_becomes_a_json_text(rig: Rig) -> None:
    body = rig.plane.result(rig.plane.submit({"do": "raise"}))
    assert list(body) == ["error"]
    error = json.loads(body["error"])
    assert error["error_type"] == "<class 'ValueError'>"
    assert error["error_message"] == "no such model"
    assert "Traceback" in error["error_traceback"]
    assert error["worker_id"] == "worker-1"


@pytest.mark.parametrize("value", ["bytes", "surrogate"])
def test_what_cannot_be_encoded_is_never_posted(rig: Rig, value: str) -> None:
    job = rig.plane.submit({"do": value})
    rig.wait_until_settled(job)
    assert rig.plane.select("done", job) == []


def test_nan_is_posted_as_something_that_is_not_json(rig: Rig) -> None:
    job = rig.plane.submit({"do": "nan"})
    assert lost(rig, job)
    (event,) = rig.plane.select("done", job)
    assert (event.text, event.status) == ('{"output": {"value": NaN}}', 400)


def test_a_result_over_the_limit_is_refused_and_lost(rig: Rig) -> None:
    job = rig.plane.submit({"do": "large", "size": 10_000_001})
    assert lost(rig, job)
    assert [event.status for event in rig.plane.select("done", job)] == [400]


def test_progress_goes_to_job_done_and_may_arrive_in_any_order(rig: Rig) -> None:
    job = rig.plane.submit({"do": "progress", "steps": ["a", "b", "c"], "seconds": 2})
    assert rig.plane.result(job) == {"output": {"ok": True}}
    rig.plane.wait_for("progress", job, count=3)
    posted = [event.body for event in rig.plane.select("progress", job)]
    assert all(body["status"] == "IN_PROGRESS" for body in posted)
    assert sorted(body["output"] for body in posted) == ["a", "b", "c"]


# --- when a post fails ------------------------------------------------------------------------


def test_a_server_error_is_retried_twice(rig: Rig) -> None:
    rig.plane.faults.answer("done", 500, 503)
    job = rig.plane.submit({"do": "return", "value": 1})
    assert rig.plane.result(job) == {"output": 1}
    assert [event.status for event in rig.plane.select("done", job)] == [500, 503, 200]


@pytest.mark.parametrize("answer", [400, 429, DROP])
def test_a_refusal_or_a_cut_line_is_not_retried(rig: Rig, answer: int) -> None:
    rig.plane.faults.answer("done", answer)
    job = rig.plane.submit({"do": "return", "value": 1})
    assert lost(rig, job)
    assert [event.status for event in rig.plane.select("done", job)] == [answer]
    assert give_back(rig, 2) == {"output": 2}


# --- cancel -----------------------------------------------------------------------------------


def test_a_cancelled_job_gets_cancelled_error_and_posts_nothing(rig: Rig) -> None:
    job = rig.plane.submit({"do": "sleep", "seconds": 60})
    rig.hear(job, "sleeps")
    rig.plane.cancel(job)
    rig.hear(job, "was cancelled")
    assert lost(rig, job)
    assert rig.plane.select("done", job) == []
    assert give_back(rig, "next") == {"output": "next"}


def test_a_thread_of_a_cancelled_job_goes_on(rig: Rig) -> None:
    job = rig.plane.submit({"do": "sleep in a thread", "seconds": 60})
    rig.hear(job, "sleeps")
    rig.plane.cancel(job)
    cancelled = rig.hear(job, "was cancelled")
    assert rig.hear(job, "thread went on").at > cancelled.at
    assert rig.plane.select("done", job) == []


def test_a_cancel_while_the_result_is_posted_changes_nothing_for_the_next_job(rig: Rig) -> None:
    rig.plane.faults.held.add("done")
    job = rig.plane.submit({"do": "return", "value": 1})
    rig.plane.wait_for("done", job)
    rig.plane.cancel(job)
    rig.hear(job, "Job stopped")
    rig.plane.faults.held.clear()
    assert give_back(rig, "next") == {"output": "next"}


def test_a_waiting_job_that_is_cancelled_is_never_handed_out(rig: Rig) -> None:
    rig.plane.faults.hold_jobs = True
    job = rig.plane.submit({})
    rig.plane.cancel(job)
    rig.plane.faults.hold_jobs = False
    assert give_back(rig, "after") == {"output": "after"}
    assert job not in rig.plane.handed_out
    assert rig.plane.select("stop", job) == []


# --- takes and pings --------------------------------------------------------------------------


def test_free_slots_take_a_batch_and_each_job_once(rig: Rig) -> None:
    rig.plane.faults.hold_jobs = True
    jobs = [rig.plane.submit({"do": "return", "value": n}) for n in range(3)]
    assert rig.plane.pending == jobs
    rig.plane.faults.hold_jobs = False
    assert [rig.plane.result(job) for job in jobs] == [{"output": n} for n in range(3)]
    takes = [rig.plane.select("take", job) for job in jobs]
    assert [len(events) for events in takes] == [1, 1, 1]
    assert takes[0][0].query["batch_size"] in ("2", "3", "4")
    assert takes[0][0].headers["authorization"] == API_KEY


def test_pings_name_the_jobs_in_progress(rig: Rig) -> None:
    job = rig.plane.submit({"do": "sleep", "seconds": 60})
    pings = partial(rig.plane.select, "ping")
    wait_until(lambda: any(event.body.get("job_id") == job for event in pings()))
    rig.plane.cancel(job)
    rig.hear(job, "was cancelled")


# --- what the plane adds ----------------------------------------------------------------------


def test_a_slow_line_holds_the_result_back(rig: Rig) -> None:
    rig.plane.faults.delay["done"] = 1
    job = rig.plane.submit({"do": "return", "value": 1})
    posted = rig.plane.wait_for("done", job)
    rig.plane.result(job)
    rig.plane.faults.delay.clear()
    assert now() - posted.at >= 1


def test_a_timeout_says_what_happened_instead(rig: Rig) -> None:
    job = rig.plane.submit({"do": "bytes"})
    rig.wait_until_settled(job)
    with pytest.raises(PlaneTimeout, match=rf"(?s)result of {job} within 0.1 s.*take +{job}"):
        rig.plane.result(job, timeout=0.1)
