"""A control plane with the sample worker."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.control_plane import ControlPlane
from tests.support.worker_process import Line, WorkerProcess

SAMPLE_WORKER = Path(__file__).with_name("sample_worker.py")
# Starting takes 2 to 3 s; ten times that on a busy machine.
START_SECONDS = 30


@dataclass(frozen=True)
class Rig:
    plane: ControlPlane
    worker: WorkerProcess

    def wait_until_settled(self, job: str) -> None:
        """Until the SDK has finished a job, whatever happened to its result."""
        self.worker.wait_for_line(rf'"{job}", "message": "Finished Job"')

    def hear(self, job: str, message: str) -> Line:
        """The worker's log line about this job in which `message` is found."""
        return self.worker.wait_for_line(rf"{job}.*{message}")


@contextmanager
def sample_rig(*, hold_seconds: float = 1, **env: str) -> Iterator[Rig]:
    """Plane and worker, the worker just started."""
    with ControlPlane(hold_seconds=hold_seconds) as plane:
        merged = {**plane.worker_env(skip_fitness=True), "RUNPOD_LOG_LEVEL": "DEBUG", **env}
        with WorkerProcess([sys.executable, SAMPLE_WORKER], env=merged) as worker:
            yield Rig(plane, worker)


@contextmanager
def ready_rig(*, hold_seconds: float = 1, **env: str) -> Iterator[Rig]:
    """Plane and worker, the worker waiting for its first job."""
    with sample_rig(hold_seconds=hold_seconds, **env) as rig:
        rig.worker.wait_for_line("Starting job acquisition", START_SECONDS)
        rig.plane.wait_for("ready", timeout=START_SECONDS)
        yield rig
