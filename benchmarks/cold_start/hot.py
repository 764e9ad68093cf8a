"""A hot worker: a job with an unread model compared with a cached one, and a job at a thaw compared
with one on the running worker."""

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

# Seconds to wait after a worker's poll, so that it is idle when a job comes.
_REST = 0.2
_ASKS_AGAIN = 30.0
# A multiple of a model's size: page cache, the simulated volume's memory, float32 weights.
_TOUCHED = 4

Series = dict[str, list[float]]


@dataclass
class HotWorker:
    """Our worker on `volume`, warmed up. `timings` are those of the last reply."""

    plane: ControlPlane
    worker: WorkerProcess
    volume: Path
    timings: dict[str, Any] = field(default_factory=dict)

    def ask(self, given: object, begun: float | None = None) -> float:
        """Run a job; seconds from its submission (or `begun`) to the posted result."""
        begun = now() if begun is None else begun
        job = self.plane.submit(given)
        self.timings = posted(self.plane, self.worker, job)["output"].get("timings") or {}
        seconds = self.plane.wait_for("done", job).at - begun
        until_idle(self.plane, self.worker)
        return seconds

    def loads_so_far(self) -> int:
        """How many checkpoints ComfyUI has loaded, according to its log."""
        return sum("model_type" in line.text for line in self.worker.lines)

    def signal_all(self, number: signal.Signals) -> None:
        """Signal every process of the worker."""
        for pid in (self.worker.pid, *(p.pid for p in self.worker.living())):
            os.kill(pid, number)


def until_idle(plane: ControlPlane, worker: WorkerProcess) -> None:
    """The SDK polls for the next job up to a second after the last one; a job submitted sooner
    would wait for the poll, not for the worker."""
    asked, end = plane.polls["take"], now() + _ASKS_AGAIN
    while plane.polls["take"] == asked:
        if now() > end:
            raise RuntimeError(f"the worker stopped polling for jobs\n{worker.tail()}")
        time.sleep(0.01)
    time.sleep(_REST)


@contextmanager
def hot_worker(scene: Scene, load: Load) -> Iterator[HotWorker]:
    """A worker that has run two jobs with the load's model and one without a model."""
    with scene.seen(load) as volume, ControlPlane() as plane:
        env = plane.worker_env(skip_fitness=True)
        with contenders.ours(scene, load, volume, env) as worker:
            hot = HotWorker(plane, worker, volume)
            for given in (load.job(1), load.job(2), plain(1)):
                hot.ask(given)
            yield hot


def unread_and_cached(hot: HotWorker, scene: Scene, load: Load, names: Sequence[str]) -> Series:
    """Each round uses a copy with its own name: dropped from memory, then requested twice.

    `names` were on the volume before the worker booted. A job without a model in between makes
    ComfyUI unload; its log must show that it loaded the checkpoint both times.
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
                raise RuntimeError(f"{found:.0%} of {name} is in memory before the {key} job")
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
    """CPU time of all processes of the machine, including the simulated volume's."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq)


def thawed_and_hot(hot: HotWorker, load: Load, rounds: int, frozen_seconds: float) -> Series:
    """In turn: a job on the hot worker, and one that arrives as its processes thaw; once with the
    load's model, which is in memory, once without any model."""
    series: Series = {"thawed": [], "hot": [], "thawed plain": [], "hot plain": []}
    for number in range(rounds):
        seeds = (10_000 + 2 * number, 10_001 + 2 * number)
        jobs = {"": [load.job(seed) for seed in seeds], " plain": [plain(seed) for seed in seeds]}
        hot.ask(load.job(seeds[0] + 5000))  # the plain jobs before may have unloaded its model
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
