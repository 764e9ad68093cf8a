"""One cold run: from process start to the first result posted, with a timeline."""

from __future__ import annotations

import base64
import os
import re
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.cold_start.contenders import Contender
from benchmarks.cold_start.scene import Scene
from tests.support.control_plane import ControlPlane
from tests.support.plane_records import now
from tests.support.worker_process import WorkerProcess

TIMEOUT = 400.0
# After a job our worker records what the next start needs. Then it is killed, since a clean
# shutdown would remove its local files (see Scene.seen).
_REMEMBERS = 4.0
# What ComfyUI logs under any worker.
_LOGGED = {
    "ComfyUI up": r"To see the GUI go to",
    "prompt submitted": r"got prompt",
    "executed": r"Prompt executed in",
}
_PNG = b"\x89PNG"


class NoResult(RuntimeError):
    """A contender returned no picture; the message ends with its log."""


@dataclass(frozen=True)
class Run:
    """One contender's cold run. `marks`: seconds from process start. `load_average`: the machine's,
    over the minute before the run. `detail`: the worker's boot report, the job's timings, and the
    log with seconds."""

    contender: str
    seconds: float
    load_average: float
    marks: dict[str, float]
    detail: dict[str, Any] = field(repr=False, default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def cold_run(scene: Scene, contender: Contender, seed: int) -> Run:
    """Start a contender on an empty page cache and wait for its first result.

    The job waits in the queue when the process starts, as when a job causes the start. Raises
    NoResult, or PlaneTimeout after `TIMEOUT` seconds.
    """
    load = contender.load
    with scene.seen(load, contender.through_network) as volume, ControlPlane() as plane:
        job = plane.submit(load.job(seed))
        env = plane.worker_env(skip_fitness=True)
        before = os.getloadavg()[0]
        worker = contender.start(scene, load, volume, env)
        started = now()
        with worker:
            body = posted(plane, worker, job)
            end = plane.wait_for("done", job).at
            detail = _detail(plane, worker, contender, body, started)
            marks = _marks(plane, worker, job, started)
            if contender.ours:
                time.sleep(_REMEMBERS)
    return Run(contender.key, round(end - started, 3), before, marks, detail)


def posted(plane: ControlPlane, worker: WorkerProcess, job: str, timeout: float = TIMEOUT) -> Any:
    """The body posted for a job, which must hold a picture. Raises NoResult."""
    deadline = now() + timeout
    while not plane.select("done", job):
        if worker.returncode is not None or now() > deadline:
            raise NoResult(f"no result for {job}; exit code {worker.returncode}\n{worker.tail(60)}")
        try:
            plane.wait_for("done", job, timeout=1)
        except AssertionError:  # PlaneTimeout: check again that the worker is alive
            continue
    body = plane.result(job)
    if not _picture(body).startswith(_PNG):
        raise NoResult(f"no picture in {str(body)[:500]}\n{worker.tail(60)}")
    return body


def _picture(body: Any) -> bytes:
    """The first image of a result, ours or a peer's; empty when there is none."""
    output = body.get("output") if isinstance(body, dict) else None
    if not isinstance(output, dict):
        return b""
    for item in output.get("results") or output.get("images") or ():
        return base64.b64decode(item.get("image") or item.get("data") or "")
    return b""


def _marks(
    plane: ControlPlane, worker: WorkerProcess, job: str, started: float
) -> dict[str, float]:
    """Seconds from process start to each step found in the log."""
    found = {"job taken": plane.wait_for("take", job).at}
    for name, pattern in _LOGGED.items():
        seen = [line.at for line in worker.lines if re.search(pattern, line.text)]
        if seen:
            found[name] = seen[0]
    found["posted"] = plane.wait_for("done", job).at
    return {name: round(at - started, 3) for name, at in found.items()}


def _detail(
    plane: ControlPlane, worker: WorkerProcess, contender: Contender, body: Any, started: float
) -> dict[str, Any]:
    detail: dict[str, Any] = {
        "log": [[round(line.at - started, 3), line.text] for line in worker.lines]
    }
    if contender.ours:
        detail["timings"] = body["output"].get("timings")
        question = plane.submit({"type": "diagnostics", "sections": ["machine"]})
        answer = plane.result(question, 60)
        detail["boot"] = answer["output"]["diagnostics"].get("boot")
    return detail
