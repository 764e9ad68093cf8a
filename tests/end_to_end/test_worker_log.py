"""A worker's log: a healthy boot, jobs, a failed boot."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.volume import DemoVolume
from tests.conftest import environment, workflow
from tests.support.control_plane import ControlPlane
from tests.support.worker_process import WorkerProcess

MOST_LINES = 25


def started(worker: WorkerProcess) -> list[str]:
    """The lines up to the SDK's loop."""
    worker.wait_for_line("Starting Serverless Worker", 90)
    lines = [line.text for line in worker.lines]
    return lines[: next(i for i, line in enumerate(lines) if "Starting Serverless" in line)]


def messages(lines: list[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines if line.startswith("{")]


@pytest.fixture(scope="module")
def serving(
    demo: DemoVolume, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ControlPlane, WorkerProcess]]:
    """A healthy worker in production mode."""
    volume = demo.copy_to(tmp_path_factory.mktemp("log") / "volume")
    with ControlPlane() as plane:
        env = environment(demo, volume, tmp_path_factory.mktemp("work")) | plane.worker_env()
        env["COMFYUI_ARGS"] = "--cpu"  # all of its nodes, and what they log
        with WorkerProcess.module("handler", env=env) as worker:
            plane.wait_for("ready", timeout=90)
            yield plane, worker


def test_a_healthy_boot_is_short_and_alarms_no_one(
    serving: tuple[ControlPlane, WorkerProcess],
) -> None:
    lines = started(serving[1])
    assert len(lines) <= MOST_LINES, "\n".join(lines)
    said = messages(lines)
    assert len(said) == len(lines), "all of it is JSON, as Runpod collects it"
    assert re.fullmatch(
        r"comfyui-volume-worker \d\S+: volume /\S+, ComfyUI \d\S+ in /\S+/ComfyUI(, .+)?",
        said[0]["message"],
    )
    assert not [line for line in said if line["level"] == "ERROR" or "Traceback" in line["message"]]
    (verdict,) = (line["message"] for line in said if line["message"].startswith("Boot: "))
    assert re.fullmatch(r"Boot: ready after \d+\.\d s\.", verdict)
    (ready,) = (line["message"] for line in said if line["message"].startswith("ComfyUI ready: "))
    seconds = float(ready.split()[2])
    assert 0 < seconds <= float(verdict.split()[3])
    stages = [
        line["message"] for line in said if re.match(r"[a-zA-Z ]+: \d+\.\d s", line["message"])
    ]
    assert len(stages) >= 3
    assert not [stage for stage in stages if re.search(r": 0\.0 s", stage)]


def test_a_job_has_a_line_at_its_start_and_one_at_its_end(
    serving: tuple[ControlPlane, WorkerProcess],
) -> None:
    plane, worker = serving
    done = plane.submit({"workflow": workflow("batch_of_3")})
    plane.result(done, 60)
    refused = plane.submit({"workflow": {"1": {"class_type": "Nope", "inputs": {}}}})
    plane.result(refused, 60)
    malformed = plane.submit({"wrong": 1})
    plane.result(malformed, 60)
    worker.wait_for_line(f"{malformed}.*Finished", 10)
    lines = messages([line.text for line in worker.lines])

    def of(job: str) -> list[str]:
        """Ours; the SDK says that it began and ended one as well."""
        texts = [line["message"] for line in lines if line["requestId"] == job]
        return [text for text in texts if text not in ("Started.", "Finished.")]

    started, ended = of(done)
    assert re.fullmatch(r"started: workflow of \d+ nodes", started)
    assert re.match(
        r"done in \d+\.\d s \(ComfyUI \d+\.\d s\): 3 results, on the volume: \S+\.png, ", ended
    )
    started, ended = of(refused)
    assert re.match(r"failed after \d\.\d s: workflow\.unknown_node: ", ended)
    (ended,) = of(malformed)
    assert re.match(r"failed after \d\.\d s: workflow\.missing: ", ended)


def test_a_cancelled_job_says_so(serving: tuple[ControlPlane, WorkerProcess]) -> None:
    plane, worker = serving
    job = plane.submit({"workflow": workflow("picture")})
    worker.wait_for_line(f"{job}.*started: ", 30)
    plane.cancel(job)
    worker.wait_for_line(f"{job}.*cancelled after ", 30)


def test_sigterm_says_what_is_left(serving: tuple[ControlPlane, WorkerProcess]) -> None:
    """The last test of this worker."""
    _, worker = serving
    time.sleep(2.0)  # until the job before is forgotten
    worker.terminate()
    worker.wait_for_line("SIGTERM: no jobs running, exiting", 30)
    assert worker.wait(30) == 0


def test_a_boot_that_failed_names_the_first_error_first(
    worker_env: dict[str, str], volume: Path
) -> None:
    shutil.rmtree(volume / "ComfyUI")
    with (
        ControlPlane() as plane,
        WorkerProcess.module("handler", env=worker_env | plane.worker_env()) as worker,
    ):
        lines = started(worker)
        said = messages(lines)
    assert said[0]["message"].endswith(f": volume {volume}, no ComfyUI")
    (verdict,) = (line for line in said if line["message"].startswith("Boot: "))
    assert verdict["level"] == "ERROR"
    assert verdict["message"].startswith("Boot: degraded: comfyui.not_found: ")
    assert "git clone" in verdict["message"]
    assert not [line for line in said if line["message"].startswith("comfyui.not_found")], "once"


def test_settings_that_are_wrong_stand_in_the_verdict(worker_env: dict[str, str]) -> None:
    env = worker_env | {"JOB_TIMEOUT": "soon", "LOG_LEVEL": "loud"}
    with (
        ControlPlane() as plane,
        WorkerProcess.module("handler", env=env | plane.worker_env()) as w,
    ):
        said = [line["message"] for line in messages(started(w))]
    assert said[0].endswith("the settings have errors, so ComfyUI is not started")
    assert any(line.startswith("Boot: degraded: settings.") for line in said)
