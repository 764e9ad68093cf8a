"""The section of docs/benchmarks.md, from the figures."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.cold_start.bars import Verdict
from benchmarks.cold_start.contenders import Contender
from benchmarks.cold_start.measure import Run
from benchmarks.cold_start.session import Figures
from benchmarks.document import table, verdict

JOBS = {
    "unread": "hot worker: 2 GB model on the volume, not in memory",
    "reading": "… reading the model",
    "unread processor": "… processor time of the machine, simulated volume included",
    "cached": "hot worker: the same model in memory",
    "cached processor": "… its processor time",
    "thawed": "job sent as the worker thaws, model in memory",
    "hot": "the same job on the hot worker",
    "thawed plain": "job sent as the worker thaws, no model",
    "hot plain": "the same job without a model on the hot worker",
}
METHOD = """\
Each cold start is timed from process start until its first result reaches the control plane, with
the real SDK in production mode and a job already in the queue. The contenders take turns, a
different one first in each round, after an uncounted round that leaves bytecode and the record of
the models used last, as after a day of use. Before each run the volume is mounted again, and the
page cache is emptied of it, of ComfyUI's code, of both Python environments and of the worker. *All
local* is the same folder on local disk, run in place (`STAGE_COMFYUI=false`).

The volume holds ComfyUI, 15 node packs (2,000 files, all imported at start) and a checkpoint with
random weights. The job is CheckpointLoaderSimple → KSampler (64×64, 1 step) → VAEDecode → SaveImage
on the CPU; the 7 GB model has float16 weights, as on a GPU.

*worker-comfyui's sequence* asks torch for the GPU, then starts ComfyUI from local disk with the
same packs; `extra_model_paths.yaml` leads to the models on the volume. *ComfyUI run from the volume
by the first job* starts `main.py` in place once the job is taken. All skip the SDK's own checks of
the machine. Left out: CUDA's initialisation (on a GPU, worker-comfyui pays for it twice, this
worker once), ComfyUI-Manager and sshd.

The hot worker reads copies of the checkpoint under other names, so that ComfyUI loads each one (its
log is checked). Before each job the page cache is checked, and free memory is touched: a virtual
machine may have returned it to its host, and the job would wait for it. Two things limit a job
whose model is not in memory: reading the file takes 1.4 s at 1.5 GB/s, and the rest of the job
comes after its last weight; and no job is faster than its processor time divided by the cores,
which also run the simulated volume. For a thaw, all processes of the worker are stopped (SIGSTOP)
for some seconds, and the job arrives as they resume; the target is for the job whose model is in
memory."""


def section(
    machine: str, contenders: Sequence[Contender], figures: Figures, found: Sequence[Verdict]
) -> str:
    """The whole section: targets, times, where the time goes, method."""
    parts = ["## Cold starts", machine]
    if found:
        parts += ["### Targets", _verdict_table(found)]
    parts += ["### Times", _time_table(contenders, figures)]
    measured = [c for c in contenders if c.key in figures.series]
    if measured:
        parts += ["### Where the time goes", _MARKS, _mark_table(measured, figures)]
    for contender in (c for c in measured if c.ours):
        parts.append(_boot_table(contender, figures.middle(contender.key)))
    again = "To repeat: `make bench`; for a part, see `make bench ARGS=--help`."
    parts += ["### Method", METHOD, again]
    return "\n\n".join(parts) + "\n"


_MARKS = "Seconds from process start until …, medians:"


def _verdict_table(found: Sequence[Verdict]) -> str:
    rows = [[v.bar.what, f"{v.ratio:.2f}", f"≤ {v.bar.limit:.2f}", verdict(v.met)] for v in found]
    return table(["ratio of medians", "measured", "target", ""], rows)


def _time_table(contenders: Sequence[Contender], figures: Figures) -> str:
    names = {c.key: f"{c.name}, {c.load.label}" for c in contenders} | JOBS
    rows = []
    for key, seconds in ((key, figures.series[key]) for key in names if key in figures.series):
        small = statistics.median(seconds) < 1
        median, unit = _shown(statistics.median(seconds), small), "ms" if small else "s"
        rounds = ", ".join(_shown(s, small) for s in seconds)
        rows.append([names[key], f"{median} {unit}", rounds])
    return table(["", "median", "rounds"], rows)


def _shown(seconds: float, as_ms: bool) -> str:
    return f"{1000 * seconds:.0f}" if as_ms else f"{seconds:.2f}"


def _mark_table(contenders: Sequence[Contender], figures: Figures) -> str:
    runs = {c.key: [r for r in figures.runs if r.contender == c.key] for c in contenders}
    steps = list(dict.fromkeys(step for rs in runs.values() for r in rs for step in r.marks))
    rows = [
        [f"{c.name}, {c.load.label}", *(_median_mark(runs[c.key], step) for step in steps)]
        for c in contenders
    ]
    return table(["", *steps], rows)


def _median_mark(runs: Sequence[Run], step: str) -> str:
    seen = [run.marks[step] for run in runs if step in run.marks]
    return f"{statistics.median(seen):.1f}" if seen else "–"


def _boot_table(contender: Contender, run: Run) -> str:
    """The boot's timeline of one run, as the worker reports it."""
    stages: list[dict[str, Any]] = (run.detail.get("boot") or {}).get("timeline", [])
    rows = []
    for stage in stages:
        note = stage.get("note", "") if stage["outcome"] == "ok" else stage["outcome"]
        rows.append([stage["name"], f"{stage['start']:.2f}", f"{stage['seconds']:.2f}", note])
    return table([f"{contender.name}, {contender.load.label}: stage", "from", "for", ""], rows)
