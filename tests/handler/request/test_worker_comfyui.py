"""worker-comfyui's clients: its requests are taken, and with RESPONSE_FORMAT its replies given."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from jsonschema import validate

from bootstrap.config import Settings, variables
from bootstrap.core.findings import docs_url
from bootstrap.core.redact import Secret
from demo.volume import DemoVolume
from handler.common.errors import JobError
from handler.common.reply import completed, failed
from handler.request.compatibility import in_requested_form
from handler.request.parse import WorkflowRequest, decoded, parse_request
from tests.conftest import BootedWorker, environment, workflow
from tests.end_to_end.test_faults import through
from tests.end_to_end.test_worker import from_file, plain, png
from tests.support.control_plane import ControlPlane
from tests.support.worker_process import WorkerProcess

KEY = "comfyui-0123456789abcdef"
THEIRS = Settings(response_format="worker-comfyui")
# What its README says of `output`, and what its handler returns beside that.
SUCCESS = {
    "type": "object",
    "required": ["images"],
    "properties": {
        "images": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["filename", "type", "data"],
                "properties": {
                    "filename": {"type": "string"},
                    "type": {"enum": ["base64", "s3_url"]},
                    "data": {"type": "string"},
                },
                "additionalProperties": False,
            },
        },
        "errors": {"type": "array", "items": {"type": "string"}},
        "status": {"const": "success_no_images"},
    },
}
FAILURE = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {"type": "string", "minLength": 1},
        "details": {"type": "array", "items": {"type": "string"}},
    },
    "not": {"required": ["images"]},
}
NODE_SHOWING_KEY = {"1": {"class_type": "TestShowKey", "inputs": {}}}


@pytest.fixture
def their_worker(worker: BootedWorker, monkeypatch: pytest.MonkeyPatch) -> BootedWorker:
    """The session's worker, as if it had been started with RESPONSE_FORMAT=worker-comfyui."""
    monkeypatch.setattr(worker.worker, "_settings", THEIRS)
    return worker


def shaped(reply: Mapping[str, Any]) -> dict[str, Any]:
    return in_requested_form(reply, THEIRS)


# --- on a real ComfyUI ------------------------------------------------------------------------


def test_its_readmes_request_gets_its_readmes_reply(their_worker: BootedWorker) -> None:
    image = {"name": "in.png", "image": "data:image/png;base64," + base64.b64encode(png()).decode()}
    reply = their_worker.ask({"workflow": from_file("in.png"), "images": [image]})
    validate(reply, SUCCESS)
    (result,) = reply["images"]
    assert result["type"] == "base64"
    assert base64.b64decode(result["data"]).startswith(b"\x89PNG")
    assert "errors" not in reply and "status" not in reply


def test_a_batch_and_a_video_come_back_in_images(their_worker: BootedWorker) -> None:
    assert len(their_worker.ask({"workflow": workflow("batch_of_3")})["images"]) == 3
    (video,) = their_worker.ask({"workflow": workflow("video_mp4")})["images"]
    assert b"ftyp" in base64.b64decode(video["data"])[:16]


def test_a_failed_job_has_error_and_details(their_worker: BootedWorker) -> None:
    for request in (
        {},
        {"workflow": {"1": {"class_type": "NoSuchNode", "inputs": {}}}},
        {"workflow": through("TestSleep", seconds="long")},
        {"workflow": through("TestSleep", seconds=30), "max_wait": 0.5},
    ):
        reply = their_worker.ask(request)
        validate(reply, FAILURE)
        assert reply["error_code"]


@pytest.mark.parametrize("field", ["comfy_org_api_key", "api_key_comfy_org"])
def test_the_key_of_a_request_reaches_api_nodes_and_nothing_else(
    worker: BootedWorker, field: str, capfd: pytest.CaptureFixture[str]
) -> None:
    reply = worker.ask({"workflow": NODE_SHOWING_KEY, field: KEY})
    assert reply["results"][0]["text"] == KEY[::-1]
    assert "warnings" not in reply
    broken = worker.ask({"workflow": through("TestSleep", seconds="x"), field: KEY})
    environment = worker.ask(
        {"workflow": {"1": {"class_type": "TestShowEnvironment", "inputs": {}}}}
    )
    shown = capfd.readouterr()
    assert KEY not in json.dumps([reply, broken, environment]) + shown.out + shown.err


def test_without_a_key_api_nodes_get_none(worker: BootedWorker) -> None:
    assert worker.ask({"workflow": NODE_SHOWING_KEY})["results"][0]["text"] == "none"[::-1]


def test_the_log_level_is_one_that_comfyui_takes(
    boot_worker: Callable[[Mapping[str, str]], BootedWorker],
    worker_env: dict[str, str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    booted = boot_worker({**worker_env, "COMFY_LOG_LEVEL": "ERROR", "COMFY_ORG_API_KEY": KEY})
    assert booted.ask({"workflow": plain()})["status"] == "completed"
    assert booted.ask({"workflow": NODE_SHOWING_KEY})["results"][0]["text"] == KEY[::-1]
    shown = capfd.readouterr().out
    assert "got prompt" not in shown  # which ComfyUI says at INFO
    assert KEY not in shown


# --- the forms --------------------------------------------------------------------------------


def test_its_input_may_be_json_text() -> None:
    request = parse_request(decoded(json.dumps({"workflow": plain()})), Settings())
    assert isinstance(request, WorkflowRequest)
    with pytest.raises(JobError, match="input is the string"):
        parse_request(decoded("{not json"), Settings())


def test_a_requests_key_goes_before_the_endpoints() -> None:
    settings = Settings(comfy_org_api_key=Secret("of-the-endpoint"))
    for given, key in (({}, "of-the-endpoint"), ({"comfy_org_api_key": KEY}, KEY)):
        request = parse_request({"workflow": plain(), **given}, settings)
        assert isinstance(request, WorkflowRequest)
        assert request.extra_data == {"api_key_comfy_org": key}
        assert key not in repr(request)
    with pytest.raises(JobError, match="comfy_org_api_key") as caught:
        parse_request({"workflow": plain(), "comfy_org_api_key": [KEY]}, settings)
    assert KEY not in str(caught.value)


def test_a_file_in_a_bucket_is_an_s3_url() -> None:
    entry = {"filename": "a.png", "kind": "image", "url": "https://b.example/a.png?signature=1"}
    reply = shaped(completed([entry], []))
    validate(reply, SUCCESS)
    assert reply["images"] == [{"filename": "a.png", "type": "s3_url", "data": entry["url"]}]


def test_a_text_too_long_for_the_reply_is_a_file() -> None:
    entry = {"filename": "a.txt", "kind": "text", "url": "https://b.example/a.txt"}
    reply = shaped(completed([entry], []))
    validate(reply, SUCCESS)
    assert reply["images"][0]["data"] == entry["url"]
    assert "texts" not in reply


def test_warnings_are_errors_and_a_named_file_is_reported_there() -> None:
    named = {"filename": "large.mp4", "kind": "video", "path": "ComfyUI/output/large.mp4"}
    image = {"filename": "a.png", "kind": "image", "image": "aGk="}
    reply = shaped(completed([named, image], ["large.mp4 is on the volume"]))
    validate(reply, SUCCESS)
    assert [i["filename"] for i in reply["images"]] == ["a.png"]
    assert reply["errors"] == ["large.mp4 is on the volume"]


def test_a_job_whose_only_file_stays_on_the_volume_has_not_failed() -> None:
    named = {"filename": "large.mp4", "kind": "video", "path": "ComfyUI/output/large.mp4"}
    reply = shaped(completed([named], ["large.mp4 is on the volume at ComfyUI/output/large.mp4"]))
    validate(reply, SUCCESS)
    assert reply["status"] == "success_no_images" and "large.mp4" in reply["errors"][0]
    assert reply["kept"] == ["ComfyUI/output/large.mp4"]


def test_a_job_whose_files_were_to_stay_on_the_volume_says_where(
    their_worker: BootedWorker, shared_volume: Path
) -> None:
    reply = their_worker.ask({"workflow": plain(batch_size=2), "output": {"delivery": "volume"}})
    validate(reply, SUCCESS)
    assert len(reply["kept"]) == 2 and "errors" not in reply
    assert all((shared_volume / path).is_file() for path in reply["kept"])


@pytest.mark.parametrize("field", ["image", "data"])
def test_an_empty_file_is_a_file(field: str) -> None:
    reply = shaped(completed([{"filename": "a.png", field: "", "path": "a.png"}], []))
    assert reply == {"images": [{"filename": "a.png", "type": "base64", "data": ""}]}


def test_no_images_is_a_success_of_its_own() -> None:
    text = {"kind": "text", "text": "a caption", "node_id": "3"}
    reply = shaped(completed([text], []))
    validate(reply, SUCCESS)
    assert reply == {"images": [], "status": "success_no_images", "texts": ["a caption"]}


def test_nothing_but_warnings_is_a_failure_as_in_worker_comfyui() -> None:
    reply = shaped(completed([], ["nothing was produced"], timings={"total": 1.0}))
    assert reply == {"error": "Job processing failed", "details": ["nothing was produced"]}


def test_diagnostics_keep_their_content() -> None:
    reply = shaped(completed([], ["an unknown field"], diagnostics={"status": "ok"}))
    validate(reply, SUCCESS)
    assert reply["diagnostics"] == {"status": "ok"}


def test_details_become_lines() -> None:
    finding = {"code": "volume.full", "severity": "error", "message": "It is full."}
    error = JobError("volume.full", "Cannot run.", "Make room.", findings=[finding], worker_id="w")
    reply = shaped(failed(error))
    validate(reply, FAILURE)
    assert reply == {
        "error": "Cannot run. Make room.",
        "details": ["volume.full: It is full.", "worker_id: w"],
        "error_code": "volume.full",
        "docs": docs_url("volume.full"),
    }


def test_our_own_form_is_left_alone() -> None:
    reply = completed([{"filename": "a.png", "image": "aGk="}], ["warned"])
    assert in_requested_form(reply, Settings()) == reply
    assert in_requested_form(reply, Settings(refresh_worker=True)) == {
        **reply,
        "refresh_worker": True,
    }
    assert in_requested_form(failed(JobError("a.b", "c")), Settings(refresh_worker=True))[
        "refresh_worker"
    ]


@pytest.mark.parametrize(
    ("env", "flags"),
    [
        ({"COMFY_LOG_LEVEL": "DEBUG"}, ("--verbose", "DEBUG")),
        ({"COMFY_LOG_LEVEL": "debug", "COMFYUI_ARGS": "--cpu"}, ("--cpu", "--verbose", "DEBUG")),
        ({"COMFY_LOG_LEVEL": "DEBUG", "COMFYUI_ARGS": "--verbose INFO"}, ("--verbose", "INFO")),
        ({"COMFY_LOG_LEVEL": "DEBUG", "COMFYUI_ARGS": "--verbose=INFO"}, ("--verbose=INFO",)),
        ({"COMFY_LOG_LEVEL": ""}, ()),
    ],
)
def test_its_log_level_is_comfyuis_flag(env: dict[str, str], flags: tuple[str, ...]) -> None:
    settings, findings = Settings.from_env(env)
    assert settings.comfyui_args == flags
    assert findings == ()


def test_a_level_it_does_not_know_is_reported() -> None:
    _, (finding,) = Settings.from_env({"COMFY_LOG_LEVEL": "LOUD"})
    assert "COMFY_LOG_LEVEL is 'LOUD'" in finding.message


def test_its_variables_are_declared() -> None:
    declared = {name for v in variables().values() for name in (v.name, *v.aliases)}
    assert {"REFRESH_WORKER", "COMFY_LOG_LEVEL", "COMFY_ORG_API_KEY"} <= declared


def test_runpod_is_asked_to_stop_the_worker_after_a_job(demo: DemoVolume, tmp_path: Path) -> None:
    with ControlPlane() as plane:
        env = environment(demo, tmp_path / "nowhere", tmp_path / "work") | plane.worker_env()
        env |= {"REFRESH_WORKER": "true", "RESPONSE_FORMAT": "worker-comfyui"}
        with WorkerProcess.module("handler", env=env):
            body = plane.result(plane.submit({"workflow": plain()}), 30)
    assert body["stopPod"] is True
    assert "Network Volume" in body["error"]
    assert any("volume.not_found" in line for line in body["output"]["details"])
