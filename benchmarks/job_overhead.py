"""What a worker adds to ComfyUI's execution of a job: ours against worker-comfyui's sequence.

    python -m benchmarks.job_overhead [--rounds 15] [--only 64 1024]

Both run side by side and get the same jobs in turn, one at a time, each idle before its job.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from benchmarks.document import publish, say, table, verdict
from benchmarks.machine import this_machine
from benchmarks.serving.contenders import WORKER_COMFYUI, ours
from benchmarks.serving.hot import Hot, serving
from benchmarks.serving.site import furnished
from benchmarks.serving.timed import read_times
from benchmarks.serving.workflows import pictures
from demo.volume import DemoVolume, ensure

WANTED = 0.50
SECTION = "job overhead"
# So that the largest pictures come in the reply, as worker-comfyui's do.
OURS = ours("ours", "ours", MAX_REPLY_MB="500")
_ROUNDS = 15


@dataclass(frozen=True)
class Size:
    """`count` pictures of `side`²."""

    side: int
    count: int

    @property
    def label(self) -> str:
        return f"{self.count} × {self.side}²"


SIZES = (Size(64, 1), Size(1024, 1), Size(2048, 4))


@dataclass(frozen=True)
class Took:
    """Seconds of a job. `handler`: from its call to its return. `posted`: from the moment the
    control plane handed the job out until the result had arrived. `executed`: ComfyUI's execution,
    a part of both."""

    handler: float
    posted: float
    executed: float

    @property
    def in_handler(self) -> float:
        """The handler, without ComfyUI's execution."""
        return self.handler - self.executed

    @property
    def in_all(self) -> float:
        """Taken to posted, without ComfyUI's execution: what the SDK adds is included."""
        return self.posted - self.executed


IN_HANDLER, IN_ALL, EXECUTED = map(attrgetter, ("in_handler", "in_all", "executed"))
Series = Mapping[Size, Mapping[str, Sequence[Took]]]


def measure(
    demo: DemoVolume, sizes: Sequence[Size], rounds: int
) -> dict[Size, dict[str, list[Took]]]:
    """By size and contender's name, round by round, after an uncounted warm-up round."""
    with furnished(demo) as site, ExitStack() as stack:
        sides = []
        for contender in (OURS, WORKER_COMFYUI):
            times = site.folder / f"times-{contender.key}"
            hot = stack.enter_context(serving(contender, site, times))
            sides.append(Side(contender.name, hot, times))
        say("warm-up, not counted:")
        interleaved(sides, sizes, 1)
        return interleaved(sides, sizes, rounds, 1000)


def interleaved(
    sides: Sequence[Side], sizes: Sequence[Size], rounds: int, seed: int = 0
) -> dict[Size, dict[str, list[Took]]]:
    """The same on running workers, without a warm-up. Seeds from `seed` on must be unused."""
    asked: dict[Size, list[int]] = {size: [] for size in sizes}
    for number in range(rounds):
        for size in sizes:
            # The order alternates, so that neither always follows the other.
            for side in sides if number % 2 else sides[::-1]:
                side.ask(size, seed)
            asked[size].append(seed)
            seed += 1
            say(f"round {number + 1} of {rounds}: {size.label}")
    return {size: {side.name: side.took(seeds) for side in sides} for size, seeds in asked.items()}


class Side:
    """A running contender, whose handler's times go to `times`, and its jobs by seed."""

    def __init__(self, name: str, hot: Hot, times: Path) -> None:
        self.name = name
        self._hot = hot
        self._times = times
        self._jobs: dict[int, str] = {}

    def ask(self, size: Size, seed: int) -> None:
        """Run a job of this size."""
        (self._jobs[seed],) = self._hot.run([pictures(seed, size.side, size.count)])

    def took(self, seeds: Iterable[int]) -> list[Took]:
        """The times of the jobs with these seeds."""
        spans, times = self._hot.spans(), read_times(self._times)
        found = []
        for seed in seeds:
            job = self._jobs[seed]
            posted = self._hot.done(job) - self._hot.taken(job)
            found.append(Took(times[job], posted, spans[seed].seconds))
        return found


def ratio(took: Mapping[str, Sequence[Took]], part: Callable[[Took], float]) -> float:
    """Our median divided by the other's, rounded as shown."""
    return round(_median(took[OURS.name], part) / _median(took[WORKER_COMFYUI.name], part), 2)


def _median(took: Iterable[Took], part: Callable[[Took], float]) -> float:
    return statistics.median(part(t) for t in took)


def section(machine: str, found: Series) -> str:
    """The document's section."""
    rounds = len(next(iter(next(iter(found.values())).values())))
    parts = ["## Overhead per job", machine, _verdicts(found), _times(found), _method(rounds)]
    return "\n\n".join([*parts, "To repeat: `make bench BENCHMARKS=job_overhead`."])


def _verdicts(found: Series) -> str:
    rows = []
    for size, took in found.items():
        whole, part = ratio(took, IN_ALL), ratio(took, IN_HANDLER)
        bar = [f"≤ {WANTED:.2f}", verdict(whole <= WANTED)]
        rows.append([size.label, f"{whole:.2f}", *bar, f"{part:.2f}"])
    return table(["pictures", "ratio, taken to posted", "target", "", "ratio, handler only"], rows)


def _times(found: Series) -> str:
    rows = []
    for size, each in found.items():
        for name, took in each.items():
            middle = [1000 * _median(took, part) for part in (IN_ALL, IN_HANDLER, EXECUTED)]
            rows.append([size.label, name, *(f"{ms:.0f} ms" for ms in middle)])
    head = ["pictures", "", "taken to posted", "handler", "ComfyUI's execution"]
    return table(head, rows)


def _method(rounds: int) -> str:
    return f"""Ratios of medians of {rounds} jobs each; both workers get the same jobs in turn, one
at a time, each at rest before. *Taken to posted* runs from the moment the control plane hands a job
out until its whole result has arrived, less ComfyUI's execution by its history. *Handler* is the
part of that between the SDK's call and the return. There ours does more than the other: it checks
the request, stores the results durably on the volume (here a plain folder) and reports progress. It
saves time around that: the SDK looks at a job up to 0.1 s after taking it, and formats two log
lines of each whole result, whether they are printed or not. Ours starts at once, and never formats
a result.

The pictures are noise with the spectrum of generated ones (amplitude ∝ frequency^-1.5), so that a
PNG of 1024² takes 1.5 MB. Both sides may send replies of any size (`MAX_REPLY_MB=500`; Runpod's
limit is 10 or 20 MB). Left out: worker-comfyui's prints; the SDK's log at DEBUG, its default, which
prints every result; and ComfyUI's garbage collection, up to half a second every 10 s, which would
hit worker-comfyui's side at random (`gc.freeze` on both sides; our worker does it anyway)."""


def main(argv: Sequence[str] | None = None) -> int:
    """0 when all sizes that were run meet the target."""
    parser = argparse.ArgumentParser(prog="benchmarks.job_overhead", description=__doc__)
    parser.add_argument("--rounds", type=int, default=_ROUNDS)
    parser.add_argument(
        "--only", nargs="+", type=int, choices=[s.side for s in SIZES], help="sides of pictures"
    )
    given = parser.parse_args(argv)
    if given.rounds < 1:
        parser.error(f"--rounds {given.rounds}: 1 or more")
    sizes = [s for s in SIZES if not given.only or s.side in given.only]
    demo = ensure()
    found = measure(demo, sizes, given.rounds)
    text = section(this_machine(demo).sentence(), found)
    publish(SECTION, text, whole=given.rounds >= _ROUNDS and not given.only)
    return 0 if all(ratio(took, IN_ALL) <= WANTED for took in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
