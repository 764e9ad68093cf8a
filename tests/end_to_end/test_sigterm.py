"""SIGTERM ends a worker within its grace and a few seconds, whatever it is doing, and each job that
it took is answered."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from demo.volume import DemoVolume
from handler.sdk.shutdown import FORCE_SECONDS
from tests.conftest import environment, furnished
from tests.end_to_end.test_faults import through
from tests.end_to_end.test_worker import from_file, plain
from tests.prove.places import CannotInject, mount_of
from tests.support.control_plane import ControlPlane
from tests.support.s3_server import BUCKET, KEY_ID, SECRET
from tests.support.trickling_server import trickling
from tests.support.worker_process import WorkerProcess

GRACE = 2.0
# Python itself needs a moment on a busy machine. What is waited for here would never end.
ENDS_WITHIN = GRACE + FORCE_SECONDS + 10.0


@contextmanager
def serving(env: Mapping[str, str], ready: bool = True) -> Iterator[tuple[ControlPlane, Any]]:
    with ControlPlane(hold_seconds=20) as plane:
        merged = {**env, **plane.worker_env(skip_fitness=True), "SHUTDOWN_GRACE": f"{GRACE}"}
        with WorkerProcess.module("handler", env=merged) as worker:
            if ready:
                plane.wait_for("ready", timeout=90)
            yield plane, worker


def exits(worker: WorkerProcess) -> float:
    """SIGTERM: the seconds until it exits. A thread that waits for an answer that the mount's
    server owes it cannot be killed, by SIGKILL neither, and keeps the rest of the process as a
    zombie until then: the system's doing."""
    began, process = time.monotonic(), psutil.Process(worker.pid)
    worker.terminate()
    while process.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() - began < ENDS_WITHIN
        time.sleep(0.05)
    return time.monotonic() - began


def ended(worker: WorkerProcess) -> tuple[int, float]:
    """SIGTERM: the exit code, and the seconds it took."""
    began = time.monotonic()
    worker.terminate()
    code = worker.wait(ENDS_WITHIN + 30)
    return code, time.monotonic() - began


def test_while_it_boots(worker_env: dict[str, str]) -> None:
    env = worker_env | {"COMFY_LOG_LEVEL": "debug"}
    with serving(env, ready=False) as (_, worker):
        worker.wait_for_line(r"\[comfyui\]", 60)
        _, seconds = ended(worker)
        assert seconds < ENDS_WITHIN


def test_while_nothing_is_to_do(worker_env: dict[str, str]) -> None:
    """The open polls, which last for 20 s here and for 90 s at Runpod, are cut."""
    with serving(worker_env) as (_, worker):
        code, seconds = ended(worker)
        assert code == 0 and seconds < ENDS_WITHIN
        assert worker.living() == []


def test_while_inputs_are_fetched(worker_env: dict[str, str]) -> None:
    env = worker_env | {"ALLOW_PRIVATE_URLS": "true"}
    with trickling("headers") as server, serving(env) as (plane, worker):
        job = plane.submit({"workflow": from_file(f"{server.url}/x.png")})
        plane.wait_for("take", job)
        while not server.open:
            time.sleep(0.05)
        code, seconds = ended(worker)
        assert code == 0 and seconds < ENDS_WITHIN
        assert plane.result(job, 10)["output"]["error_code"] == "worker.shutting_down"


def test_while_a_bucket_trickles(worker_env: dict[str, str]) -> None:
    with trickling("100 continue") as server:
        env = worker_env | {
            "BUCKET_ENDPOINT_URL": server.url,
            "BUCKET_ACCESS_KEY_ID": KEY_ID,
            "BUCKET_SECRET_ACCESS_KEY": SECRET,
            "BUCKET_NAME": BUCKET,
        }
        with serving(env) as (plane, worker):
            job = plane.submit({"workflow": plain(batch_size=3)})
            while not server.open:
                time.sleep(0.05)
            code, seconds = ended(worker)
            assert code == 0 and seconds < ENDS_WITHIN
            assert plane.result(job, 10)["output"]["error_code"] == "worker.shutting_down"


@pytest.mark.parametrize("needed", [True, False])
def test_while_the_volume_does_not_answer(demo: DemoVolume, tmp_path: Path, needed: bool) -> None:
    """Needed by a node that runs, or only by results that are to be kept there."""
    folder = furnished(demo, tmp_path / "volume")
    try:
        with (
            mount_of(folder) as mount,
            serving(environment(demo, mount.path, tmp_path / "work")) as (plane, worker),
        ):
            nodes = through("TestSleep", seconds=1.0)
            if needed:
                nodes = through("TestAskVolume", folder=str(mount.path), seconds=60.0)
            job = plane.submit({"workflow": nodes})
            worker.wait_for_line("got prompt", 30)
            with mount.silent():
                time.sleep(1.5)
                assert exits(worker) < ENDS_WITHIN
                output = plane.result(job, 10)["output"]
                assert output.get("error_code", "completed") in (
                    "completed", "worker.shutting_down", "volume.silent"
                )  # fmt: skip
    except CannotInject as problem:
        pytest.skip(str(problem))


def test_a_worker_whose_loop_stands_still(worker_env: dict[str, str], tmp_path: Path) -> None:
    """No handler in the loop runs: the thread that needs no loop kills the worker."""
    blocked = tmp_path / "blocked.py"
    blocked.write_text(
        "import sys, time\n"
        "import handler.jobs.worker\n"
        "async def handle(self, job):\n"
        "    print('standing still', flush=True)\n"
        "    while True:\n        try: time.sleep(100)\n        except BaseException: pass\n"
        "handler.jobs.worker.Worker.handle = handle\n"
        "from handler.__main__ import main\n"
        "main()\n"
    )
    env = worker_env | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with ControlPlane(hold_seconds=1) as plane:
        merged = {**env, **plane.worker_env(skip_fitness=True), "SHUTDOWN_GRACE": f"{GRACE}"}
        with WorkerProcess([sys.executable, blocked], env=merged) as worker:
            plane.wait_for("ready", timeout=90)
            plane.submit({"workflow": plain()})
            worker.wait_for_line("standing still", 30)
            code, seconds = ended(worker)
            assert code != 0 and seconds < ENDS_WITHIN
