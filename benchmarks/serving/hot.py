"""A warmed-up worker that serves jobs, and the times that its ComfyUI reports."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from benchmarks.cold_start.hot import until_idle
from benchmarks.cold_start.measure import posted
from benchmarks.serving.contenders import Contender
from benchmarks.serving.site import Site
from benchmarks.serving.workflows import seed_of, work
from tests.support.control_plane import ControlPlane
from tests.support.worker_process import WorkerProcess

# Seeds of the jobs before the measured ones, whose seeds count from 0.
_WARMING = (1_000_001, 1_000_002)
_UP = r"To see the GUI go to: (http://[\w.:]+)"
# Above any reply of these benchmarks: no worker's may be refused for its size.
_RESULT_LIMIT = 500_000_000


@dataclass(frozen=True)
class Span:
    """When ComfyUI executed a prompt, or waited for one: seconds since 1970, for executions to the
    millisecond."""

    start: float
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.start


@dataclass(frozen=True)
class Hot:
    """`url` is ComfyUI's."""

    plane: ControlPlane
    worker: WorkerProcess
    url: str

    def run(self, inputs: Sequence[dict[str, Any]]) -> list[str]:
        """Submit all, wait for every picture and until the worker polls again; the jobs' ids.

        Raises NoResult if one returns no picture.
        """
        jobs = [self.plane.submit(given) for given in inputs]
        for job in jobs:
            posted(self.plane, self.worker, job)
        until_idle(self.plane, self.worker)
        return jobs

    def taken(self, job: str) -> float:
        """When the job was handed out, by time.monotonic()."""
        return self.plane.wait_for("take", job).at

    def done(self, job: str) -> float:
        """When its result had arrived, by time.monotonic()."""
        return self.plane.wait_for("done", job).at

    def spans(self) -> dict[int, Span]:
        """All of ComfyUI's executions so far, by seed."""
        entries = self._asked("/history").values()
        found = ((seed_of(entry["prompt"][2]), _span(entry)) for entry in entries)
        return {seed: span for seed, span in found if seed is not None}

    def waits(self) -> list[Span]:
        """ComfyUI's waits for a prompt, except one that is still going on."""
        return [Span(start, end) for start, end in self._asked("/benchmark/waits")]

    def _asked(self, path: str) -> Any:
        with requests.Session() as session:
            session.trust_env = False
            answer = session.get(f"{self.url}{path}", timeout=60)
        answer.raise_for_status()
        return answer.json()


@contextmanager
def serving(
    contender: Contender, site: Site, times: Path | None = None, warming: Sequence[int] = _WARMING
) -> Iterator[Hot]:
    """Start a contender and run a warm-up job for each seed of `warming`. The handler's seconds go
    to the file `times`, if given."""
    with ControlPlane(result_limit=_RESULT_LIMIT) as plane:
        env = plane.worker_env(skip_fitness=True)
        with contender.start(site, env, times) as worker:
            up = worker.wait_for_line(_UP, timeout=180)
            found = re.search(_UP, up.text)
            assert found is not None
            hot = Hot(plane, worker, found[1])
            for seed in warming:
                hot.run([work(seed, 0.0)])
            yield hot


def _span(entry: dict[str, Any]) -> Span:
    at = {name: data["timestamp"] / 1000 for name, data in entry["status"]["messages"]}
    return Span(at["execution_start"], at["execution_success"])
