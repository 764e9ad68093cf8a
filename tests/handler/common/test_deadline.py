"""One time budget, on a clock that the test sets."""

from __future__ import annotations

import time

from handler.common.errors import Deadline


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_budget_runs_down_and_never_below_zero() -> None:
    clock = Clock()
    deadline = Deadline(10, clock)
    assert (deadline.elapsed, deadline.remaining, deadline.expired) == (0, 10, False)
    clock.now += 4
    assert (deadline.elapsed, deadline.remaining, deadline.expired) == (4, 6, False)
    clock.now += 6
    assert (deadline.remaining, deadline.expired) == (0, True)
    clock.now += 100
    assert (deadline.seconds, deadline.elapsed, deadline.remaining) == (10, 110, 0)


def test_no_budget_is_expired_at_once() -> None:
    assert Deadline(0, Clock()).expired
    assert Deadline(-1, Clock()).remaining == 0


def test_the_real_clock_goes_on() -> None:
    deadline = Deadline(60)
    before = deadline.remaining
    time.sleep(0.001)
    assert deadline.remaining < before <= 60
