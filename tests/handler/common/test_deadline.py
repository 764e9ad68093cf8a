"""One time budget, on a clock that the test sets."""

from __future__ import annotations

import time

import pytest

from handler.common import errors
from handler.common.errors import Deadline


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(errors, "time", clock)
    return clock


def test_a_budget_runs_down_and_never_below_zero(clock: Clock) -> None:
    deadline = Deadline(10)
    assert (deadline.elapsed, deadline.remaining, deadline.expired) == (0, 10, False)
    clock.now += 4
    assert (deadline.elapsed, deadline.remaining, deadline.expired) == (4, 6, False)
    clock.now += 6
    assert (deadline.remaining, deadline.expired) == (0, True)
    clock.now += 100
    assert (deadline.seconds, deadline.elapsed, deadline.remaining) == (10, 110, 0)


@pytest.mark.usefixtures("clock")
def test_no_budget_is_expired_at_once() -> None:
    assert Deadline(0).expired
    assert Deadline(-1).remaining == 0


def test_the_real_clock_goes_on() -> None:
    deadline = Deadline(60)
    before = deadline.remaining
    time.sleep(0.001)
    assert deadline.remaining < before <= 60
