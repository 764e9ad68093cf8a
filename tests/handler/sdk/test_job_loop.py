"""The next job is taken while ComfyUI works: the real SDK in production mode, a real ComfyUI."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from demo.volume import DemoVolume
from tests.conftest import environment, furnished
from tests.end_to_end.test_faults import through
from tests.end_to_end.test_production import Production
from tests.end_to_end.test_worker import plain
from tests.support.control_plane import ControlPlane
from tests.support.waiting import wait_until
from tests.support.worker_process import WorkerProcess


@contextmanager
def serving(demo: DemoVolume, folder: Path, **env: str) -> Iterator[Production]:
    """A worker in production mode that waits for its first job."""
    volume = furnished(demo, folder / "volume")
    with ControlPlane() as plane:
        merged = environment(demo, volume, folder / "work") | plane.worker_env() | env
        with WorkerProcess.module("handler", env=merged) as worker:
            plane.wait_for("ready", timeout=90)
            yield Production(plane, worker, volume)


@pytest.fixture(scope="module")
def busy(demo: DemoVolume, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Production]:
    with serving(demo, tmp_path_factory.mktemp("busy")) as production:
        yield production


def sleeping(production: Production, seconds: float, gate: Path = Path()) -> str:
    """A job of so many seconds, or until there is a file `gate`, submitted."""
    until = str(gate) if gate.name else ""
    nodes = through("TestSleep", seconds=seconds, until=until)
    return production.plane.submit({"workflow": nodes})


def at(production: Production, kind: str, job: str) -> float:
    """When this happened to the job."""
    return production.plane.wait_for(kind, job).at  # type: ignore[arg-type]


def status(production: Production, job: str) -> str:
    return str(production.plane.result(job)["output"]["status"])


def test_one_more_job_is_taken_while_one_runs_and_each_alone(
    busy: Production, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    jobs = [sleeping(busy, 60.0, gate), *(sleeping(busy, 0.1) for _ in range(2))]
    at(busy, "take", jobs[1])
    time.sleep(1.0)
    assert busy.plane.select("take", jobs[2]) == [], "only when the first ended"
    gate.touch()
    assert [status(busy, job) for job in jobs] == ["completed"] * 3
    takes = [event for job in jobs for event in busy.plane.select("take", job)]
    assert all("batch_size" not in event.query for event in takes), "none is left to others"


def test_comfyui_works_while_a_result_is_posted(busy: Production) -> None:
    busy.plane.faults.held.add("done")
    jobs = [busy.plane.submit({"workflow": plain(color=color)}) for color in range(1, 6)]
    for job in jobs[:4]:
        at(busy, "done", job)  # all four are on their way at once
    time.sleep(1.0)
    assert busy.plane.select("take", jobs[4]) == [], "no more than that"
    busy.plane.faults.held.clear()
    assert {status(busy, job) for job in jobs} == {"completed"}


def test_one_that_waits_is_cancelled_and_another_comes_in_its_place(busy: Production) -> None:
    prompts = busy.worker.log.count("got prompt")
    running, waiting = sleeping(busy, 60.0), sleeping(busy, 60.0)
    wait_until(lambda: busy.worker.log.count("got prompt") == prompts + 2)
    third = busy.plane.submit({"workflow": plain(color=7)})
    busy.plane.cancel(waiting)
    at(busy, "take", third)
    wait_until(lambda: busy.worker.log.count("got prompt") == prompts + 3)
    busy.plane.cancel(running)
    assert status(busy, third) == "completed"
    timings = busy.plane.result(third)["output"]["timings"]
    assert timings["waited"] > 0, "behind the one that runs"
    assert busy.plane.select("done", waiting) == busy.plane.select("done", running) == []


def test_a_cancel_that_overtakes_its_job_is_not_lost(busy: Production) -> None:
    busy.plane.cancel_ahead("overtaken")
    busy.plane.wait_for("stop", "overtaken")
    wait_until(lambda: busy.plane.polls["stop"] > len(busy.plane.select("stop")))
    prompts = busy.worker.log.count("got prompt")
    busy.plane.submit({"workflow": plain(color=8)}, "overtaken")
    assert status(busy, busy.plane.submit({"workflow": plain(color=9)})) == "completed"
    assert busy.plane.select("done", "overtaken") == []
    wait_until(lambda: busy.worker.log.count("got prompt") > prompts)
    assert busy.worker.log.count("got prompt") == prompts + 1


def test_sigterm_takes_no_further_job_and_gives_back_what_has_not_begun(
    busy: Production, tmp_path: Path
) -> None:
    """Last on this worker: it ends it."""
    prompts, gate = busy.worker.log.count("got prompt"), tmp_path / "gate"
    jobs = [sleeping(busy, 60.0, gate), *(sleeping(busy, 4.0) for _ in range(2))]
    wait_until(lambda: busy.worker.log.count("got prompt") == prompts + 2)
    busy.worker.terminate()
    assert status(busy, jobs[1]) == "failed", "while the first runs"
    gate.touch()
    assert status(busy, jobs[0]) == "completed"
    assert busy.worker.wait(30) == 0
    assert busy.plane.select("take", jobs[2]) == [], "left to another worker"


def test_a_job_that_the_open_take_brings_after_sigterm_is_given_back(
    demo: DemoVolume, tmp_path: Path
) -> None:
    """The SDK itself would take it and never run it."""
    with serving(demo, tmp_path) as production:
        polls = production.plane.polls["take"]
        wait_until(lambda: production.plane.polls["take"] > polls)
        production.worker.terminate()
        wait_until(lambda: "SIGTERM: " in production.worker.log)
        late = production.plane.submit({"workflow": plain()})
        assert production.plane.result(late, 20)["output"]["error_code"] == "worker.shutting_down"
        assert production.worker.wait(30) == 0


@pytest.mark.parametrize("env", [{"JOB_PREFETCH": "0"}, {"REFRESH_WORKER": "true"}])
def test_one_job_at_a_time_where_that_is_wanted(
    demo: DemoVolume, tmp_path: Path, env: dict[str, str]
) -> None:
    with serving(demo, tmp_path, **env) as production:
        first, second = sleeping(production, 1.5), sleeping(production, 0.1)
        assert status(production, first) == status(production, second) == "completed"
        done = at(production, "done", first)
        assert at(production, "take", second) > done
        assert bool(production.plane.select("done", first)[0].body.get("stopPod")) == (
            "REFRESH_WORKER" in env
        )
