"""Files of real jobs: written after the prompt's end, by two jobs of one id, or of one name."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

from handler.common.blocking import gather_all
from tests.conftest import BootedWorker
from tests.end_to_end.test_faults import through


def saving(name: str, content: str, how: str) -> dict[str, Any]:
    inputs = {"name": name, "content": content, "how": how}
    return {"1": {"class_type": "TestSaveOddly", "inputs": inputs}}


def at_once(worker: BootedWorker, workflows: list[Any], ids: list[str]) -> list[dict[str, Any]]:
    async def all_of_them() -> list[dict[str, Any]]:
        jobs = ({"id": i, "input": {"workflow": w}} for i, w in zip(ids, workflows, strict=True))
        return await gather_all([worker.worker.handle(job) for job in jobs])

    return asyncio.run(all_of_them())


def content_of(reply: dict[str, Any]) -> str:
    (entry,) = reply["results"]
    return base64.b64decode(entry["data"]).decode()


def test_a_file_that_a_nodes_thread_still_writes_is_delivered_whole(worker: BootedWorker) -> None:
    content = "a line that takes a second\n"
    reply = worker.ask({"workflow": saving("slowly.txt", content, "slowly")})
    assert content_of(reply) == content, reply
    (entry,) = reply["results"]
    layout = worker.serving.layout
    assert (layout.root / entry["path"]).read_text() == content


def test_what_was_saved_before_another_node_failed_is_named(worker: BootedWorker) -> None:
    """Several files of several savers, in subfolders, under one name."""
    nodes = through("TestRaise", what="an error", said="after the others")
    nodes["9"] = {"class_type": "TestSleep", "inputs": {"image": ["1", 0], "seconds": 0.5}}
    (raises,) = (node for node in nodes.values() if node["class_type"] == "TestRaise")
    raises["inputs"]["image"] = ["9", 0]
    for n in range(2):
        early = {"images": ["1", 0], "filename_prefix": f"sub{n}/early"}
        nodes[f"1{n}"] = {"class_type": "SaveImage", "inputs": early}
    error = worker.ask({"workflow": nodes})
    assert error["error_code"] == "job.node_failed", error
    kept = error["details"]["also_kept"]
    assert [path.rpartition("/")[0] for path in kept] == [f"ComfyUI/output/sub{n}" for n in "01"]
    assert all((worker.serving.layout.root / path).is_file() for path in kept)


def test_two_jobs_of_one_id_at_once_have_each_its_own_files(worker: BootedWorker) -> None:
    workflows = [saving(f"one-id-{n}.txt", f"content of {n}", "at once") for n in range(2)]
    replies = at_once(worker, workflows, ["the same", "the same"])
    assert [content_of(reply) for reply in replies] == ["content of 0", "content of 1"]
    paths = {reply["results"][0]["path"] for reply in replies}
    assert len(paths) == 2 and not any("also_kept" in reply for reply in replies)


def test_a_job_never_has_the_content_of_another_that_saves_under_the_same_name(
    worker: BootedWorker,
) -> None:
    names = [f"job-{n}" for n in range(12)]
    workflows = [saving("one-name.txt", f"content of {name}", "at once") for name in names]
    replies = at_once(worker, workflows, names)
    for name, reply in zip(names, replies, strict=True):
        if reply["status"] == "completed":
            assert content_of(reply) == f"content of {name}"
        else:
            assert "was overwritten" in reply["error"], reply
    assert replies[-1]["status"] == "completed"
