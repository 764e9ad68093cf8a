"""A worker in production mode on a real ComfyUI, for injecting faults."""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from demo.volume import DemoVolume, ensure
from tests.conftest import environment, furnished
from tests.end_to_end.test_faults import through
from tests.end_to_end.test_worker import plain
from tests.prove.places import Container, Mount, Place, container, mount_of
from tests.support.control_plane import ControlPlane
from tests.support.worker_process import WorkerProcess, free_port

START_SECONDS = 120.0
ANSWER_SECONDS = 100.0
_ANYWHERE = Place()


@dataclass
class Patient:
    """The worker, its control plane and its `volume`: the folder itself, also if the worker sees it
    through a `mount`. `lost` counts results that are nowhere."""

    plane: ControlPlane
    worker: WorkerProcess
    volume: Path
    port: int
    mount: Mount | None = None
    container: Container | None = None
    lost: int = 0
    _number: int = field(default=0)
    _pictures: dict[str, int] = field(default_factory=dict)

    def submit(self, workflow: dict[str, Any], **more: Any) -> str:
        """Submit a job with new names for its pictures: 1, 2, 4 or 8 in turn, from each of two
        savers."""
        self._number += 1
        workflow["2"]["inputs"].setdefault("filename_prefix", f"fault-{self._number}")
        count = (1, 2, 4, 8)[self._number % 4]
        # So that no result comes from ComfyUI's cache.
        workflow["1"]["inputs"] |= {"color": self._number, "batch_size": count}
        beside = {"images": workflow["2"]["inputs"]["images"], "filename_prefix": "beside"}
        workflow["beside"] = {"class_type": "SaveImage", "inputs": beside}
        given = {"workflow": workflow, "max_wait": ANSWER_SECONDS, **more}
        job = self.plane.submit(given)
        self._pictures[job] = 2 * count
        return job

    def answer(self, job: str) -> dict[str, Any]:
        """The output that was posted for it, with status and error code."""
        output: dict[str, Any] = self.plane.result(job, ANSWER_SECONDS + 20)["output"]
        self._look_for_results(output)
        if output.get("status") == "completed":
            found = [r for r in output["results"] if r["kind"] == "image"]
            self.lost += max(self._pictures[job] - len(found), 0)
        return output

    def run(self, class_type: str, **inputs: Any) -> tuple[dict[str, Any], float]:
        """A job through a faulty node: the answer, and the seconds since it was taken."""
        return self.answered(self.submit(through(class_type, **inputs)))

    def answered(self, job: str, since: float | None = None) -> tuple[dict[str, Any], float]:
        """The answer to a job, and the seconds to it from `since`, or from when it was taken."""
        output = self.answer(job)
        begun = self.plane.wait_for("take", job).at if since is None else since
        return output, self.plane.wait_for("done", job).at - begun

    def begun(self, seconds: float = 600.0) -> str:
        """A job that is running on ComfyUI now, for `seconds`."""
        lines = len(self.worker.lines)
        job = self.submit(through("TestSleep", seconds=seconds))
        self.worker.wait_for_line("TestSleep runs", 60, after=lines)
        return job

    def works(self) -> bool:
        """Is an ordinary job answered with its picture?"""
        return self.answer(self.submit(plain())).get("status") == "completed"

    @property
    def comfyui(self) -> psutil.Process:
        """The ComfyUI process itself, behind its guard."""
        for process in self.worker.living():
            words = process.command.split()
            if "main.py" in words and "child_guard.py" not in process.command:
                return psutil.Process(process.pid)
        raise AssertionError("ComfyUI is not running")

    def _look_for_results(self, output: dict[str, Any]) -> None:
        """Count as lost each result that is a picture neither in the reply nor on the volume."""
        for result in output.get("results", ()):
            content = base64.b64decode(result.get("image") or "")
            kept = self.volume / result["path"] if "path" in result else None
            there = kept is not None and kept.is_file() and kept.read_bytes()[:4] == b"\x89PNG"
            self.lost += not (there or content[:4] == b"\x89PNG")


@contextmanager
def patient(
    folder: Path, demo: DemoVolume | None = None, place: Place = _ANYWHERE
) -> Iterator[Patient]:
    """A worker that is ready, with all its files in the empty `folder`. Raises CannotInject if
    there can be no such place."""
    demo = demo or ensure()
    volume = furnished(demo, folder / "volume")
    with ExitStack() as stack:
        mounted = stack.enter_context(mount_of(volume)) if place.mount else None
        limited = stack.enter_context(container(place.memory)) if place.memory else None
        plane = stack.enter_context(ControlPlane(hold_seconds=1))
        port = free_port()
        shown = mounted.path if mounted is not None else volume
        env = environment(demo, shown, folder / "work") | plane.worker_env(skip_fitness=True)
        command = [sys.executable, "-m", "handler"]
        if limited is not None:
            command = limited.around(command)
        worker = WorkerProcess(command, env=env | {"COMFYUI_PORT": str(port)})
        stack.enter_context(worker)
        plane.wait_for("ready", timeout=START_SECONDS)
        yield Patient(plane, worker, volume, port, mounted, limited)
