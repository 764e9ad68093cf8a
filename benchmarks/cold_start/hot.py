"""A hot worker: a job with an unread model against a cached one; after a thaw against before."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.cold_start import contenders, pages
from benchmarks.cold_start.loads import Load, plain
from benchmarks.cold_start.measure import posted
from benchmarks.cold_start.scene import CHECKPOINTS, Scene
from benchmarks.document import say
from tests.support.control_plane import ControlPlane
from tests.support.plane_records import now
from tests.support.worker_process import WorkerProcess

# After a worker has asked for a job, so that it is at rest when one comes.
_REST = 0.2
_ASKS_AGAIN = 30.0
# Times a model's size: in the page cache, the simulated volume's too, and loaded, as float32.
_TOUCHED = 4

Series = dict[str, list[float]]


@dataclass
class HotWorker:
    """Our worker, its first job done, on the volume; `ask` runs a job and times it. `timings`:
    what the reply to the last one says of its time."""

    plane: ControlPlane
    worker: WorkerProcess
    volume: Path
    timings: dict[str, Any] = field(default_factory=dict)

    def ask(self, given: object, begun: float | None = None) -> float:
        """Seconds from submission (or `begun`) to the posted result."""
        begun = now() if begun is None else begun
        job = self.plane.submit(given)
        self.timings = posted(self.plane, self.worker, job)["output"].get("timings") or {}
        seconds = self.plane.wait_for("done", job).at - begun
        until_idle(self.plane, self.worker)
        return seconds

    def loads_so_far(self) -> int:
        """How many checkpoints ComfyUI has loaded, by its log."""
        return sum("model_type" in line.text for line in self.worker.lines)

    def signal_all(self, number: signal.Signals) -> None:
        """A signal to every process of the worker."""
        for pid in (self.worker.pid, *(p.pid for p in self.worker.living())):
            os.kill(pid, number)


def until_idle(plane: ControlPlane, worker: WorkerProcess) -> None:
    """The SDK asks for the next job in its own time, up to a second after the last one; what is
    submitted sooner would wait for that and not for the worker."""
    asked, end = plane.polls["take"], now() + _ASKS_AGAIN
    while plane.polls["take"] == asked:
        if now() > end:
            raise RuntimeError(f"the worker asks for no job\n{worker.tail()}")
        time.sleep(0.01)
    time.sleep(_REST)


@contextmanager
def hot_worker(scene: Scene, load: Load) -> Iterator[HotWorker]:
    """A worker that has done two jobs with the load's model and one without a model."""
    with scene.seen(load) as volume, ControlPlane() as plane:
        env = plane.worker_env(skip_fitness=True)
        with contenders.ours(scene, load, volume, env) as worker:
            hot = HotWorker(plane, worker, volume)
            for given in (load.job(1), load.job(2), plain(1)):
                hot.ask(given)
            yield hot


def unread_and_cached(hot: HotWorker, scene: Scene, load: Load, names: Sequence[str]) -> Series:
    """Each round a copy under a name of its own: dropped from memory, then asked for twice.

    `names` lay on the volume before the worker booted. A job without a model in between makes
    ComfyUI let go of what it had loaded; its log must say that it loaded the checkpoint again both
    times.
    """
    kinds = ("unread", "reading", "cached", "unread processor", "cached processor")
    series: Series = {kind: [] for kind in kinds}
    for number, name in enumerate(names):
        seen, real = hot.volume / CHECKPOINTS / name, scene.volume(load) / CHECKPOINTS / name
        for path in (seen, real):
            pages.forget_file(path)
        expected = {"unread": 0.0, "cached": 1.0}
        for key, share in expected.items():
            pages.touch_free_memory(_TOUCHED * real.stat().st_size)
            found = pages.share_in_memory(seen)
            if abs(found - share) > 0.02:
                raise RuntimeError(f"{found:.0%} of {name} are in memory before the {key} job")
            before, busy = hot.loads_so_far(), _processor_seconds()
            series[key].append(hot.ask(load.job(1000 + number, name)))
            series[f"{key} processor"].append(_processor_seconds() - busy)
            if key == "unread":
                series["reading"].append(hot.timings["read_ahead"]["seconds"])
            if hot.loads_so_far() != before + 1:
                raise RuntimeError(f"ComfyUI did not load {name} again for the {key} job")
            hot.ask(plain(2 * number + len(series["cached"])))
        pages.forget_file(seen)
        last = " against ".join(f"{series[key][-1]:.2f} s" for key in expected)
        say(f"hot worker, round {number + 1} of {len(names)}: {last} cached")
    return series


def _processor_seconds() -> float:
    """What all processes of the machine have used, the simulated volume's among them."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq)


def thawed_and_hot(hot: HotWorker, load: Load, rounds: int, frozen_seconds: float) -> Series:
    """In turn: a job on the hot worker, and one that comes as its processes are thawed; once with
    the load's model, which is in memory, once without any model."""
    series: Series = {"thawed": [], "hot": [], "thawed plain": [], "hot plain": []}
    for number in range(rounds):
        seeds = (10_000 + 2 * number, 10_001 + 2 * number)
        jobs = {"": [load.job(seed) for seed in seeds], " plain": [plain(seed) for seed in seeds]}
        hot.ask(load.job(seeds[0] + 5000))  # after the plain ones, its model may have to come back
        for kind, (first, second) in jobs.items():
            series[f"hot{kind}"].append(hot.ask(first))
            series[f"thawed{kind}"].append(_ask_at_thaw(hot, second, frozen_seconds))
        last = ", ".join(f"{key} {1000 * seconds[-1]:.0f} ms" for key, seconds in series.items())
        say(f"thaw, round {number + 1} of {rounds}: {last}")
    return series


def _ask_at_thaw(hot: HotWorker, given: object, frozen_seconds: float) -> float:
    hot.signal_all(signal.SIGSTOP)
    try:
        time.sleep(frozen_seconds)
    finally:
        begun = now()
        hot.signal_all(signal.SIGCONT)
    return hot.ask(given, begun)
