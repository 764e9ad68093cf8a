"""Answers for what a real ComfyUI refuses, or runs in part."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from handler.execution.comfy_client import ComfyClient
from tests.conftest import BootedWorker
from tests.end_to_end.test_worker import plain

MISSING = {"class_type": "LoadImage", "inputs": {"image": "not-there.png"}}
NOWHERE = {"class_type": "ImageInvert", "inputs": {"image": ["99", 0]}}


def saver(source: str) -> dict[str, Any]:
    inputs = {"images": [source, 0], "filename_prefix": "other"}
    return {"class_type": "SaveImage", "inputs": inputs}


def asked(worker: BootedWorker, **nodes: Any) -> dict[str, Any]:
    return worker.ask({"workflow": plain(color=hash(str(nodes)) % 10**6) | nodes})


@pytest.mark.parametrize("node", [MISSING, NOWHERE], ids=["missing file", "bad link"])
def test_a_broken_node_that_nothing_needs_is_not_a_reason_to_refuse(
    worker: BootedWorker, node: dict[str, Any]
) -> None:
    reply = asked(worker, bad=node)
    assert reply["status"] == "completed" and len(reply["results"]) == 1
    assert "warnings" not in reply


@pytest.mark.parametrize(
    ("node", "said"), [(MISSING, "'not-there.png'"), (NOWHERE, 'linked to node "99"')]
)
def test_of_two_branches_the_good_one_runs_and_the_other_is_explained(
    worker: BootedWorker, node: dict[str, Any], said: str
) -> None:
    reply = asked(worker, bad=node, out=saver("bad"))
    assert reply["status"] == "completed", reply
    assert [entry["node_id"] for entry in reply["results"]] == ["2"]
    (warning,) = reply["warnings"]
    assert warning.startswith("left out of this run: ") and said in warning


@pytest.mark.parametrize(
    ("node", "code", "input"),
    [(MISSING, "input.missing", "image"), (NOWHERE, "workflow.bad_link", "image")],
)
def test_where_nothing_else_is_left_the_job_fails_with_the_reason(
    worker: BootedWorker, node: dict[str, Any], code: str, input: str
) -> None:
    reply = worker.ask({"workflow": {"1": node, "2": saver("1")}})
    assert reply["error_code"] == code and reply["fix"]
    assert (reply["details"]["node_id"], reply["details"]["input"]) == ("1", input)


@pytest.mark.parametrize(
    "kind",
    [
        "f2fdebf6-dfaf-43b6-9eb2-7f70613cfdc1",
        "workflow>My Group",
        "workflow/My Group",
        "MarkdownNote",
        "Note",
        "PrimitiveNode",
        "Reroute",
    ],
)
def test_what_only_the_editor_knows_is_named_as_such(worker: BootedWorker, kind: str) -> None:
    reply = asked(worker, x={"class_type": kind, "inputs": {}})
    assert reply["error_code"] == "workflow.unknown_node"
    assert "the editor" in reply["error"] and "Export (API)" in reply["fix"]


def test_values_of_the_wrong_type_are_named_by_the_type_that_is_right(
    worker: BootedWorker,
) -> None:
    reply = worker.ask({"workflow": plain(width="abc")})
    assert reply["error_code"] == "workflow.invalid"
    assert 'width of node 1 (EmptyImage) is the string "abc". Send a whole' in reply["error"]
    assert "invalid literal" not in str(reply)


def sampler(**inputs: Any) -> dict[str, Any]:
    given = {"seed": 1, "steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple"}
    given |= {"denoise": 1.0, "model": ["11", 0], "positive": ["11", 0], "negative": ["11", 0]}
    checkpoint = {"ckpt_name": "x.safetensors"}
    return {
        "11": {"class_type": "CheckpointLoaderSimple", "inputs": checkpoint},
        "12": {"class_type": "KSampler", "inputs": {**given, "latent_image": ["11", 0], **inputs}},
        "13": {"class_type": "PreviewAny", "inputs": {"source": ["12", 0]}},
    }


def problems_of_a_sampler(worker: BootedWorker, **inputs: Any) -> list[dict[str, Any]]:
    reply = worker.ask({"workflow": sampler(**inputs)})
    return list(reply["details"].get("problems", [reply["details"] | {"error": reply["error"]}]))


def test_a_seed_below_zero_learns_of_random(worker: BootedWorker) -> None:
    (seed,) = (p for p in problems_of_a_sampler(worker, seed=-1) if p.get("input") == "seed")
    assert '"random"' in seed["error"]


def test_of_a_list_that_comfyui_finds_too_long_the_nearest_is_named(worker: BootedWorker) -> None:
    problems = problems_of_a_sampler(worker, sampler_name="eulr")
    (wrong,) = (p for p in problems if p.get("input") == "sampler_name")
    assert wrong["nearest"][0] == "euler" and "'euler'" in wrong["error"]


def test_the_nearest_is_named_for_a_branch_that_is_left_out_too(worker: BootedWorker) -> None:
    reply = asked(worker, **sampler(sampler_name="eulr"))
    assert reply["status"] == "completed", reply
    (wrong,) = (text for text in reply["warnings"] if "sampler_name" in text)
    assert wrong.startswith("left out of this run: ") and "(nearest: euler" in wrong


def test_a_job_that_is_done_does_not_wait_for_the_lists_of_its_warnings(
    worker: BootedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def silent(*_: object) -> dict[str, object]:
        await asyncio.sleep(60)
        return {}

    monkeypatch.setattr(ComfyClient, "input_configs", silent)
    nodes = plain(color=4244) | sampler(sampler_name="eulr")
    reply = worker.ask({"workflow": nodes, "max_wait": 20})
    assert reply["status"] == "completed", reply
    assert any("sampler_name" in text for text in reply["warnings"])


def test_what_was_ignored_of_a_failed_request_is_reported(worker: BootedWorker) -> None:
    reply = worker.ask({"workflow": {"1": MISSING, "2": saver("1")}, "timeout": 5})
    assert "timeout (here: `max_wait`)" in reply["details"]["warnings"][0]


def test_nodes_that_read_the_editors_workflow_get_it(worker: BootedWorker) -> None:
    """ComfyUI writes it into the picture."""
    drawn = {"nodes": [{"id": 1, "title": "a marker of this test"}]}
    given = {"workflow": plain(color=4242), "extra_pnginfo": {"workflow": drawn}}
    reply = worker.ask(given)
    picture = (worker.serving.layout.root / reply["results"][0]["path"]).read_bytes()
    assert b"a marker of this test" in picture


def test_only_the_outputs_that_are_wanted_are_run(worker: BootedWorker) -> None:
    nodes = plain(color=4243) | {"3": saver("1")}
    reply = worker.ask({"workflow": nodes, "partial_execution_targets": ["3"]})
    assert [entry["node_id"] for entry in reply["results"]] == ["3"]
