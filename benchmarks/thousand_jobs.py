"""A thousand jobs in a row: does a worker, or its ComfyUI, grow?

    python -m benchmarks.thousand_jobs [--jobs 1000] [--every 100]

Every 100 jobs, while nothing runs, it samples memory, descriptors, threads, processes and the files
in the worker's own folder. What counts is the slope.
"""

from __future__ import annotations

import argparse
import itertools
import re
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from benchmarks.document import publish, say, table
from benchmarks.machine import this_machine
from benchmarks.serving.contenders import OURS
from benchmarks.serving.hot import Hot, serving
from benchmarks.serving.site import furnished
from benchmarks.serving.workflows import work
from demo.volume import DemoVolume, ensure

SECTION = "thousand jobs"
_JOBS, _EVERY = 1000, 100


@dataclass(frozen=True)
class Part:
    """What is sampled: its name on the page, and what a thousand jobs may add to it."""

    name: str
    tolerance: float
    unit: str = ""


# ComfyUI keeps the last 10,000 prompts and their outputs in its history, about 5 KB each.
PARTS = {
    "worker_rss": Part("worker, resident", 10, " MB"),
    "worker_own": Part("worker, anonymous", 10, " MB"),
    "worker_files": Part("worker, descriptors", 2),
    "worker_threads": Part("worker, threads", 2),
    "comfyui_rss": Part("ComfyUI, resident", 30, " MB"),
    "comfyui_own": Part("ComfyUI, anonymous", 30, " MB"),
    "comfyui_files": Part("ComfyUI, descriptors", 2),
    "comfyui_threads": Part("ComfyUI, threads", 2),
    "processes": Part("child processes", 0.5),
    "local_files": Part("files in the worker's folder", 2),
}


@dataclass(frozen=True)
class Sample:
    """Everything at one moment. Memory in MB (10⁶ bytes); `own` is anonymous memory, resident or
    swapped out. A process's `files` are its descriptors: open files, sockets and pipes."""

    jobs: int
    worker_rss: float
    worker_own: float
    worker_files: int
    worker_threads: int
    comfyui_rss: float
    comfyui_own: float
    comfyui_files: int
    comfyui_threads: int
    processes: int
    local_files: int

    def line(self) -> str:
        """For the progress on stderr."""
        notes = (f"{PARTS[f.name].name} {getattr(self, f.name):g}" for f in fields(self)[1:])
        return f"{self.jobs} jobs: {', '.join(notes)}"


def measure(demo: DemoVolume, jobs: int, every: int) -> list[Sample]:
    """A sample before the first job and one after each `every` jobs.

    Raises NoResult if a job returns no picture, RuntimeError if results are not on the volume.
    """
    with furnished(demo) as site, serving(OURS, site) as hot:
        return in_a_row(hot, site.work(OURS.key), site.kept, range(jobs), every)


def in_a_row(hot: Hot, local: Path, kept: Path, seeds: Sequence[int], every: int) -> list[Sample]:
    """The same on a running worker with its own folder `local` and results in `kept`; one job for
    each seed."""
    before, samples = _files_below(kept), [_sample(hot, 0, local)]
    say(samples[-1].line())
    for first in range(0, len(seeds), every):
        begun, some = time.monotonic(), seeds[first : first + every]
        hot.run([work(seed, 0.0) for seed in some])
        pace = 60 * len(some) / (time.monotonic() - begun)
        samples.append(_sample(hot, first + len(some), local))
        say(f"{samples[-1].line()} ({pace:.0f} jobs/min)")
    if (there := _files_below(kept) - before) < len(seeds):
        raise RuntimeError(f"only {there} of {len(seeds)} results are on the volume")
    return samples


def _sample(hot: Hot, jobs: int, local: Path) -> Sample:
    worker = psutil.Process(hot.worker.pid)
    below = worker.children(recursive=True)
    port = urlsplit(hot.url).port
    (comfyui,) = (p for p in below if port in _listens_at(p))
    both = {"worker": worker, "comfyui": comfyui}
    found: dict[str, Any] = {}
    for name, process in both.items():
        found[f"{name}_rss"] = round(process.memory_info().rss / 1e6, 1)
        found[f"{name}_own"] = round(_own_memory(process.pid) / 1e6, 1)
        found[f"{name}_files"] = process.num_fds()
        found[f"{name}_threads"] = process.num_threads()
    return Sample(jobs, processes=len(below), local_files=_files_below(local), **found)


def _own_memory(pid: int) -> int:
    """Bytes of anonymous memory, which other processes do not share and the kernel cannot drop."""
    status = Path(f"/proc/{pid}/status").read_text()
    fields = re.findall(r"^(?:RssAnon|VmSwap):\s+(\d+) kB", status, re.MULTILINE)
    return 1024 * sum(map(int, fields))


def _listens_at(process: psutil.Process) -> set[int]:
    listening = (c for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN)
    return {connection.laddr.port for connection in listening}


def _files_below(folder: Path) -> int:
    return sum(path.is_file() for path in folder.rglob("*"))


def growth(samples: Sequence[Sample], part: str) -> float:
    """What a thousand jobs add: the median slope between any two samples (Theil–Sen), which neither
    warm-up nor an outlier sways."""
    slopes = [
        1000 * (getattr(b, part) - getattr(a, part)) / (b.jobs - a.jobs)
        for a, b in itertools.combinations(samples, 2)
    ]
    return float(statistics.median(slopes))


def growing(samples: Sequence[Sample]) -> list[str]:
    """The parts that are not flat."""
    return [name for name, part in PARTS.items() if growth(samples, name) > part.tolerance]


def section(machine: str, samples: Sequence[Sample]) -> str:
    """The document's section."""
    jobs, guilty = samples[-1].jobs, growing(samples)
    verdict = "Everything is flat." if not guilty else f"**Not flat: {_names(guilty)}.**"
    parts = [f"## {jobs:,} jobs in a row", machine, verdict, _table(samples), _METHOD]
    return "\n\n".join([*parts, "To repeat: `make bench BENCHMARKS=thousand_jobs`."])


def _names(parts: Sequence[str]) -> str:
    return "; ".join(PARTS[part].name for part in parts)


def _table(samples: Sequence[Sample]) -> str:
    shown = [samples[0], *samples[1 :: max(1, (len(samples) - 1) // 5)]]
    if shown[-1] is not samples[-1]:
        shown.append(samples[-1])
    rows = []
    for name, part in PARTS.items():
        digits = 1 if part.unit else 0
        cells = [f"{getattr(sample, name):.{digits}f}" for sample in shown]
        grown = f"{growth(samples, name):+.1f}{part.unit}"
        rows.append([part.name, *cells, grown, f"{part.tolerance:g}{part.unit}"])
    after = [f"after {sample.jobs:,}" for sample in shown]
    return table(["", *after, "in 1,000 jobs", "allowed"], rows)


_METHOD = """Small pictures (64×64; 1, 2, 4 or 8 in a job, from two savers) through one worker in
production mode on a real ComfyUI, with some always waiting; sampled while nothing runs. Memory in
MB; *anonymous* is what no file backs, resident or swapped out. *In 1,000 jobs* is the median slope
between any two samples. ComfyUI keeps the last 10,000 prompts in its history, which the limits
allow for. Every result was posted, and is on the volume."""


def main(argv: Sequence[str] | None = None) -> int:
    """0 when nothing grows."""
    parser = argparse.ArgumentParser(prog="benchmarks.thousand_jobs", description=__doc__)
    parser.add_argument("--jobs", type=int, default=_JOBS)
    parser.add_argument("--every", type=int, default=_EVERY, help="jobs between two samples")
    given = parser.parse_args(argv)
    if not 1 <= given.every <= given.jobs:
        parser.error(f"--every {given.every}: from 1 to --jobs, {given.jobs}")
    demo = ensure()
    samples = measure(demo, given.jobs, given.every)
    text = section(this_machine(demo).sentence(), samples)
    publish(SECTION, text, whole=given.jobs >= _JOBS)
    return 0 if not growing(samples) else 1


if __name__ == "__main__":
    sys.exit(main())
