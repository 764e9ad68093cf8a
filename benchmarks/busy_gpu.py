"""How busy ComfyUI is kept while jobs wait and each result takes a while to post.

    python -m benchmarks.busy_gpu [--jobs 30] [--rounds 3] [--seconds 1] [--post 0.5]

Contenders run in turn; each gets all jobs at once. From the start of the first execution to the end
of the last, ComfyUI counts as busy while it is not waiting for a prompt.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import requests

from benchmarks.document import publish, say, table, verdict
from benchmarks.machine import this_machine
from benchmarks.serving.contenders import ONE_AT_A_TIME, OURS, WORKER_COMFYUI, Contender
from benchmarks.serving.hot import Hot, Span, serving
from benchmarks.serving.site import furnished
from benchmarks.serving.workflows import work
from demo.volume import DemoVolume, ensure

WANTED = 0.97
SECTION = "busy gpu"
CONTENDERS = (OURS, ONE_AT_A_TIME, WORKER_COMFYUI)
# Without a worker: the idle time that ComfyUI itself leaves between queued prompts.
ALONE = "ComfyUI alone, all prompts in its queue"
_JOBS, _ROUNDS, _SECONDS, _POST = 30, 3, 1.0, 0.5
_TIMEOUT = 600.0


@dataclass(frozen=True)
class Busy:
    """Shares of the time from the first start to the last end: `busy` while ComfyUI was not waiting
    for a prompt, `executing` while it executed one. `per_minute`: jobs."""

    busy: float
    executing: float
    per_minute: float

    @classmethod
    def of(cls, spans: Sequence[Span], waits: Iterable[Span]) -> Busy:
        """From ComfyUI's executions and its waits for a prompt."""
        start, end = min(s.start for s in spans), max(s.end for s in spans)
        waited = sum(max(min(w.end, end) - max(w.start, start), 0.0) for w in waits)
        executed, window = sum(s.seconds for s in spans), end - start
        return cls(1 - waited / window, executed / window, 60 * len(spans) / window)

    def __str__(self) -> str:
        shares = f"busy {self.busy:.3f}, executing {self.executing:.3f}"
        return f"{shares}, {self.per_minute:.1f} jobs a minute"


@dataclass(frozen=True)
class Load:
    """`seconds` of a job in ComfyUI; `post`: seconds until the control plane takes a result."""

    jobs: int = _JOBS
    seconds: float = _SECONDS
    post: float = _POST


def measure(
    demo: DemoVolume,
    load: Load,
    rounds: int,
    contenders: Iterable[Contender] = CONTENDERS,
) -> dict[str, list[Busy]]:
    """Rounds by contender's name. All workers stay up; those not being measured are idle."""
    found: dict[str, list[Busy]] = {}
    with furnished(demo) as site, ExitStack() as stack:
        hots = {c.name: stack.enter_context(serving(c, site)) for c in contenders}
        for number in range(rounds):
            for name, busy in one_round(hots, load, number * 2 * load.jobs):
                found.setdefault(name, []).append(busy)
                say(f"round {number + 1} of {rounds}: {name}: {busy}")
    return found


def one_round(hots: Mapping[str, Hot], load: Load, seed: int) -> Iterator[tuple[str, Busy]]:
    """Each worker in turn, then the last one's ComfyUI alone. Uses two seeds a job, from `seed` on;
    none of them may have been used before."""
    seeds = range(seed, seed + load.jobs)
    for name, hot in hots.items():
        yield name, _through_worker(hot, load, seeds)
    yield ALONE, _queued([*hots.values()][-1], load, [s + load.jobs for s in seeds])


def _through_worker(hot: Hot, load: Load, seeds: Sequence[int]) -> Busy:
    hot.plane.faults.delay["done"] = load.post
    hot.run([work(seed, load.seconds) for seed in seeds])
    return _busy(hot, seeds)


def _queued(hot: Hot, load: Load, seeds: Sequence[int]) -> Busy:
    """All prompts at once, straight into ComfyUI's queue."""
    with requests.Session() as session:
        session.trust_env = False
        for seed in seeds:
            body = {"prompt": work(seed, load.seconds)["workflow"]}
            session.post(f"{hot.url}/prompt", json=body, timeout=30).raise_for_status()
    end = time.monotonic() + _TIMEOUT
    while seeds[-1] not in hot.spans():
        if time.monotonic() > end:
            raise RuntimeError(f"ComfyUI did not finish its prompts\n{hot.worker.tail()}")
        time.sleep(0.2)
    return _busy(hot, seeds)


def _busy(hot: Hot, seeds: Iterable[int]) -> Busy:
    spans = hot.spans()
    return Busy.of([spans[seed] for seed in seeds], hot.waits())


def busy_share(rounds: Iterable[Busy]) -> float:
    """The median of the rounds, rounded as shown."""
    return round(statistics.median(b.busy for b in rounds), 2)


def section(machine: str, load: Load, found: Mapping[str, Sequence[Busy]]) -> str:
    """The document's section."""
    ours = busy_share(found[OURS.name])
    word = verdict(ours >= WANTED)
    wanted = f"Target: busy ≥ {WANTED:.2f}. Measured: {ours:.2f}, {word}."
    parts = ["## Busy GPU", machine, wanted, _table(found), _method(load)]
    return "\n\n".join([*parts, "To repeat: `make bench BENCHMARKS=busy_gpu`."])


def _table(found: Mapping[str, Sequence[Busy]]) -> str:
    pace = {name: statistics.median(b.per_minute for b in rounds) for name, rounds in found.items()}
    rows = []
    for name, rounds in found.items():
        executing = statistics.median(b.executing for b in rounds)
        each = ", ".join(f"{b.busy:.3f}" for b in rounds)
        ratio = pace[name] / pace[WORKER_COMFYUI.name]
        cells = [f"{busy_share(rounds):.2f}", each, f"{executing:.2f}", f"{pace[name]:.1f}"]
        rows.append([name, *cells, f"{ratio:.2f}"])
    return table(["", "busy", "rounds", "executing", "jobs a minute", "ratio"], rows)


def _method(load: Load) -> str:
    return f"""{load.jobs} jobs of {load.seconds:g} s in ComfyUI, all queued from the start, each
with its own seed and a small picture as its result; the control plane takes {load.post:g} s to
accept a result. The node sleeps, as a host does while its GPU works. From the start of the first
execution to the end of the last, *busy* is the share of the time in which ComfyUI was not waiting
for a prompt, *executing* the share in which its history says that it executed one. Every 10 s,
ComfyUI collects garbage between two prompts, for up to half a second; under our worker that takes
no time. *ComfyUI alone* has no worker, and all prompts in its queue from the start. *Ratio*
compares jobs a minute; all figures are medians of the rounds. *worker-comfyui's sequence* takes one
job at a time."""


def main(argv: Sequence[str] | None = None) -> int:
    """0 when ours meets the target."""
    parser = argparse.ArgumentParser(prog="benchmarks.busy_gpu", description=__doc__)
    parser.add_argument("--jobs", type=int, default=_JOBS)
    parser.add_argument("--rounds", type=int, default=_ROUNDS)
    parser.add_argument("--seconds", type=float, default=_SECONDS, help="of a job in ComfyUI")
    parser.add_argument("--post", type=float, default=_POST, help="seconds to accept a result")
    given = parser.parse_args(argv)
    if min(given.jobs, given.rounds) < 1:
        parser.error("--jobs and --rounds: 1 or more")
    load, demo = Load(given.jobs, given.seconds, given.post), ensure()
    found = measure(demo, load, given.rounds)
    text = section(this_machine(demo).sentence(), load, found)
    publish(SECTION, text, whole=load == Load() and given.rounds >= _ROUNDS)
    return 0 if busy_share(found[OURS.name]) >= WANTED else 1


if __name__ == "__main__":
    sys.exit(main())
