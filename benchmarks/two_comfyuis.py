"""What a second ComfyUI in the same worker gains: jobs a minute with one and with two.

    python -m benchmarks.two_comfyuis [--jobs 24] [--rounds 3]

On a machine with two GPUs a worker runs one ComfyUI on each; here both run on the CPU. All jobs
are queued from the start. They sleep, as a host does while its GPU works, or use one core.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from contextlib import ExitStack

from benchmarks.document import publish, say, table, verdict
from benchmarks.machine import this_machine
from benchmarks.serving.contenders import ours
from benchmarks.serving.hot import Hot, serving
from benchmarks.serving.site import furnished
from benchmarks.serving.workflows import work
from demo.volume import DemoVolume, ensure

SECTION = "two comfyuis"
ONE = ours("one", "one ComfyUI", COMFYUI_INSTANCES="1")
TWO = ours("two", "two ComfyUIs", COMFYUI_INSTANCES="2")
LOADS = {"sleep, as beside a GPU": False, "use one core each": True}
# Two run twice the jobs in the same time, less what the worker itself takes of the two cores.
WANTED = 1.8
_JOBS, _ROUNDS, _SECONDS = 24, 3, 1.0

Paces = dict[tuple[str, str], list[float]]


def measure(demo: DemoVolume, jobs: int, rounds: int) -> Paces:
    """Jobs a minute, round by round, by the load's name and the contender's."""
    found: Paces = {}
    seeds = iter(range(1, 1_000_000))
    with furnished(demo) as site, ExitStack() as stack:
        hots = {c.name: stack.enter_context(serving(c, site)) for c in (ONE, TWO)}
        for hot in hots.values():  # the second ComfyUI may become ready after the first
            hot.run([work(next(seeds), 1.0) for _ in range(12)])
        for number in range(rounds):
            for load, burn in LOADS.items():
                for name, hot in hots.items():
                    pace = _pace(hot, [work(next(seeds), _SECONDS, burn) for _ in range(jobs)])
                    found.setdefault((load, name), []).append(pace)
                    say(f"round {number + 1} of {rounds}: {name}, {load}: {pace:.1f} a minute")
    return found


def _pace(hot: Hot, inputs: Sequence[dict[str, object]]) -> float:
    """Jobs a minute, from when the first is taken until the last result has arrived."""
    jobs = hot.run(list(inputs))
    window = max(map(hot.done, jobs)) - min(map(hot.taken, jobs))
    return 60 * len(jobs) / window


def gain(found: Paces, load: str) -> float:
    """The median pace of two, divided by that of one, rounded as shown."""
    one, two = (statistics.median(found[load, c.name]) for c in (ONE, TWO))
    return round(two / one, 2)


def section(machine: str, found: Paces, jobs: int) -> str:
    """The document's section."""
    head, rows = ["jobs", "a minute with one", "a minute with two", "ratio", "target", ""], []
    for load, burn in LOADS.items():
        each = [", ".join(f"{p:.1f}" for p in found[load, c.name]) for c in (ONE, TWO)]
        ratio = gain(found, load)
        bar = ["–", ""] if burn else [f"≥ {WANTED}", verdict(ratio >= WANTED)]
        rows.append([load, *each, f"{ratio:.2f}", *bar])
    method = f"""{jobs} jobs of {_SECONDS:g} s in ComfyUI each, with 1 to 8 small pictures, all
queued from the start, timed from the first that is taken until the last result has arrived; the two
workers take turns. The target is for jobs that leave the cores alone: the workers and their control
plane share the two cores with the ComfyUIs."""
    again = "To repeat: `make bench BENCHMARKS=two_comfyuis`."
    return "\n\n".join(["## Two ComfyUIs in one worker", machine, table(head, rows), method, again])


def main(argv: Sequence[str] | None = None) -> int:
    """0 when two meet the target with jobs that leave the cores alone."""
    parser = argparse.ArgumentParser(prog="benchmarks.two_comfyuis", description=__doc__)
    parser.add_argument("--jobs", type=int, default=_JOBS)
    parser.add_argument("--rounds", type=int, default=_ROUNDS)
    given = parser.parse_args(argv)
    if min(given.jobs, given.rounds) < 1:
        parser.error("--jobs and --rounds: 1 or more")
    demo = ensure()
    found = measure(demo, given.jobs, given.rounds)
    text = section(this_machine(demo).sentence(), found, given.jobs)
    publish(SECTION, text, whole=given.jobs >= _JOBS and given.rounds >= _ROUNDS)
    return 0 if gain(found, next(iter(LOADS))) >= WANTED else 1


if __name__ == "__main__":
    sys.exit(main())
