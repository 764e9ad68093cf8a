"""How much longer a worker takes to be ready than ComfyUI itself, where nothing is slow.

    python -m benchmarks.boot_overhead [--rounds 9]

All files are in memory. What is left is the worker's own: it finds the volume, copies the code,
looks at Python, flags and packages, and imports the SDK while ComfyUI starts; and what it saves:
the garbage collector's passes while ComfyUI imports its modules.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.cold_start.contenders import own_environment, peer_environment
from benchmarks.document import publish, say, table, verdict
from benchmarks.machine import keep_bytecode, scratch, this_machine
from demo.volume import DemoVolume, ensure
from tests.support.control_plane import ControlPlane
from tests.support.plane_records import now
from tests.support.waiting import wait_until
from tests.support.worker_process import WorkerProcess

SECTION = "boot overhead"
BAR = 0.5
_ROUNDS, _TIMEOUT = 9, 120.0
_MEMORY = Path("/dev/shm")
METHOD = """\
Timed from process start until ComfyUI answers, or until the worker reports that it is ready. The
two take turns; the difference is the median of each pair's. ComfyUI's code and all that is written
are on a disk in memory, Python's packages in the page cache. All of it is compiled already, as in
the image. The worker runs in production mode. It spares ComfyUI's start the garbage collector's
passes, a fifth of its processor time."""


def bare(demo: DemoVolume, volume: Path) -> float:
    """Seconds until ComfyUI answers that is started by hand."""
    peer = peer_environment(demo.python, volume / "ComfyUI", volume.parent)
    began = now()
    comfyui = subprocess.Popen(
        [demo.python, "main.py", *peer["PEER_FLAGS"].split()],
        cwd=volume / "ComfyUI",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: _answers(f"{peer['PEER_URL']}/system_stats"), _TIMEOUT)
        return now() - began
    finally:
        comfyui.kill()
        comfyui.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as answer:
            return bool(answer.read())
    except OSError:
        return False


def booted(demo: DemoVolume, volume: Path) -> float:
    """Seconds until a worker is ready."""
    work = volume.parent / f"work-{uuid.uuid4().hex}"
    with ExitStack() as stack:
        plane = stack.enter_context(ControlPlane())
        own = own_environment(volume, demo, work)
        env = {**plane.worker_env(skip_fitness=True), **own}
        began = now()
        worker = stack.enter_context(WorkerProcess.module("handler", env=env))
        return worker.wait_for_line(r"Boot: ready", timeout=_TIMEOUT).at - began


def measure(demo: DemoVolume, rounds: int) -> list[tuple[float, float]]:
    """Seconds of both, round by round, after one that only warms up."""
    pairs: list[tuple[float, float]] = []
    with scratch(_MEMORY if os.access(_MEMORY, os.W_OK) else None) as folder:
        volume = folder / "volume"
        demo.copy_to(volume)
        for number in range(rounds + 1):
            pair = bare(demo, volume), booted(demo, volume)
            if number:
                pairs.append(pair)
                say(f"round {number} of {rounds}: {pair[0]:.2f} s, with the worker {pair[1]:.2f} s")
    return pairs


def overhead(pairs: Sequence[tuple[float, float]]) -> float:
    """The median difference in seconds, rounded as shown."""
    return round(statistics.median(ours - theirs for theirs, ours in pairs), 2)


def section(machine: str, pairs: Sequence[tuple[float, float]]) -> str:
    """The document's section."""
    head, rows = ["seconds until ready", "median", "rounds"], []
    for index, name in enumerate(("ComfyUI by itself", "the worker with it")):
        times = [pair[index] for pair in pairs]
        each = ", ".join(f"{seconds:.2f}" for seconds in times)
        rows.append([name, f"{statistics.median(times):.2f}", each])
    extra = overhead(pairs)
    adds = f"adds **{extra:.2f} s**" if extra >= 0 else f"is ready **{-extra:.2f} s sooner**"
    bar = f"The worker {adds}; target ≤ {BAR} s: {verdict(extra <= BAR)}."
    again = "To repeat: `make bench BENCHMARKS=boot_overhead`."
    return "\n\n".join(["## A boot, all in memory", machine, table(head, rows), bar, METHOD, again])


def main(argv: Sequence[str] | None = None) -> int:
    """0 when the target is met."""
    parser = argparse.ArgumentParser(prog="benchmarks.boot_overhead", description=__doc__)
    parser.add_argument("--rounds", type=int, default=_ROUNDS, help="default %(default)s")
    given = parser.parse_args(argv)
    if given.rounds < 1:
        parser.error("--rounds: 1 or more")
    keep_bytecode()
    demo = ensure()
    pairs = measure(demo, given.rounds)
    text = section(this_machine(demo).sentence(), pairs)
    publish(SECTION, text, whole=given.rounds >= _ROUNDS)
    return 0 if overhead(pairs) <= BAR else 1


if __name__ == "__main__":
    sys.exit(main())
