"""Mixed jobs, several at once, on a busy machine: each answered once, in time, with just its files.

    python -m tests.prove.mixed_jobs [--jobs 5000] [--delivery base64|volume|s3|all]
                                     [--prefetch 0|1|4] [--quiet-machine]

A real worker in production mode on a real ComfyUI; other processes keep all cores busy.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from demo.volume import DemoVolume, ensure
from tests.conftest import environment, furnished
from tests.support.burden import burden
from tests.support.control_plane import ControlPlane
from tests.support.mixed_jobs import MixedJob, faults_of, mixed_job
from tests.support.s3_server import s3_server
from tests.support.worker_process import WorkerProcess

MAX_WAIT = 120
_ANSWER_SECONDS = MAX_WAIT + 30
_WAITING = 6
DELIVERIES = ("base64", "volume", "s3")


@dataclass
class Tally:
    """The results so far."""

    answered: int = 0
    files: int = 0
    twice: int = 0
    slowest: float = 0.0
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Scene:
    """A worker that serves."""

    plane: ControlPlane
    worker: WorkerProcess
    volume: Path


@contextmanager
def serving(demo: DemoVolume, folder: Path, **env: str) -> Iterator[Scene]:
    """A worker in production mode that waits for its first job."""
    volume = furnished(demo, folder / "volume")
    with ControlPlane(hold_seconds=1) as plane:
        merged = environment(demo, volume, folder / "work") | plane.worker_env(skip_fitness=True)
        with WorkerProcess.module("handler", env=merged | env) as worker:
            plane.wait_for("ready", timeout=120)
            yield Scene(plane, worker, volume)


def run(scene: Scene, numbers: range, deliveries: Sequence[str], say_every: int = 100) -> Tally:
    """Send a job for each number, some of them always waiting, and judge the replies."""
    tally = Tally()
    waiting: list[tuple[MixedJob, str]] = []
    begun = time.monotonic()
    for number in numbers:
        job = mixed_job(number)
        given = {"workflow": job.workflow, "max_wait": MAX_WAIT}
        delivery = deliveries[number % len(deliveries)]
        given["output"] = {"delivery": delivery}
        waiting.append((job, scene.plane.submit(given)))
        if len(waiting) == _WAITING:
            _judge(scene, *waiting.pop(0), tally)
        if tally.answered and tally.answered % say_every == 0:
            pace = 60 * tally.answered / (time.monotonic() - begun)
            print(f"{tally.answered} answered ({pace:.0f} a minute)", file=sys.stderr, flush=True)
    for each in waiting:
        _judge(scene, *each, tally)
    return tally


def _judge(scene: Scene, job: MixedJob, name: str, tally: Tally) -> None:
    output = scene.plane.result(name, _ANSWER_SECONDS)["output"]
    took = scene.plane.wait_for("done", name).at - scene.plane.wait_for("take", name).at
    tally.answered += 1
    tally.files += len(job.files)
    tally.slowest = max(tally.slowest, took)
    tally.twice += len(scene.plane.select("done", name)) - 1
    tally.faults += faults_of(job, output, scene.volume)


def main(argv: Sequence[str] | None = None) -> int:
    """0 if every job was answered once, with exactly its files, and the worker exited with 0."""
    parser = argparse.ArgumentParser(prog="tests.prove.mixed_jobs", description=__doc__)
    parser.add_argument("--jobs", type=int, default=5000)
    parser.add_argument("--first", type=int, default=0, help="number of the first job")
    parser.add_argument("--delivery", choices=[*DELIVERIES, "all"], default="all")
    parser.add_argument("--prefetch", default="1")
    parser.add_argument("--quiet-machine", action="store_true")
    given = parser.parse_args(argv)
    deliveries = DELIVERIES if given.delivery == "all" else (given.delivery,)
    with ExitStack() as stack:
        env = {"JOB_PREFETCH": given.prefetch, "MAX_REPLY_MB": "9"}
        env |= stack.enter_context(s3_server()).env if "s3" in deliveries else {}
        if not given.quiet_machine:
            stack.enter_context(burden())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        scene = stack.enter_context(serving(ensure(), folder, **env))
        begun = time.monotonic()
        tally = run(scene, range(given.first, given.first + given.jobs), deliveries)
        seconds = time.monotonic() - begun
        scene.worker.terminate()
        code = scene.worker.wait(30)
    for fault in tally.faults[:20]:
        print(fault)
    summary = {**vars(tally), "faults": len(tally.faults), "seconds": round(seconds), "exit": code}
    print(json.dumps(summary))
    return 1 if tally.faults or tally.twice or tally.answered != given.jobs or code else 0


if __name__ == "__main__":
    sys.exit(main())
