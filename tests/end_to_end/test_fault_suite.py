"""The fault suite in short; `python -m tests.prove.faults` does all faults, many times."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.volume import DemoVolume
from tests.prove.fault_cases import FAULTS, QUICK
from tests.prove.faults import HEAD, WARDS, Tally, suffer
from tests.prove.outcome import Outcome
from tests.prove.patient import Patient, patient
from tests.prove.places import CannotInject


@pytest.fixture(scope="module")
def ill(demo: DemoVolume, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Patient]:
    """One worker for all faults."""
    with patient(tmp_path_factory.mktemp("faults"), demo) as one:
        yield one


@pytest.mark.parametrize("name", [*QUICK, "node raises SystemExit"])
def test_a_fault_is_answered_rightly_and_costs_neither_the_next_job_nor_a_file(
    ill: Patient, name: str
) -> None:
    said: list[str] = []
    (tally,) = suffer(ill, [name], 1, said.append)
    if tally.impossible:
        pytest.skip(tally.impossible)
    assert tally.good, said


@pytest.mark.parametrize(
    "name",
    ["volume silent in a job", "volume silent, ComfyUI too", "killed, out of memory"],
)
def test_a_fault_of_the_place_is_answered_rightly_too(
    demo: DemoVolume, tmp_path: Path, name: str
) -> None:
    said: list[str] = []
    (place,) = [place for names, place in WARDS if name in names]
    try:
        with patient(tmp_path, demo, place) as one:
            (tally,) = suffer(one, [name], 1, said.append)
    except CannotInject as problem:
        pytest.skip(str(problem))
    assert tally.good, said


def test_the_table_counts_what_is_wrong() -> None:
    good, bad = Outcome(True, 0.5, ""), Outcome(False, 2.0, "")
    tally = Tally("killed in a job", [good, good], next_right=2)
    assert tally.good
    assert str(tally).split()[-6:] == ["2", "2", "0.50", "0.50", "2", "0"]
    assert len(str(tally)) == len(HEAD)
    assert not Tally("x", [good, bad], next_right=2).good
    assert not Tally("x", [good], next_right=0).good
    assert not Tally("x", [good], next_right=1, lost=1).good
    assert set(QUICK) <= set(FAULTS)
