"""`python -m benchmarks.cold_start`: measure, print, write docs/benchmarks.md."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.cold_start import loads
from benchmarks.cold_start.bars import Verdict, verdicts
from benchmarks.cold_start.contenders import Contender, four
from benchmarks.cold_start.scene import furnished
from benchmarks.cold_start.session import Figures, Plan, run_session
from benchmarks.cold_start.tables import section
from benchmarks.document import publish, say
from benchmarks.machine import Machine, keep_bytecode, this_machine
from benchmarks.node_packs import FILES, PACKS
from benchmarks.simulated_volume import CannotSimulate, Delays, why_not
from demo.console import DemoError
from demo.volume import DemoVolume, ensure

RESULTS = Path(__file__).resolve().parent.parent / "results"
SECTION = "cold starts"
_HOT, _THAW = "hot", "thaw"
_COLD = (
    *("ours-sd15", "local-sd15", "first-job-sd15", "image-sd15"),
    *("ours-sdxl", "image-sdxl"),
)
# Thaws per round: a hot job takes less than a second, so its median needs more samples.
_THAWS = 3


@dataclass(frozen=True)
class Outcome:
    """The result: the document's section, and the verdicts."""

    text: str
    verdicts: Sequence[Verdict]


def main(argv: Sequence[str] | None = None) -> int:
    """0 if all measured targets were met, 1 if not, 2 if nothing can be measured, 130 if
    interrupted; processes and mounts are cleaned up in any case."""
    given = _arguments(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    keep_bytecode()
    try:
        outcome = measure(given.only or [*_COLD, _HOT, _THAW], given.rounds, given.frozen)
    except KeyboardInterrupt:
        say("interrupted; everything was cleaned up")
        return 130
    except (CannotSimulate, DemoError) as problem:
        say(str(problem))
        return 2
    publish(SECTION, outcome.text, whole=not given.only)
    for verdict in outcome.verdicts:
        print(verdict)
    return 0 if all(verdict.met for verdict in outcome.verdicts) else 1


def measure(wanted: Sequence[str], rounds: int, frozen_seconds: float) -> Outcome:
    """Run the selected parts. Raises CannotSimulate, DemoError, or a contender's error."""
    if reason := why_not():
        raise CannotSimulate(f"cannot simulate a volume here: {reason}")
    demo = ensure()
    plan = _plan(demo, wanted, rounds, frozen_seconds)
    used = {c.load.key: c.load for c in plan.contenders}
    if plan.hot_load is not None:
        used.setdefault(plan.hot_load.key, plan.hot_load)
    machine, figures = this_machine(demo), Figures()
    try:
        with furnished(demo, list(used.values()), Delays(), PACKS, FILES) as scene:
            run_session(scene, plan, figures)
    finally:
        if figures.series:
            keep(machine, figures)
    found = verdicts(figures.series)
    return Outcome(section(machine.sentence(), plan.contenders, figures, found), found)


def keep(machine: Machine, figures: Figures, folder: Path = RESULTS) -> Path:
    """Write all figures, timelines and logs to a new JSON file."""
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / f"cold-start-{time.strftime('%Y%m%d-%H%M%S')}.json"
    data = {"machine": asdict(machine), **figures.as_dict()}
    place.write_text(json.dumps(data, indent=1), encoding="utf-8")
    say(f"all runs with their timelines and logs: {place}")
    return place


def _plan(demo: DemoVolume, wanted: Sequence[str], rounds: int, frozen_seconds: float) -> Plan:
    small = loads.sd15(demo)
    cold: list[Contender] = [c for c in four(small) if c.key in wanted]
    if any(key.endswith("-sdxl") for key in wanted):
        cold += [c for c in four(loads.sdxl(demo)) if c.key in wanted]
    return Plan(
        contenders=cold,
        rounds=rounds,
        hot_load=small if {_HOT, _THAW} & set(wanted) else None,
        hot=rounds if _HOT in wanted else 0,
        thaw=_THAWS * rounds if _THAW in wanted else 0,
        frozen_seconds=frozen_seconds,
    )


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.cold_start", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="default 5")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=[*_COLD, _HOT, _THAW],
        help="only these; the document is then left unchanged",
    )
    parser.add_argument(
        "--frozen", type=float, default=3.0, help="seconds a worker is frozen, default 3"
    )
    given = parser.parse_args(argv)
    if given.rounds < 1:
        parser.error(f"--rounds {given.rounds}: 1 or more")
    return given


if __name__ == "__main__":
    sys.exit(main())
