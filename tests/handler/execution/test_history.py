"""What the history says of a prompt, and which socket messages are worth a look at it."""

from __future__ import annotations

from typing import Any

import pytest

from handler.common.errors import CODES, JobError
from handler.execution import history

ID = "11111111-2222-3333-4444-555555555555"
OUTPUTS = {"9": {"images": [{"filename": "a.png", "subfolder": "", "type": "output"}]}}


def entry(status: str, *messages: list[Any]) -> dict[str, Any]:
    told = {"status_str": status, "completed": status == "success", "messages": list(messages)}
    return {"prompt": [], "outputs": OUTPUTS, "status": told, "meta": {}}


def failure(given: dict[str, Any]) -> JobError:
    ended = history.read_entry(given)
    assert ended is not None and ended.failure is not None
    assert ended.failure.code in CODES
    return ended.failure


def raised(kind: str, message: str = "it broke\n") -> dict[str, Any]:
    return entry(
        "error",
        ["execution_start", {"prompt_id": ID}],
        [
            "execution_error",
            {
                "prompt_id": ID,
                "node_id": "4",
                "node_type": "KSampler",
                "exception_type": kind,
                "exception_message": message,
                "traceback": [f"  File {n}\n" for n in range(40)],
            },
        ],
    )


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"type": "executing", "data": {"node": None, "prompt_id": ID}}, True),
        ({"type": "execution_success", "data": {"prompt_id": ID}}, False),
        ({"type": "execution_error", "data": {"prompt_id": ID}}, False),
        ({"type": "execution_interrupted", "data": {"prompt_id": ID}}, False),
        ({"type": "executing", "data": {"node": "4", "prompt_id": ID}}, False),
        ({"type": "executing", "data": {"node": None, "prompt_id": "another"}}, False),
        ({"type": "progress", "data": {"value": 1, "max": 2, "prompt_id": ID}}, False),
        ({"type": "status", "data": {"status": {"exec_info": {}}}}, False),
        ({"type": "execution_success", "data": None}, False),
        ({"type": "execution_success"}, False),
        ({}, False),
    ],
)
def test_only_the_end_of_this_prompt_is_news(message: dict[str, Any], expected: bool) -> None:
    assert history.announces_end(message, ID) is expected


def test_without_an_entry_nothing_has_ended() -> None:
    assert history.read_entry(None) is None


def test_an_entry_of_success_has_its_outputs() -> None:
    ended = history.read_entry(entry("success", ["execution_success", {"prompt_id": ID}]))
    assert ended == history.HistoryEntry(OUTPUTS, None)


def test_an_entry_of_2023_without_status_means_success() -> None:
    assert history.read_entry({"prompt": [], "outputs": OUTPUTS}) == history.HistoryEntry(
        OUTPUTS, None
    )
    assert history.read_entry({"outputs": None, "status": None}) == history.HistoryEntry({}, None)


def test_a_node_that_raised_is_named_with_the_end_of_its_traceback() -> None:
    error = failure(raised("ValueError"))
    assert error.code == "job.node_failed"
    assert error.message == "Node 4 (KSampler) failed with ValueError: it broke"
    assert error.details["node_id"] == "4"
    assert error.details["traceback"][-1] == "  File 39"
    assert len(error.details["traceback"]) == 12


@pytest.mark.parametrize(
    "kind", ["torch.cuda.OutOfMemoryError", "torch.OutOfMemoryError", "OutOfMemoryError"]
)
def test_gpu_memory_that_ran_out_has_its_own_code(kind: str) -> None:
    error = failure(raised(kind, "Allocation on device 0 would exceed allowed memory"))
    assert error.code == "job.out_of_memory"
    assert "node 4 (KSampler)" in error.message


def test_a_long_message_is_cut() -> None:
    assert len(str(failure(raised("ValueError", "x" * 100_000)))) < 1500


def test_an_interrupted_prompt_says_so() -> None:
    error = failure(entry("error", ["execution_interrupted", {"prompt_id": ID, "node_id": "4"}]))
    assert error.code == "job.interrupted"


def test_an_error_without_a_message_is_still_one() -> None:
    assert failure(entry("error")).code == "job.node_failed"
    assert failure(entry("error", ["execution_error", {}])).code == "job.node_failed"


def test_messages_of_another_shape_are_passed_over() -> None:
    odd = entry("success", [], ["one"], ["a", "b", "c"])
    assert history.read_entry(odd) == history.HistoryEntry(OUTPUTS, None)
