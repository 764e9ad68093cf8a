"""Diagnostics by request, in every state a worker can be in."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from bootstrap.core.findings import Outcome
from tests.bootstrap.doctor.test_doctor import SCHEMA
from tests.conftest import BootedWorker
from tests.end_to_end.test_faults import comfyui_process, is_busy
from tests.end_to_end.test_worker import assert_refused, plain
from tests.support.secret_names import secret_names
from tests.support.waiting import wait_until

Boots = Callable[[Mapping[str, str]], BootedWorker]
PARTS = ("boot", "comfyui", "versions", "settings", "runpod")


def diagnosed(worker: BootedWorker, **fields: Any) -> dict[str, Any]:
    """The diagnostics of a worker; their report part fits the schema."""
    reply = worker.ask({"type": "diagnostics", **fields})
    assert reply["status"] == "completed", reply
    assert len(json.dumps(reply)) < 1_000_000
    diagnostics: dict[str, Any] = reply["diagnostics"]
    report = {name: part for name, part in diagnostics.items() if name not in PARTS}
    jsonschema.validate(report, SCHEMA)
    return diagnostics


def codes(diagnostics: dict[str, Any]) -> set[str]:
    """Codes of what was found now."""
    return {finding["code"] for finding in diagnostics["findings"]}


def test_a_healthy_worker_reports_everything(worker: BootedWorker) -> None:
    reported = diagnosed(worker)
    assert reported["comfyui"]["running"]
    assert reported["comfyui"]["answers"]
    assert reported["boot"]["outcome"] == "ready"
    assert {"check machine", "check volume"} <= {s["name"] for s in reported["boot"]["timeline"]}
    assert reported["versions"]["sdk"] == "1.12.0"
    assert reported["versions"]["comfyui"] == "0.3.75"
    assert reported["versions"]["torch"].startswith("2.13.0")
    assert reported["settings"]["comfyui_args"] == ["--cpu", "--disable-api-nodes"]
    assert reported["facts"]["models"]


def test_sections_and_types_are_checked(worker: BootedWorker) -> None:
    reported = diagnosed(worker, sections=["machine"])
    assert set(reported["facts"]) == {"machine"}
    refused = worker.ask({"type": "diagnostics", "sections": ["kitchen"]})
    assert_refused(refused, "request.wrong_type", "volume", "machine")
    assert_refused(worker.ask({"type": "diagnostics", "deep": "very"}), "request.wrong_type")
    assert_refused(worker.ask({"type": "dianostics"}), "request.unknown_type", "diagnostics")
    assert_refused(worker.ask({"type": ["diagnostics"]}), "request.unknown_type")


def test_models_are_listed_by_category(worker: BootedWorker) -> None:
    reply = worker.ask({"type": "models"})
    assert reply["status"] == "completed"
    assert "taesd_decoder.safetensors" in json.dumps(reply["models"])
    assert reply["models"]["cached"] == []


def test_a_running_job_is_not_disturbed(worker: BootedWorker) -> None:
    nodes = plain()
    nodes["3"] = {"class_type": "TestSleep", "inputs": {"image": ["1", 0], "seconds": 2.0}}
    nodes["2"]["inputs"]["images"] = ["3", 0]
    replies: list[dict[str, Any]] = []
    job = threading.Thread(target=lambda: replies.append(worker.ask({"workflow": nodes})))
    job.start()
    wait_until(lambda: is_busy(worker))
    reported = diagnosed(worker)
    assert reported["comfyui"]["running"]
    job.join()
    assert replies[0]["status"] == "completed"


def test_a_worker_without_volume_still_answers(
    worker_env: dict[str, str], tmp_path: Path, boot_worker: Boots
) -> None:
    worker = boot_worker(worker_env | {"VOLUME_PATH": str(tmp_path / "nowhere")})
    reported = diagnosed(worker)
    assert reported["status"] == "error"
    assert reported["boot"]["outcome"] == "degraded"
    assert not reported["comfyui"]["running"]
    assert any(code.startswith("volume.") for code in codes(reported))


def test_what_was_fixed_since_is_seen(
    worker_env: dict[str, str], volume: Path, boot_worker: Boots
) -> None:
    aside = volume.with_name("aside")
    shutil.move(volume / "ComfyUI", aside)
    worker = boot_worker(worker_env)
    assert "error" in {f["severity"] for f in diagnosed(worker)["findings"]}
    shutil.move(aside, volume / "ComfyUI")
    assert "error" not in {f["severity"] for f in diagnosed(worker)["findings"]}


def test_comfyui_that_died_is_reported_with_its_reason(
    worker_env: dict[str, str], boot_worker: Boots
) -> None:
    worker = boot_worker(worker_env)
    comfyui_process(worker).kill()
    comfyui = worker.serving.comfyui
    assert comfyui is not None
    wait_until(lambda: comfyui.ended() is not None)
    reported = diagnosed(worker)["comfyui"]
    assert not reported["running"]
    assert reported["exits"][-1]["reason"]["code"] == "comfyui.killed"
    assert reported["log"]


def test_an_absent_gpu_makes_the_worker_unfit_and_is_reported(
    worker_env: dict[str, str], boot_worker: Boots
) -> None:
    worker = boot_worker(worker_env | {"GPU": "required"})
    if worker.report.outcome is Outcome.READY:
        pytest.skip("this machine has a GPU")
    assert worker.report.outcome is Outcome.UNFIT
    reported = diagnosed(worker)
    assert "gpu.absent" in codes(reported)
    assert_refused(worker.ask({"workflow": plain()}), "gpu.absent", "GPU")


@pytest.fixture
def mounted(volume: Path, tmp_path: Path) -> Iterator[Path]:
    """The volume as a mount of its own, which can be taken away."""
    place = tmp_path / "mounted"
    place.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if mount.returncode != 0:
        pytest.skip(f"no right to mount here: {mount.stderr.strip()}")
    shutil.copytree(volume, place, symlinks=True, dirs_exist_ok=True)
    yield place
    subprocess.run(["umount", "-l", str(place)], capture_output=True, check=False)


def test_a_volume_that_vanished_is_reported(
    worker_env: dict[str, str], mounted: Path, boot_worker: Boots
) -> None:
    worker = boot_worker(worker_env | {"VOLUME_PATH": str(mounted)})
    assert worker.report.outcome is Outcome.READY
    subprocess.run(["umount", "-l", str(mounted)], check=True)
    reported = diagnosed(worker)
    assert reported["status"] == "error"
    assert codes(reported) & {"volume.not_mounted", "volume.not_found"}
    assert reported["boot"]["outcome"] == "ready", "what was true then stays reported as such"


def test_a_marker_token_is_nowhere_in_diagnostics(
    worker_env: dict[str, str], boot_worker: Boots
) -> None:
    marker = "marker-51ac0e"
    worker = boot_worker(worker_env | dict.fromkeys(secret_names(), marker))
    assert marker not in json.dumps(diagnosed(worker))
