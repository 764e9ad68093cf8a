"""Each fault, many times, on a real worker with a real ComfyUI.

    python -m tests.prove.faults [--times 20] [--only NAME …]

Prints a row for each fault: how often it was injected and answered correctly, median and worst time
to the answer, how often the next job was right, and results that were neither in the reply nor on
the volume. Some need root: a silent volume is a stopped FUSE mount, a container short of memory a
control group, dead connections an iptables rule. Where this machine does not allow one, its row
says so.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.prove.fault_cases import FAULTS, IN_A_CONTAINER, ON_A_MOUNT
from tests.prove.memory_cases import CONTAINER_BYTES
from tests.prove.outcome import Outcome
from tests.prove.patient import Patient, patient
from tests.prove.places import CannotInject, Place

ALL = FAULTS | ON_A_MOUNT | IN_A_CONTAINER
WARDS = (
    (FAULTS, Place()),
    (ON_A_MOUNT, Place(mount=True)),
    (IN_A_CONTAINER, Place(memory=CONTAINER_BYTES)),
)
_ROW = "{:26} {:>8} {:>8} {:>9} {:>9} {:>10} {:>6}"
HEAD = _ROW.format("fault", "injected", "correct", "median s", "worst s", "next right", "lost")


@dataclass
class Tally:
    """The results of one fault."""

    name: str
    outcomes: list[Outcome] = field(default_factory=list)
    next_right: int = 0
    lost: int = 0
    impossible: str = ""

    @property
    def good(self) -> bool:
        """Was everything right? A fault that cannot be injected here does not count."""
        correct = sum(outcome.right for outcome in self.outcomes)
        return correct == self.next_right == len(self.outcomes) and not self.lost

    def __str__(self) -> str:
        if not self.outcomes:
            return f"{self.name:26} not injected: {self.impossible}"
        seconds = [outcome.seconds for outcome in self.outcomes]
        return _ROW.format(
            self.name,
            len(self.outcomes),
            sum(outcome.right for outcome in self.outcomes),
            f"{statistics.median(seconds):.2f}",
            f"{max(seconds):.2f}",
            self.next_right,
            self.lost,
        )


def suffer(
    ill: Patient, names: Sequence[str], times: int, show: Callable[[str], None]
) -> list[Tally]:
    """Inject every fault `times` times into one worker."""
    tallies = []
    for name in names:
        tally = Tally(name)
        for _ in range(times):
            try:
                _once(ill, tally, show)
            except CannotInject as problem:
                tally.impossible = str(problem)
                break
        tallies.append(tally)
        show(str(tally))
    return tallies


def _once(ill: Patient, tally: Tally, show: Callable[[str], None]) -> None:
    before = ill.lost
    try:
        outcome = ALL[tally.name](ill)
    except AssertionError as problem:  # no answer in time, or not even injected
        outcome = Outcome(False, float("nan"), str(problem)[:2000])
    tally.outcomes.append(outcome)
    works = _works(ill)
    tally.next_right += works
    tally.lost += ill.lost - before
    if not outcome.right or not works:
        show(f"  {tally.name}: {outcome.said}; next job right: {works}")


def _works(ill: Patient) -> bool:
    try:
        return ill.works()
    except AssertionError:
        return False


def main(argv: Sequence[str]) -> int:
    """Print the table; 0 if every fault was answered correctly and nothing was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--only", nargs="+", choices=ALL, default=list(ALL), metavar="NAME")
    arguments = parser.parse_args(argv)
    started = time.monotonic()
    print(HEAD, flush=True)
    tallies = []
    for names, place in WARDS:
        tallies += _in_a_ward([n for n in arguments.only if n in names], arguments.times, place)
    injected = sum(len(tally.outcomes) for tally in tallies)
    good = all(tally.good for tally in tallies)
    verdict = "all answered correctly, nothing lost" if good else "NOT all correct"
    print(f"{injected} faults in {time.monotonic() - started:.0f} s: {verdict}")
    return 0 if good else 1


def _in_a_ward(names: Sequence[str], times: int, place: Place) -> list[Tally]:
    """Inject these faults into a new worker in this place."""
    if not names:
        return []

    def show(row: str) -> None:
        print(row, flush=True)

    try:
        with tempfile.TemporaryDirectory() as folder, patient(Path(folder), place=place) as ill:
            return suffer(ill, names, times, show)
    except CannotInject as problem:
        tallies = [Tally(name, impossible=str(problem)) for name in names]
        for tally in tallies:
            show(str(tally))
        return tallies


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
