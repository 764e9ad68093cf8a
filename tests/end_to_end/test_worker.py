"""Jobs through `Worker.handle` on a real ComfyUI."""

from __future__ import annotations

import base64
import json
import struct
import threading
import zlib
from pathlib import Path
from typing import Any

import pytest

from handler.jobs import workflow_job
from handler.jobs.workflow_job import WorkflowJobs
from tests.conftest import BootedWorker, workflow

Node = dict[str, Any]


def png(width: int = 8, height: int = 8, colour: tuple[int, int, int] = (200, 30, 30)) -> bytes:
    """A one-coloured PNG."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = (b"\0" + bytes(colour) * width) * height
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def plain(**inputs: Any) -> dict[str, Node]:
    """EmptyImage → SaveImage; `inputs` change the first."""
    empty = {"width": 16, "height": 16, "batch_size": 1, "color": 255, **inputs}
    return {
        "1": {"class_type": "EmptyImage", "inputs": empty},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "t"}},
    }


def from_file(name: str) -> dict[str, Node]:
    """LoadImage → SaveImage."""
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": name}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "l"}},
    }


def assert_refused(reply: dict[str, Any], code: str, *said: str) -> None:
    """The reply is an error with `code`, a string, and all of `said` in it."""
    assert reply["error_code"] == code, reply
    assert isinstance(reply["error"], str)
    for part in said:
        assert part in reply["error"], reply["error"]
    json.dumps(reply, allow_nan=False).encode("utf-8")


def test_a_picture_comes_back_and_stays_on_the_volume(
    worker: BootedWorker, shared_volume: Path
) -> None:
    reply = worker.ask({"workflow": plain()})
    assert reply["status"] == "completed"
    (result,) = reply["results"]
    picture = base64.b64decode(result["image"])
    assert picture.startswith(b"\x89PNG")
    kept = shared_volume / result["path"]
    assert kept.parent == shared_volume / "ComfyUI" / "output"
    assert kept.name == result["filename"]
    assert kept.read_bytes() == picture
    assert not list(kept.parent.glob(".*.part"))


def test_the_demo_picture_uses_a_model_that_only_the_links_show(worker: BootedWorker) -> None:
    reply = worker.ask({"workflow": workflow("picture")})
    assert reply["status"] == "completed", reply


def test_a_repeated_job_gives_the_same_picture_under_another_name(worker: BootedWorker) -> None:
    first = worker.ask({"workflow": plain(color=77)})["results"][0]
    second = worker.ask({"workflow": plain(color=77)})["results"][0]
    assert first["image"] == second["image"]
    assert first["path"] != second["path"]


def test_a_batch_comes_back_whole(worker: BootedWorker) -> None:
    results = worker.ask({"workflow": workflow("batch_of_3")})["results"]
    assert len(results) == 3
    assert len({r["filename"] for r in results}) == 3


@pytest.mark.parametrize(
    ("name", "mime_type", "field", "magic"),
    [
        ("video_mp4", "video/mp4", "data", b"ftyp"),
        ("animation_webp", "image/webp", "image", b"WEBP"),
    ],
)
def test_moving_pictures_come_back(
    worker: BootedWorker, name: str, mime_type: str, field: str, magic: bytes
) -> None:
    (result,) = worker.ask({"workflow": workflow(name)})["results"]
    assert result["mime_type"] == mime_type
    assert magic in base64.b64decode(result[field])[:16]


def test_text_comes_back(worker: BootedWorker) -> None:
    results = worker.ask({"workflow": workflow("text")})["results"]
    assert [r["kind"] for r in results] == ["text"]


def test_a_workflow_may_be_json_text(worker: BootedWorker) -> None:
    assert worker.ask({"workflow": json.dumps(plain())})["status"] == "completed"


def test_overrides_change_inputs(worker: BootedWorker) -> None:
    reply = worker.ask({"workflow": plain(), "overrides": {"1": {"batch_size": 2}}})
    assert len(reply["results"]) == 2


def test_unknown_fields_and_inputs_are_mentioned(worker: BootedWorker) -> None:
    reply = worker.ask({"workflow": plain(), "wrokflow": 1, "overrides": {"1": {"hight": 8}}})
    assert reply["status"] == "completed"
    assert any("wrokflow" in w for w in reply["warnings"])
    assert any("hight" in w for w in reply["warnings"])


@pytest.mark.parametrize("head", ["", "data:image/png;base64,"])
def test_an_input_image_is_used_and_gone_afterwards(worker: BootedWorker, head: str) -> None:
    sent = {"name": "photo.png", "image": head + base64.b64encode(png()).decode()}
    reply = worker.ask({"workflow": from_file("photo.png"), "images": [sent]})
    assert reply["status"] == "completed", reply
    assert list(worker.serving.work.input.glob("photo*")) == []


def test_a_repeated_image_name_never_gives_the_old_picture(worker: BootedWorker) -> None:
    pictures = []
    for colour in ((255, 0, 0), (0, 0, 255)):
        sent = {"name": "same.png", "image": base64.b64encode(png(colour=colour)).decode()}
        reply = worker.ask({"workflow": from_file("same.png"), "images": [sent]})
        pictures.append(base64.b64decode(reply["results"][0]["image"]))
    assert pictures[0] != pictures[1]


def test_an_input_file_on_the_volume_is_found(worker: BootedWorker, shared_volume: Path) -> None:
    folder = shared_volume / "ComfyUI" / "input"
    folder.mkdir(exist_ok=True)
    (folder / "mine.png").write_bytes(png())
    assert worker.ask({"workflow": from_file("mine.png")})["status"] == "completed"


def test_files_that_no_node_reports_are_kept_too(worker: BootedWorker, shared_volume: Path) -> None:
    (worker.serving.work.output / "quiet.bin").write_bytes(b"quiet")
    reply = worker.ask({"workflow": plain()})
    (path,) = reply["also_kept"]
    assert (shared_volume / path).read_bytes() == b"quiet"


def test_previews_are_better_than_nothing(worker: BootedWorker) -> None:
    nodes = plain()
    nodes["2"] = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
    reply = worker.ask({"workflow": nodes})
    assert [r["type"] for r in reply["results"]] == ["temp"]
    assert any("preview" in w for w in reply["warnings"])


# What bad input gets, where ComfyUI decides.


def test_unknown_node_class_names_the_nearest(worker: BootedWorker) -> None:
    nodes = plain()
    nodes["2"]["class_type"] = "SaveImge"
    assert_refused(
        worker.ask({"workflow": nodes}), "workflow.unknown_node", "SaveImge", "SaveImage"
    )


def test_missing_model_names_the_nearest_and_the_folder(
    worker: BootedWorker, shared_volume: Path
) -> None:
    nodes = plain()
    nodes["3"] = {"class_type": "VAELoader", "inputs": {"vae_name": "taesdd.safetensors"}}
    nodes["4"] = {
        "class_type": "EmptyLatentImage",
        "inputs": {"width": 64, "height": 64, "batch_size": 1},
    }
    nodes["5"] = {"class_type": "VAEDecode", "inputs": {"samples": ["4", 0], "vae": ["3", 0]}}
    nodes["2"]["inputs"]["images"] = ["5", 0]
    reply = worker.ask({"workflow": nodes})
    models = str(shared_volume / "ComfyUI" / "models")
    assert_refused(reply, "workflow.missing_model", "taesdd.safetensors", "taesd", models)


def test_value_not_in_a_list_is_not_a_missing_model(worker: BootedWorker) -> None:
    nodes = plain()
    nodes["3"] = {
        "class_type": "ImageScale",
        "inputs": {
            "image": ["1", 0],
            "upscale_method": "bicubicc",
            "width": 8,
            "height": 8,
            "crop": "disabled",
        },
    }
    nodes["2"]["inputs"]["images"] = ["3", 0]
    reply = worker.ask({"workflow": nodes})
    assert_refused(reply, "workflow.value_not_allowed", "bicubicc", "bicubic")


@pytest.mark.parametrize(("width", "bound"), [(0, "min"), (10**9, "max")])
def test_value_out_of_range(worker: BootedWorker, width: int, bound: str) -> None:
    reply = worker.ask({"workflow": plain(width=width)})
    assert_refused(reply, "workflow.value_out_of_range", "width", bound)


def test_missing_input(worker: BootedWorker) -> None:
    nodes = plain()
    del nodes["2"]["inputs"]["images"]
    assert_refused(worker.ask({"workflow": nodes}), "workflow.input_missing", "images")


def test_several_problems_are_reported_at_once(worker: BootedWorker) -> None:
    nodes = plain(width=0, height=0)
    reply = worker.ask({"workflow": nodes})
    assert_refused(reply, "workflow.value_out_of_range", "width", "height")
    assert len(reply["details"]["problems"]) == 2


def test_no_output_node_names_what_would_make_one(worker: BootedWorker) -> None:
    nodes = plain()
    del nodes["2"]
    assert_refused(worker.ask({"workflow": nodes}), "workflow.no_output", "EmptyImage", "SaveImage")


def test_a_broken_branch_is_left_out_and_reported(worker: BootedWorker) -> None:
    nodes = plain()
    nodes["9"] = {
        "class_type": "EmptyImage",
        "inputs": {"width": 0, "height": 8, "batch_size": 1, "color": 0},
    }
    nodes["8"] = {"class_type": "SaveImage", "inputs": {"images": ["9", 0], "filename_prefix": "x"}}
    reply = worker.ask({"workflow": nodes})
    assert len(reply["results"]) == 1
    assert any("left out" in w and "width" in w for w in reply["warnings"])


def test_a_node_that_fails_says_which_and_why(worker: BootedWorker) -> None:
    sent = {"name": "no.png", "image": base64.b64encode(png()[:8] + b"garbage").decode()}
    reply = worker.ask({"workflow": from_file("no.png"), "images": [sent]})
    assert_refused(reply, "job.node_failed", "LoadImage")
    assert reply["details"]["node_id"] == "1"
    assert reply["details"]["traceback"]


@pytest.mark.parametrize("depth", [50, 5000])
def test_deep_nesting_is_refused_or_survived(worker: BootedWorker, depth: int) -> None:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    reply = worker.ask({"workflow": plain(width=value)})
    assert "error_code" in reply
    assert worker.ask({"workflow": plain()})["status"] == "completed"


ODD_NODES: list[Node] = [
    *(
        plain(width=width)["1"]
        for width in ("wide", None, {"a": 1}, ["1", 99], ["1", 0], [["1", 0]])
    ),
    plain(batch_size=10**30)["1"],
    {"class_type": "\ud800", "inputs": {}},
    {"class_type": "a" * 100_000, "inputs": {}},
    {"class_type": "EmptyImage", "inputs": {}, "is_changed": {"x": [1]}, "_meta": 3},
]


@pytest.mark.parametrize("node", ODD_NODES, ids=range(len(ODD_NODES)))
def test_odd_nodes_get_an_error_and_the_worker_lives(worker: BootedWorker, node: Node) -> None:
    nodes = plain()
    nodes["1"] = node
    reply = worker.ask({"workflow": nodes})
    assert reply["error_code"].startswith("workflow."), reply
    json.dumps(reply, allow_nan=False).encode("utf-8")
    assert worker.ask({"workflow": plain()})["status"] == "completed"


def test_a_bug_in_the_worker_costs_no_file(
    worker: BootedWorker, shared_volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*_: object) -> None:
        raise AssertionError("a bug")

    monkeypatch.setattr(WorkflowJobs, "_reply", fails)
    before = set((shared_volume / "ComfyUI/output").glob("*.png"))
    reply = worker.ask({"workflow": plain(color=0x123456), "output": {"metadata": False}})
    assert reply["error_code"] == "worker.internal"
    (kept,) = set((shared_volume / "ComfyUI/output").glob("*.png")) - before
    assert kept.read_bytes()


def test_an_error_is_reported_although_it_cannot_be_looked_up_in_time(
    worker: BootedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()
    monkeypatch.setattr(workflow_job, "volume_fault", lambda *_: over.wait(30))
    monkeypatch.setattr(workflow_job, "GRACE_SECONDS", 0.2)
    try:
        reply = worker.ask({"workflow": {"1": {"class_type": "NoSuchNode", "inputs": {}}}})
    finally:
        over.set()
    assert reply["error_code"] == "workflow.unknown_node", reply


def test_a_job_past_its_time_is_stopped_on_comfyui(worker: BootedWorker) -> None:
    nodes = plain()
    nodes["3"] = {"class_type": "TestSleep", "inputs": {"image": ["1", 0], "seconds": 60}}
    nodes["2"]["inputs"]["images"] = ["3", 0]
    reply = worker.ask({"workflow": nodes, "max_wait": 1.5})
    assert_refused(reply, "job.timeout", "max_wait")
    assert worker.serving.comfyui.ended() is None, "it was interrupted, not killed"
    assert worker.ask({"workflow": plain(), "max_wait": 5})["status"] == "completed"
