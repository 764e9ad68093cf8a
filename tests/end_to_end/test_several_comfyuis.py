"""Two ComfyUIs in one worker, as on a machine with two GPUs; here both run on the CPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil
import pytest

from bootstrap.core.findings import Outcome
from demo.volume import DemoVolume
from tests.conftest import BootedWorker, environment, furnished
from tests.end_to_end.test_faults import through
from tests.end_to_end.test_production import Production
from tests.end_to_end.test_worker import plain
from tests.support.control_plane import ControlPlane
from tests.support.mixed_jobs import faults_of, mixed_job
from tests.support.waiting import wait_until
from tests.support.worker_process import WorkerProcess


@pytest.fixture(scope="module")
def pair(demo: DemoVolume, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Production]:
    """A worker in production mode with two ComfyUIs."""
    volume = furnished(demo, tmp_path_factory.mktemp("pair") / "volume")
    with ControlPlane() as plane:
        env = environment(demo, volume, tmp_path_factory.mktemp("work")) | plane.worker_env()
        with WorkerProcess.module("handler", env=env | {"COMFYUI_INSTANCES": "2"}) as worker:
            plane.wait_for("ready", timeout=120)
            yield Production(plane, worker, volume)


def comfyuis(pair: Production) -> list[psutil.Process]:
    """The processes of both, not their guards."""
    found = [p for p in pair.worker.living() if "run_main.py" in p.command]
    return [psutil.Process(p.pid) for p in found if "child_guard.py" not in p.command]


def test_two_jobs_run_at_once(pair: Production) -> None:
    assert len(comfyuis(pair)) == 2
    jobs = [pair.plane.submit({"workflow": through("TestSleep", seconds=3.0)}) for _ in "ab"]
    replies = [pair.plane.result(job, 60)["output"] for job in jobs]
    assert [reply["status"] for reply in replies] == ["completed"] * 2
    assert not any("waited" in reply["timings"] for reply in replies), "none behind the other"


def test_mixed_jobs_do_not_mix_up_their_files(pair: Production) -> None:
    mixed = [mixed_job(number) for number in range(1, 25)]
    jobs = [pair.plane.submit({"workflow": each.workflow}) for each in mixed]
    for each, job in zip(mixed, jobs, strict=True):
        output = pair.plane.result(job, 120)["output"]
        assert faults_of(each, output, pair.volume) == []


def test_one_that_dies_leaves_the_job_of_the_other_alone(pair: Production) -> None:
    before = {process.pid for process in comfyuis(pair)}
    long = pair.plane.submit({"workflow": through("TestSleep", seconds=6.0)})
    pair.plane.wait_for("take", long)
    time.sleep(1)
    deadly = pair.ask({"workflow": through("TestDie", way="SIGKILL")})["output"]
    assert deadly["error_code"] == "comfyui.died", deadly
    assert pair.plane.result(long, 60)["output"]["status"] == "completed"
    wait_until(lambda: len(comfyuis(pair)) == 2, 60)
    assert len(before & {process.pid for process in comfyuis(pair)}) == 1
    for _ in range(3):
        assert pair.ask({"workflow": plain(color=7)})["output"]["status"] == "completed"


def test_diagnostics_cover_both(pair: Production) -> None:
    reply = pair.ask({"type": "diagnostics", "sections": ["environment"]})["output"]["diagnostics"]
    states = [reply["comfyui"], *reply["further_comfyuis"]]
    assert [state["running"] for state in states] == [True, True]
    assert states[0]["port"] != states[1]["port"]


def test_one_that_does_not_start_is_reported_and_the_other_serves(
    demo: DemoVolume, tmp_path: Path, boot_worker: Callable[[Mapping[str, str]], BootedWorker]
) -> None:
    volume = furnished(demo, tmp_path / "volume")
    pack = volume / "ComfyUI" / "custom_nodes" / "only_one"
    pack.mkdir()
    taken = tmp_path / "taken"
    (pack / "__init__.py").write_text(
        "import os\nNODE_CLASS_MAPPINGS = {}\n"
        f"try:\n    os.close(os.open({str(taken)!r}, os.O_CREAT | os.O_EXCL))\n"
        "except FileExistsError:\n    os._exit(3)\n"
    )
    env = environment(demo, volume, tmp_path / "work") | {"COMFYUI_INSTANCES": "2"}
    worker = boot_worker(env)
    assert worker.report.outcome is Outcome.READY, worker.report.findings
    (left_out,) = [f for f in worker.report.findings if f.code == "comfyui.instance_failed"]
    assert left_out.details["cause"] == "comfyui.exited"
    assert worker.runtime.health.now().healthy
    assert worker.ask({"workflow": plain()})["status"] == "completed"
