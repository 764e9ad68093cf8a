"""docs/migration.md, line by line: what another worker's people are promised."""

from __future__ import annotations

import base64
import importlib
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from PIL import Image

from bootstrap.config import Settings
from bootstrap.core.findings import Finding
from demo.volume import DemoVolume
from handler.request.compatibility import in_requested_form
from tests.conftest import BootedWorker, environment, ready_worker
from tests.end_to_end.test_caches import COLOURS, node
from tests.end_to_end.test_faults import through
from tests.end_to_end.test_worker import plain
from tests.support.s3_server import KEY_ID, SECRET, s3_server
from tests.support.sources import ROOT

KEY = "comfyui-migration-marker"
TOKEN = "hf_migrationMarker0123456789abcdefghijk"
NOT_READ = (
    "NETWORK_VOLUME_DEBUG",
    "SERVE_API_LOCALLY",
    "COMFY_API_AVAILABLE_INTERVAL_MS",
    "COMFY_API_AVAILABLE_MAX_RETRIES",
    "WEBSOCKET_RECONNECT_ATTEMPTS",
    "WEBSOCKET_RECONNECT_DELAY_S",
    "WEBSOCKET_TRACE",
)
GATED = "401 Client Error. Cannot access gated repo for url https://huggingface.co/a/b."


@pytest.fixture(scope="module")
def worker(
    demo: DemoVolume, shared_volume: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BootedWorker]:
    """One with the variables of a worker-comfyui, and some that are misspelt."""
    env = environment(demo, shared_volume, tmp_path_factory.mktemp("work"))
    env |= dict.fromkeys(NOT_READ, "1") | {"COMFY_ORG_API_KEY": KEY, "HF_TOKEN": TOKEN}
    env |= {"RESPONSE_FORMAT": "worker-comfyui", "MAX_WIAT": "60", "COMFY_ARGS": "--lowvram"}
    with ready_worker({**env, "BUCKET_ENDPOINT_URL": "https://s3.example.com"}) as booted:
        yield booted


def noticed(worker: BootedWorker, code: str) -> list[Finding]:
    report = worker.report
    return [f for f in (*report.findings, *report.noticed) if f.code == code]


def test_every_file_comes_back_in_images_and_texts_in_texts(worker: BootedWorker) -> None:
    nodes = plain(color=next(COLOURS))
    ui = json.dumps({"audio": [{"filename": "a.txt", "subfolder": "", "type": "output"}]})
    nodes["3"] = node("TestReport", files="a.txt", ui=ui)
    nodes["4"] = node("TestReport", files="", ui='{"text": ["a caption"]}')
    reply = worker.ask({"workflow": nodes})
    names = sorted(image["filename"].split("_")[0] for image in reply["images"])
    assert names == ["a", "t"] and reply["texts"] == ["a caption"]


def test_a_name_carries_the_jobs_mark(worker: BootedWorker, shared_volume: Path) -> None:
    (image,) = worker.ask({"workflow": plain(color=next(COLOURS))})["images"]
    assert re.fullmatch(r"t_\d{5}_[0-9a-f]{12}\.png", image["filename"])
    assert (shared_volume / "ComfyUI" / "output" / image["filename"]).is_file()


def test_what_does_not_fit_stays_on_the_volume(
    worker: BootedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    (jobs,) = worker.worker._instances
    monkeypatch.setattr(jobs._delivery, "_settings", Settings(max_reply_mb=0.02))
    nodes = plain(color=next(COLOURS))
    nodes["3"] = node("TestReport", files="", ui=json.dumps({"text": ["x" * 50_000]}))
    reply = worker.ask({"workflow": nodes})
    assert any("is on the volume at ComfyUI/output/" in e for e in reply.get("errors", [])), reply


def test_an_error_says_what_is_wrong_and_has_a_code(worker: BootedWorker) -> None:
    broken = {"1": node("CheckpointLoaderSimple", ckpt_name="gone.safetensors")}
    broken["2"] = node("VAEDecode", samples=["1", 0], vae=["1", 2])
    broken["3"] = node("PreviewAny", source=["1", 0])
    reply = worker.ask({"workflow": broken})
    assert reply["error_code"] == "workflow.missing_model" and "gone.safetensors" in reply["error"]
    assert all(isinstance(line, str) for line in reply["details"])


def test_errors_hold_what_was_not_fatal(worker: BootedWorker) -> None:
    reply = worker.ask({"workflow": plain(color=next(COLOURS)), "webhook": "https://x"})
    assert len(reply["images"]) == 1 and any("webhook" in error for error in reply["errors"])


def test_nothing_but_text_is_success_no_images_and_nothing_at_all_is_a_failure(
    worker: BootedWorker,
) -> None:
    text = worker.ask({"workflow": {"1": node("TestReport", files="", ui='{"text": ["a"]}')}})
    assert text["status"] == "success_no_images" and text["images"] == []
    nothing = worker.ask({"workflow": {"1": node("TestReport", files="", ui='{"a": [true]}')}})
    assert nothing["error"] and nothing["details"] and "images" not in nothing


def test_metadata_is_kept_unless_the_flag_is_set(worker: BootedWorker) -> None:
    (image,) = worker.ask({"workflow": plain(color=next(COLOURS))})["images"]
    picture = Image.open(io.BytesIO(base64.b64decode(image["data"])))
    assert "EmptyImage" in picture.text["prompt"]  # type: ignore[attr-defined]
    settings, _ = Settings.from_env({"COMFYUI_ARGS": "--disable-metadata"})
    assert "--disable-metadata" in settings.comfyui_args


def test_its_bucket_is_ours_and_the_jobs_id_may_stand_in_the_keys(
    worker: BootedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_server() as bucket:
        env = {**bucket.env, "BUCKET_ENDPOINT_URL": f"{bucket.url}/results"}
        del env["BUCKET_NAME"]
        settings, _ = Settings.from_env({**env, "BUCKET_PREFIX": "{job_id}"})
        monkeypatch.setattr(worker.worker, "_settings", settings)
        reply = worker.ask({"workflow": plain(color=next(COLOURS))}, job_id="sync-77")
        (result,) = reply["results"]
        assert requests.get(result["url"], timeout=20).content.startswith(b"\x89PNG")
        assert reply["url"] == result["url"], "comfy-gen's clients read it there"
        assert bucket.stored() == [f"sync-77/{result['filename']}"]
        theirs = in_requested_form(reply, Settings(response_format="worker-comfyui"))
        (image,) = theirs["images"]
        assert (image["type"], image["data"]) == ("s3_url", result["url"])
        assert "url" not in theirs


def test_a_bucket_that_cannot_be_used_is_said_in_each_reply(
    worker: BootedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert noticed(worker, "env.bucket_incomplete")
    for _ in range(2):
        reply = worker.ask({"workflow": plain(color=next(COLOURS))})
        assert reply["images"][0]["type"] == "base64"
        (error,) = reply["errors"]
        assert "BUCKET_ACCESS_KEY_ID, BUCKET_SECRET_ACCESS_KEY not set" in error
    plainly = worker.ask({"workflow": plain(color=next(COLOURS)), "output": {"delivery": "volume"}})
    assert not any("BUCKET_ACCESS" in error for error in plainly.get("errors", [])), "not asked for"
    wrong, _ = Settings.from_env(
        {
            "BUCKET_ENDPOINT_URL": "no address",
            "BUCKET_ACCESS_KEY_ID": KEY_ID,
            "BUCKET_SECRET_ACCESS_KEY": SECRET,
        }
    )
    monkeypatch.setattr(worker.worker, "_settings", wrong)
    reply = worker.ask({"workflow": plain(color=next(COLOURS))})
    assert any("BUCKET_ENDPOINT_URL not set, or not valid" in w for w in reply["warnings"])


def test_its_key_reaches_api_nodes_and_not_the_environment(worker: BootedWorker) -> None:
    shown = worker.ask({"workflow": {"1": node("TestShowKey")}})
    assert shown["texts"] == [KEY[::-1]]
    (environment_of_nodes,) = worker.ask({"workflow": {"1": node("TestShowEnvironment")}})["texts"]
    assert KEY not in environment_of_nodes


def test_the_error_of_a_node_that_lacks_a_token_names_the_variable_that_lets_it_through(
    worker: BootedWorker,
) -> None:
    workflow = through("TestRaise", what="RuntimeError", said=GATED)
    reply = worker.ask({"workflow": workflow})
    assert reply["error_code"] == "job.node_failed"
    assert "COMFYUI_ENV_PASS=HF_TOKEN" in reply["error"] and TOKEN not in json.dumps(reply)


def test_variables_that_mean_nothing_here_are_named_at_boot(worker: BootedWorker) -> None:
    found = noticed(worker, "env.not_read")
    assert {f.details["name"] for f in found} == set(NOT_READ)
    (local,) = [f for f in found if f.details["name"] == "SERVE_API_LOCALLY"]
    command = "/worker/.venv/bin/python -m handler --rp_serve_api --rp_api_host 0.0.0.0"
    assert command in local.fix and command in (ROOT / "docs" / "migration.md").read_text()
    misspelt = {f.details["name"]: f.details["right"] for f in noticed(worker, "env.name_near")}
    assert misspelt == {"MAX_WIAT": "MAX_WAIT", "COMFY_ARGS": "COMFYUI_ARGS"}


def test_no_ssh_server_is_in_the_image() -> None:
    assert "ssh" not in (ROOT / "Dockerfile").read_text("utf-8").lower()


HERE = "tests.end_to_end.test_migration"
THEIRS = "tests.handler.request.test_worker_comfyui"
VOLUMES = "tests.bootstrap.doctor.test_checks_volume_fixes"
TEMPLATES = "tests.end_to_end.test_volumes:test_a_templates_volume_starts_as_it_is"
UNREAD = f"{HERE}:test_variables_that_mean_nothing_here_are_named_at_boot"
# The first words of a line's first cell, and the test of what it says.
LINES = {
    "only what nodes list": f"{HERE}:test_every_file_comes_back_in_images_and_texts_in_texts",
    "files are named as": f"{HERE}:test_a_name_carries_the_jobs_mark",
    "a reply over Runpod's": f"{HERE}:test_what_does_not_fit_stays_on_the_volume",
    "`error` says that": f"{HERE}:test_an_error_says_what_is_wrong_and_has_a_code",
    "`errors` lists": f"{HERE}:test_errors_hold_what_was_not_fatal",
    "nothing was produced": f"{HERE}:test_nothing_but_text_is_success_no_images_and_nothing_at_"
    "all_is_a_failure",
    "image metadata": f"{HERE}:test_metadata_is_kept_unless_the_flag_is_set",
    "`BUCKET_ENDPOINT_URL`": f"{HERE}:test_its_bucket_is_ours_and_the_jobs_id_may_stand_in_"
    "the_keys",
    "`REFRESH_WORKER`": f"{THEIRS}:test_runpod_is_asked_to_stop_the_worker_after_a_job",
    "`COMFY_LOG_LEVEL`": f"{THEIRS}:test_the_log_level_is_one_that_comfyui_takes",
    "`COMFY_ORG_API_KEY`": f"{HERE}:test_its_key_reaches_api_nodes_and_not_the_environment",
    "`NETWORK_VOLUME_DEBUG`": UNREAD,
    "`SERVE_API_LOCALLY`": "tests.end_to_end.test_clients:test_against_a_local_worker",
    "`COMFY_API_AVAILABLE": UNREAD,
    "`WEBSOCKET_RECONNECT": UNREAD,
    "`PUBLIC_KEY`": f"{HERE}:test_no_ssh_server_is_in_the_image",
    "comfyui-api's cache": "tests.handler.models.test_named_models:"
    "test_over_the_limit_the_one_used_least_recently_goes_and_no_file_of_the_users",
    "credentials in the request": "tests.bootstrap.models.test_sources_https:"
    "test_the_token_goes_to_its_host_only",
    "ComfyUI in `/workspace/ComfyUI`": TEMPLATES,
    "ComfyUI in another folder": f"{VOLUMES}:test_the_only_comfyui_is_used_wherever_it_is",
    "`extra_model_paths.yaml`": f"{VOLUMES}:test_links_that_the_workers_link_of_the_other_mount_"
    "makes_good_are_reported_as_that",
    "absolute links": f"{VOLUMES}:test_links_that_the_workers_link_of_the_other_mount_makes_good_"
    "are_reported_as_that",
    "nodes' packages": "tests.bootstrap.environment.test_package_set:"
    "test_the_second_worker_needs_no_network",
    "a venv on the volume": f"{VOLUMES}:test_a_venv_whose_python_is_not_here",
    "ComfyUI-Manager": "tests.bootstrap.comfyui.test_copy_code:"
    "test_what_the_manager_has_queued_is_left_out_and_reported",
    "you see the picture": f"{HERE}:test_a_name_carries_the_jobs_mark",
}


def test_each_line_of_the_document_has_a_test() -> None:
    text = (ROOT / "docs" / "migration.md").read_text("utf-8")
    rows = re.findall(r"^ *\| (.+?) \|", text, re.MULTILINE)
    heads = {"worker-comfyui", "its variable", "its setting", "on the Pod"}
    lines = [row for row in rows if row not in heads and not row.startswith("---")]
    named = [next((start for start in LINES if line.startswith(start)), line) for line in lines]
    assert sorted(named) == sorted(LINES)


@pytest.mark.parametrize("test", sorted(set(LINES.values())))
def test_the_tests_of_its_lines_exist(test: str) -> None:
    module, _, name = test.partition(":")
    assert callable(getattr(importlib.import_module(module), name))
