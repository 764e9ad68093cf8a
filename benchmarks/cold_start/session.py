"""All rounds of a benchmark: their order, progress lines, and the figures as data."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.cold_start import hot
from benchmarks.cold_start.contenders import Contender
from benchmarks.cold_start.loads import Load
from benchmarks.cold_start.measure import Run, cold_run
from benchmarks.cold_start.scene import Scene
from benchmarks.document import say


@dataclass(frozen=True)
class Plan:
    """`prepare`: first run each contender once, unmeasured, so that bytecode and the worker's
    record of the models used last exist, as after a day of use. `hot` and `thaw` are rounds;
    `frozen_seconds` is how long the worker is frozen each time."""

    contenders: Sequence[Contender]
    rounds: int
    prepare: bool = True
    hot_load: Load | None = None
    hot: int = 0
    thaw: int = 0
    frozen_seconds: float = 3.0


@dataclass
class Figures:
    """Everything that was measured."""

    runs: list[Run] = field(default_factory=list)
    pairs: dict[str, list[float]] = field(default_factory=dict)

    @property
    def series(self) -> dict[str, list[float]]:
        """Seconds by contender or kind of job, in order of the rounds."""
        found: dict[str, list[float]] = {}
        for run in self.runs:
            found.setdefault(run.contender, []).append(run.seconds)
        return {**found, **self.pairs}

    def middle(self, contender: str) -> Run:
        """The run whose time is nearest to the median, to show where time goes."""
        runs = [run for run in self.runs if run.contender == contender]
        middle = statistics.median(run.seconds for run in runs)
        return min(runs, key=lambda run: abs(run.seconds - middle))

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"runs": [run.as_dict() for run in self.runs], "pairs": self.pairs}


def run_session(scene: Scene, plan: Plan, figures: Figures) -> None:
    """Prepare, then all rounds with the contenders in turn, then the hot worker.

    Each cold run goes into `figures` at once, so that an interruption loses none.
    """
    rounds = range(0 if plan.prepare else 1, plan.rounds + 1)
    steps = [(number, c) for number in rounds for c in _turn(plan.contenders, number)]
    begun = time.monotonic()
    for done, (number, contender) in enumerate(steps, 1):
        run = cold_run(scene, contender, seed=100 + number)
        if number:
            figures.runs.append(run)
        left = (time.monotonic() - begun) / done * (len(steps) - done)
        round_name = f"round {number} of {plan.rounds}" if number else "preparing"
        say(
            f"{round_name}: {contender.name}, {contender.load.label}: {run.seconds:.1f} s "
            f"(load {run.load_average:.1f}); {left / 60:.0f} min of cold starts left"
        )
    if plan.hot_load is not None and (plan.hot or plan.thaw):
        figures.pairs.update(_on_a_hot_worker(scene, plan, plan.hot_load))


def _turn(contenders: Sequence[Contender], number: int) -> list[Contender]:
    """A different one starts each round, so that none always follows the same neighbour."""
    first = number % len(contenders) if contenders else 0
    return [*contenders[first:], *contenders[:first]]


def _on_a_hot_worker(scene: Scene, plan: Plan, load: Load) -> dict[str, list[float]]:
    names = scene.add_copies(load, plan.hot) if plan.hot else []
    say(f"a hot worker: {plan.hot} rounds with an unread model, {plan.thaw} thaws")
    pairs: dict[str, list[float]] = {}
    with hot.hot_worker(scene, load) as worker:
        if names:
            pairs |= hot.unread_and_cached(worker, scene, load, names)
        if plan.thaw:
            pairs |= hot.thawed_and_hot(worker, load, plan.thaw, plan.frozen_seconds)
    return pairs
