"""Figures as the section of docs/benchmarks.md."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.cold_start.bars import Verdict
from benchmarks.cold_start.contenders import Contender
from benchmarks.cold_start.measure import Run
from benchmarks.cold_start.session import Figures

JOBS = {
    "unread": "hot worker: 2 GB model unread on the volume",
    "reading": "… until all of it was read",
    "cached": "hot worker: the same model in memory",
    "unread processor": "processor time of the machine for the unread one, the volume's included",
    "cached processor": "processor time for the one in memory",
    "thawed": "job as the worker thaws, its model in memory",
    "hot": "the same job on the hot worker",
    "thawed plain": "job without a model as the worker thaws",
    "hot plain": "the same job on the hot worker",
}
METHOD = """\
Each cold start is timed from the start of the process to the moment its first result reaches the
control plane, with the real SDK in production mode and the job waiting in the queue. Contenders
run in turn, another one first each round, after one round that is not counted (bytecode and the
record of the models used last are there, as after a first day of use). Before each run the volume
is mounted afresh and the page cache is emptied of it, of ComfyUI's code, of both Python
environments and of the worker. *All local* is the same folder without the network in between, and
without the copy of the code that this would make useless (`STAGE_COMFYUI=false`).
The volume holds ComfyUI, 15 node packs (2,000 files, all their modules imported at start) and a
checkpoint with random weights; the job is CheckpointLoaderSimple → KSampler (64×64, 1 step) →
VAEDecode → SaveImage on the CPU, with float16 weights for 7 GB as on a GPU.

The simulated network adds 1.5 ms to each metadata call and 0.3 ms and 400 MB/s to each read of a
stream, 1.5 GB/s in all, with 128 KB of read-ahead: one stream gets 270 MB/s, four get 700, eight
1,000, sixteen 1,300. The process that simulates it takes its processor time from the same cores,
but no memory: it reads past the page cache, as a server's is in another machine.

*worker-comfyui's sequence* is our own code in the order of worker-comfyui 5.8: torch is asked for
the GPU, then ComfyUI starts from local disk with the same packs, models come from the volume by
`extra_model_paths.yaml`, the handler asks every 50 ms whether ComfyUI answers, then socket,
history, `/view`. The SDK's own checks of the machine are left out for all. What is not there:
CUDA's initialisation (with a GPU, theirs pays it twice, ours once), ComfyUI-Manager and sshd.
*Run from the volume by the first job* starts `main.py` where it lies when the first job is taken.

The hot worker reads copies of the checkpoint under names of their own, so that ComfyUI loads each
again (its log is checked); the page cache is looked at before each job, and free memory is touched
(a virtual machine's may be with its host, which the job would wait for). Two things bound it: at
1.5 GB/s the file takes 1.4 s, and when its last weight is there, the rest of the job is still to
do; and a job cannot take less than its processor time divided by the number of cores, which also
serve the volume. For a thaw, all the worker's processes are stopped with SIGSTOP for some seconds;
the job comes as they go on. The bar is for a job of the hot model."""


def section(
    machine: str, contenders: Sequence[Contender], figures: Figures, found: Sequence[Verdict]
) -> str:
    """The whole section: verdicts, times, where they go, method."""
    parts = ["## Cold starts", machine]
    if found:
        parts += ["### What is wanted", _verdict_table(found)]
    parts += ["### Times", _time_table(contenders, figures)]
    measured = [c for c in contenders if c.key in figures.series]
    if measured:
        parts += ["### Where the time goes", _MARKS, _mark_table(measured, figures)]
    for contender in (c for c in measured if c.ours):
        parts.append(_boot_table(contender, figures.middle(contender.key)))
    parts += ["### Method", METHOD, "Again: `make bench`; some of it: `make bench ARGS=--help`."]
    return "\n\n".join(parts) + "\n"


_MARKS = "Medians of the seconds from process start until …"


def _verdict_table(found: Sequence[Verdict]) -> str:
    rows = ["| ratio of medians | measured | wanted | |", "|---|---|---|---|"]
    for v in found:
        word = "met" if v.met else "**missed**"
        rows.append(f"| {v.bar.what} | {v.ratio:.2f} | ≤ {v.bar.limit:.2f} | {word} |")
    return "\n".join(rows)


def _time_table(contenders: Sequence[Contender], figures: Figures) -> str:
    names = {c.key: f"{c.name}, {c.load.label}" for c in contenders} | JOBS
    rows = ["| | median | rounds |", "|---|---|---|"]
    for key, seconds in ((key, figures.series[key]) for key in names if key in figures.series):
        small = statistics.median(seconds) < 1
        median, unit = _shown(statistics.median(seconds), small), "ms" if small else "s"
        rounds = ", ".join(_shown(s, small) for s in seconds)
        rows.append(f"| {names[key]} | {median} {unit} | {rounds} |")
    return "\n".join(rows)


def _shown(seconds: float, as_ms: bool) -> str:
    return f"{1000 * seconds:.0f}" if as_ms else f"{seconds:.2f}"


def _mark_table(contenders: Sequence[Contender], figures: Figures) -> str:
    runs = {c.key: [r for r in figures.runs if r.contender == c.key] for c in contenders}
    steps = list(dict.fromkeys(step for rs in runs.values() for r in rs for step in r.marks))
    rows = [f"| | {' | '.join(steps)} |", "|---|" + "---|" * len(steps)]
    for contender in contenders:
        cells = [_median_mark(runs[contender.key], step) for step in steps]
        rows.append(f"| {contender.name}, {contender.load.label} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _median_mark(runs: Sequence[Run], step: str) -> str:
    seen = [run.marks[step] for run in runs if step in run.marks]
    return f"{statistics.median(seen):.1f}" if seen else "–"


def _boot_table(contender: Contender, run: Run) -> str:
    """The boot's timeline of one run, as the worker reports it."""
    stages: list[dict[str, Any]] = (run.detail.get("boot") or {}).get("timeline", [])
    rows = [f"| {contender.name}, {contender.load.label}: stage | from | for | |"]
    rows.append("|---|---|---|---|")
    for stage in stages:
        note = stage.get("note", "") if stage["outcome"] == "ok" else stage["outcome"]
        rows.append(f"| {stage['name']} | {stage['start']:.2f} | {stage['seconds']:.2f} | {note} |")
    return "\n".join(rows)
