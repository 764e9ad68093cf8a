"""A prompt's progress from ComfyUI's socket and queue."""

from __future__ import annotations

from typing import Any

import pytest

from handler.execution.node_progress import QUEUED, RUNNING, NodeProgress, ProgressUpdate, position

ID = "11111111-2222-3333-4444-555555555555"
WORKFLOW: dict[str, Any] = {
    "1": {"class_type": "EmptyImage", "inputs": {}},
    "2": {"class_type": "KSampler", "inputs": {}},
    "3": {"class_type": "VAEDecode", "inputs": {}},
    "4": {"class_type": "SaveImage", "inputs": {}},
}


def message(kind: str, **data: Any) -> dict[str, Any]:
    return {"type": kind, "data": {"prompt_id": ID, **data}}


def heard(*messages: dict[str, Any]) -> list[ProgressUpdate]:
    progress = NodeProgress(WORKFLOW)
    return [step for each in messages if (step := progress.on_message(each, ID)) is not None]


def test_a_run_from_its_start_to_its_last_node() -> None:
    steps = heard(
        message("execution_start"),
        message("execution_cached", nodes=["1"]),
        message("executing", node="2"),
        message("progress", node="2", value=1, max=4),
        message("progress", node="2", value=4, max=4),
        message("executed", node="2", output={}),
        message("executing", node="3"),
        message("executing", node="4"),
        message("executing", node=None),
    )
    assert [(step.stage, step.percent) for step in steps] == [
        (RUNNING, 0), (RUNNING, 25), (RUNNING, 25), (RUNNING, 31.25), (RUNNING, 50),
        (RUNNING, 50), (RUNNING, 75),
    ]  # fmt: skip
    sampler = {"node": "2", "class_type": "KSampler"}
    assert steps[2].more == sampler
    assert steps[3].more == {**sampler, "step": 1, "steps": 4}


def test_percent_never_goes_back() -> None:
    """A node that samples twice restarts its bar; nodes of an expansion come again."""
    steps = heard(
        message("executing", node="2"),
        message("progress", node="2", value=9, max=10),
        message("progress", node="2", value=1, max=10),
        message("executing", node="2.0.1"),
        message("executing", node="2.0.2"),
        message("executing", node="2"),
    )
    percents = [step.percent or 0 for step in steps]
    assert percents == sorted(percents)
    assert steps[3].more == {"node": "2.0.1", "class_type": "KSampler"}


def test_a_progress_of_2023_that_names_no_node_is_of_the_one_that_runs() -> None:
    (_, step) = heard(
        {"type": "executing", "data": {"node": "2", "prompt_id": ID}},
        {"type": "progress", "data": {"value": 5, "max": 10}},
    )
    assert step.more == {"node": "2", "class_type": "KSampler", "step": 5, "steps": 10}


@pytest.mark.parametrize(
    "odd",
    [
        {},
        {"type": "executing"},
        {"type": "executing", "data": None},
        {"type": "executing", "data": {"node": "2", "prompt_id": "another"}},
        {"type": "execution_cached", "data": {"prompt_id": ID, "nodes": None}},
        {"type": "progress", "data": {"prompt_id": ID, "value": 1, "max": 0}},
        {"type": "progress", "data": {"prompt_id": ID, "value": "1", "max": 3}},
        {"type": "progress", "data": {"prompt_id": ID, "value": float("nan"), "max": 3}},
        {"type": "status", "data": {"status": {"exec_info": {"queue_remaining": 1}}}},
    ],
)
def test_what_says_nothing_of_this_prompt_is_passed_over(odd: dict[str, Any]) -> None:
    assert heard(odd) == []


def test_more_nodes_than_the_workflow_has_are_never_more_than_all() -> None:
    (*_, last) = heard(*(message("executing", node=str(n)) for n in range(1, 40)))
    assert last.percent == 100
    assert last.more == {"node": "39"}


def test_a_place_in_the_queue_counts_from_one() -> None:
    progress = NodeProgress(WORKFLOW)
    assert progress.on_queue(*position(ID, ["a"], ["b", ID, "c"])) == ProgressUpdate(
        QUEUED, None, {"position": 3}
    )
    assert progress.on_queue(*position(ID, [ID], ["b"])) == ProgressUpdate(RUNNING, 0.0)
    assert progress.on_queue(*position(ID, [ID], [])) is None, "the socket tells more"


def test_the_last_node_is_where_it_happened() -> None:
    progress = NodeProgress(WORKFLOW)
    assert progress.current_node() == {}
    progress.on_message(message("executing", node="2"), ID)
    assert progress.current_node() == {"node_id": "2", "node_type": "KSampler"}
