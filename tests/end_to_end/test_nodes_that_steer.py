"""Nodes that stop or block a workflow, or queue one of their own."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from tests.conftest import BootedWorker
from tests.end_to_end.test_caches import COLOURS, node
from tests.end_to_end.test_worker import assert_refused, plain


def steered(class_type: str, **inputs: Any) -> dict[str, Any]:
    """A picture through such a node; one that is saved as well without it."""
    nodes = plain(color=next(COLOURS))
    nodes["3"] = node(class_type, image=["1", 0], **inputs)
    nodes["4"] = node("SaveImage", images=["3", 0], filename_prefix="steered")
    return nodes


def slow_prompt(seconds: float = 30.0) -> dict[str, Any]:
    nodes = plain(color=next(COLOURS))
    nodes["5"] = node("TestSleep", image=["1", 0], seconds=seconds)
    nodes["2"]["inputs"]["images"] = ["5", 0]
    return nodes


def test_a_node_that_stops_the_workflow_is_named(worker: BootedWorker) -> None:
    reply = worker.ask({"workflow": steered("TestStop")})
    assert_refused(reply, "job.interrupted", "node 3 (TestStop)", "that node itself")
    assert "on purpose" in reply["fix"]
    assert worker.ask({"workflow": plain(color=next(COLOURS))})["status"] == "completed"


def test_why_a_node_was_blocked_is_a_warning(worker: BootedWorker) -> None:
    reply = worker.ask({"workflow": steered("TestBlock", said="no face was found")})
    assert reply["status"] == "completed" and [r["node_id"] for r in reply["results"]] == ["2"]
    (warning,) = reply["warnings"]
    assert "node 4 (SaveImage) did not run" in warning and "no face was found" in warning


def test_a_node_that_is_blocked_without_a_message_is_meant_to_be(worker: BootedWorker) -> None:
    reply = worker.ask({"workflow": steered("TestBlock", said="")})
    assert reply["status"] == "completed" and not reply.get("warnings"), reply
    assert [r["node_id"] for r in reply["results"]] == ["2"]


def queueing(own: dict[str, Any], fails: bool = False) -> dict[str, Any]:
    """A workflow with a node that queues another one."""
    return steered("TestQueuePrompt", workflow=json.dumps(own), fails=fails)


def test_what_a_node_queues_is_part_of_its_job(worker: BootedWorker, shared_volume: Path) -> None:
    inner = plain(color=next(COLOURS))
    inner["2"]["inputs"]["filename_prefix"] = "inner"
    middle = queueing(inner)
    middle["2"]["inputs"]["filename_prefix"] = "middle"
    reply = worker.ask({"workflow": queueing(middle)})
    assert reply["status"] == "completed", reply
    names = [r["filename"].split("_")[0] for r in reply["results"]]
    assert sorted(names) == ["inner", "middle", "steered", "steered", "t"]
    after = worker.ask({"workflow": plain(color=next(COLOURS))})
    assert len(after["results"]) == 1 and "also_kept" not in after, "none of it is left for others"


def test_what_a_node_queues_runs_before_the_next_job(worker: BootedWorker) -> None:
    """A job that already waits in ComfyUI's queue neither loses a file to it nor gets one of it."""
    first = queueing(slow_prompt(1.0))
    first["6"] = node("TestSleep", image=["1", 0], seconds=1.0)
    quick = json.dumps(plain(color=next(COLOURS)))
    first["7"] = node("TestQueuePrompt", image=["6", 0], workflow=quick, fails=False)
    replies: dict[str, Any] = {}

    async def both() -> None:
        jobs = {"first": first, "second": plain(color=next(COLOURS))}
        asked = [
            worker.worker.handle({"id": name, "input": {"workflow": workflow}})
            for name, workflow in jobs.items()
        ]
        replies.update(zip(jobs, await asyncio.gather(*asked), strict=True))

    asyncio.run(both())
    assert [r["status"] for r in replies.values()] == ["completed"] * 2, replies
    assert len(replies["first"]["results"]) == 4
    assert len(replies["second"]["results"]) == 1 and "also_kept" not in replies["second"]


def test_a_queued_prompt_that_fails_is_a_warning(worker: BootedWorker) -> None:
    inner = steered("TestRaise", what="RuntimeError", said="inner trouble")
    reply = worker.ask({"workflow": queueing(inner)})
    assert reply["status"] == "completed", reply
    assert any("inner trouble" in warning for warning in reply["warnings"])


def assert_free(worker: BootedWorker) -> None:
    """Nothing of an earlier job runs there."""
    quick = worker.ask({"workflow": plain(color=next(COLOURS)), "max_wait": 15})
    assert quick["status"] == "completed" and len(quick["results"]) == 1


def test_nothing_runs_on_for_a_job_that_failed(worker: BootedWorker) -> None:
    reply = worker.ask({"workflow": queueing(slow_prompt(), fails=True)})
    assert_refused(reply, "job.node_failed", "after it has queued")
    assert_free(worker)


def test_a_deadline_ends_what_was_queued_too(worker: BootedWorker) -> None:
    before = worker.serving.comfyui.generation
    reply = worker.ask({"workflow": queueing(slow_prompt()), "max_wait": 4})
    assert_refused(reply, "job.timeout")
    assert_free(worker)
    assert worker.serving.comfyui.generation == before, "interrupted, not restarted"


def test_a_deadline_while_the_first_prompt_runs_ends_what_it_queued_too(
    worker: BootedWorker,
) -> None:
    first = queueing(slow_prompt())
    first["6"] = node("TestSleep", image=["3", 0], seconds=30.0)
    first["4"]["inputs"]["images"] = ["6", 0]
    before = worker.serving.comfyui.generation
    assert_refused(worker.ask({"workflow": first, "max_wait": 4}), "job.timeout")
    assert_free(worker)
    assert worker.serving.comfyui.generation == before, "interrupted, not restarted"
