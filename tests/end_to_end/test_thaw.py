"""A worker frozen as FlashBoot freezes it, its wall clock moved meanwhile, then given a job.

Every process of the worker is stopped with SIGSTOP; the monotonic clock goes on, the wall clock is
moved under all of them while they stand still. Here they stand for longer than a hung
ComfyUI is given; `python -m tests.prove.freeze` freezes for longer than every timeout in the code.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from demo.volume import DemoVolume
from tests.conftest import environment, furnished
from tests.end_to_end.test_production import Production
from tests.end_to_end.test_worker import plain
from tests.support.control_plane import ControlPlane
from tests.support.mixed_jobs import faults_of, mixed_job
from tests.support.moved_clock import MovedClock
from tests.support.worker_process import WorkerProcess

COLOURS = itertools.count(1)  # another picture each time, which ComfyUI has not cached
SECONDS = 12.0  # more than the 10 that a ComfyUI may be silent


@dataclass(frozen=True)
class Freezer:
    """A worker in production mode and its wall clock."""

    production: Production
    clock: MovedClock

    def freeze(self) -> None:
        """Stop every process of the worker."""
        for pid in self._pids():
            os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let them go on."""
        for pid in self._pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def _pids(self) -> list[int]:
        worker = self.production.worker
        return [worker.pid, *(process.pid for process in worker.living())]


@contextlib.contextmanager
def frozen_worker(demo: DemoVolume, folder: Path) -> Iterator[Freezer]:
    """A worker that serves, its clock right at first."""
    clock = MovedClock(folder)
    volume = furnished(demo, folder / "volume")
    with ControlPlane() as plane:
        env = environment(demo, volume, folder / "work") | plane.worker_env() | clock.env
        with WorkerProcess.module("handler", env=env) as worker:
            plane.wait_for("ready", timeout=90)
            yield Freezer(Production(plane, worker, volume), clock)


@pytest.fixture(scope="module")
def freezer(demo: DemoVolume, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Freezer]:
    """One worker for all tests here."""
    with frozen_worker(demo, tmp_path_factory.mktemp("thaw")) as freezer:
        yield freezer


def state_of(production: Production) -> tuple[int, str]:
    """How often ComfyUI was started, and the worker's idea of now."""
    output = production.ask({"type": "diagnostics", "sections": ["environment"]})["output"]
    return int(output["diagnostics"]["comfyui"]["starts"]), output["diagnostics"]["at"]


def check_first_job_after_a_freeze(freezer: Freezer, moved: int, seconds: float) -> None:
    """A job sent while the worker is frozen is served by the ComfyUI that was there before."""
    production = freezer.production
    assert (
        production.ask({"workflow": plain(color=next(COLOURS))})["output"]["status"] == "completed"
    )
    starts, before = state_of(production)
    freezer.freeze()
    freezer.clock.move(moved)
    time.sleep(seconds)
    job = production.plane.submit({"workflow": plain(color=next(COLOURS))})
    freezer.thaw()
    answer = production.plane.result(job, 60)
    assert answer["output"]["status"] == "completed", answer
    starts_now, now = state_of(production)
    assert starts_now == starts, production.worker.tail(100)
    assert (now > before) == (moved > 0), "the clock did move"


def check_mixed_jobs_after_a_freeze(freezer: Freezer, seconds: float) -> None:
    """Jobs sent while the worker is frozen are answered, each with exactly its files. The wall
    clock is left alone: files have their times from the kernel's, which a test cannot move."""
    production = freezer.production
    mixed = [mixed_job(next(COLOURS)) for _ in range(6)]
    freezer.freeze()
    time.sleep(seconds)
    jobs = [production.plane.submit({"workflow": copy.deepcopy(m.workflow)}) for m in mixed]
    freezer.thaw()
    for each, job in zip(mixed, jobs, strict=True):
        output = production.plane.result(job, 60)["output"]
        assert faults_of(each, output, production.volume) == [], production.worker.tail(60)


def test_mixed_jobs_after_a_freeze(freezer: Freezer) -> None:
    check_mixed_jobs_after_a_freeze(freezer, SECONDS)


@pytest.mark.parametrize("hours", [5, -3])
def test_the_first_job_after_a_thaw_is_served(freezer: Freezer, hours: int) -> None:
    check_first_job_after_a_freeze(freezer, hours * 3600, SECONDS)


def test_a_comfyui_that_did_not_survive_the_freeze_is_replaced(freezer: Freezer) -> None:
    """As after a restore that brought the worker back without its GPU process."""
    production = freezer.production
    freezer.freeze()
    for process in production.worker.living():
        if "main.py" in process.command:
            os.kill(process.pid, signal.SIGKILL)
    job = production.plane.submit({"workflow": plain(color=next(COLOURS))})
    freezer.thaw()
    assert production.plane.result(job, 90)["output"]["status"] == "completed"


def test_a_volume_that_is_gone_after_the_freeze_is_reported(freezer: Freezer) -> None:
    production = freezer.production
    gone = production.volume.with_name("unmounted")
    freezer.freeze()
    production.volume.rename(gone)
    workflow = plain(color=next(COLOURS))
    workflow["3"] = {"class_type": "VAELoader", "inputs": {"vae_name": "some.safetensors"}}
    workflow["4"] = {"class_type": "VAEEncode", "inputs": {"pixels": ["1", 0], "vae": ["3", 0]}}
    workflow["5"] = {"class_type": "SaveLatent", "inputs": {"samples": ["4", 0]}}
    del workflow["2"]
    job = production.plane.submit({"workflow": workflow})
    freezer.thaw()
    try:
        output = production.plane.result(job, 60)["output"]
        assert output["error_code"] == "volume.gone", output
    finally:
        gone.rename(production.volume)
    assert (
        production.ask({"workflow": plain(color=next(COLOURS))})["output"]["status"] == "completed"
    )
