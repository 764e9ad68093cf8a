"""The order of prompts, and clocks that stop for waiting jobs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest

from handler.common import errors
from handler.common.errors import Deadline
from handler.execution.queue import EntryState, PromptQueue
from tests.support.waiting import run_at_once


def together(*jobs: Callable[[PromptQueue], Coroutine[Any, Any, None]]) -> None:
    """Run jobs at once, in the order given, on one queue."""

    async def all_of_them() -> None:
        queue = PromptQueue()
        await asyncio.wait_for(asyncio.gather(*(job(queue) for job in jobs)), 10)

    run_at_once(all_of_them())


def test_each_comes_when_those_before_it_have_gone() -> None:
    went: list[str] = []

    def job(name: str) -> Callable[[PromptQueue], Coroutine[Any, Any, None]]:
        async def run(queue: PromptQueue) -> None:
            async with queue.enter(Deadline(10)) as entry:
                await entry.wait_until_head()
                assert entry.is_head
                await asyncio.sleep(0.01)
                went.append(name)

        return run

    together(*map(job, "abcd"))
    assert went == ["a", "b", "c", "d"]


def test_a_prompt_follows_as_soon_as_the_one_before_it_is_queued_and_never_sooner() -> None:
    said: list[str] = []

    async def first(queue: PromptQueue) -> None:
        async with queue.enter(Deadline(10)) as entry:
            await asyncio.sleep(0.05)
            said.append("first queued")
            entry.submitted()
            await asyncio.sleep(0.05)
            said.append("first gone")

    async def second(queue: PromptQueue) -> None:
        async with queue.enter(Deadline(10)) as entry:
            await entry.wait_until_next()
            assert not entry.is_head
            said.append("second near")
            await entry.wait_until_head()

    together(first, second)
    assert said == ["first queued", "second near", "first gone"]


def test_behind_one_that_ended_none_begins_until_its_files_are_claimed() -> None:
    """What a prompt wrote that began now might be taken for its."""
    said: list[str] = []

    async def first(queue: PromptQueue) -> None:
        async with queue.enter(Deadline(10)) as entry:
            entry.submitted()
            entry.ended(1.0)
            await asyncio.sleep(0.05)
            said.append("claimed")

    async def second(queue: PromptQueue) -> None:
        async with queue.enter(Deadline(10)) as entry:
            await entry.wait_until_next()
            assert entry.is_head
            said.append("begins")

    together(first, second)
    assert said == ["claimed", "begins"]


def test_when_one_leaves_from_the_middle_the_next_moves_up() -> None:
    async def first(queue: PromptQueue) -> None:
        async with queue.enter(Deadline(10)) as entry:
            entry.submitted()
            await asyncio.sleep(0.1)

    async def second(queue: PromptQueue) -> None:
        async with queue.enter(Deadline(10)):
            await asyncio.sleep(0.01)

    async def third(queue: PromptQueue) -> None:
        async with queue.enter(Deadline(10)) as entry:
            await entry.wait_until_next()
            assert not entry.is_head, "behind the first one now"
            await entry.wait_until_head()

    together(first, second, third)


def test_the_clock_of_one_that_waits_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(errors, "time", SimpleNamespace(monotonic=lambda: now))

    async def scenario() -> None:
        nonlocal now
        queue = PromptQueue()
        deadlines = [Deadline(10) for _ in range(3)]
        first, second, third = (queue.enter(deadline) for deadline in deadlines)
        async with first, second:
            async with third:
                now = 8.0
            assert [d.remaining for d in deadlines] == [2.0, 10.0, 10.0]
        # The second left before the first did, so that its time never began.
        assert deadlines[1].elapsed == 0.0

    asyncio.run(scenario())


def test_the_clock_goes_on_at_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(errors, "time", SimpleNamespace(monotonic=lambda: now))

    async def scenario() -> None:
        nonlocal now
        queue = PromptQueue()
        deadline = Deadline(10)
        first = queue.enter(Deadline(10))
        await first.__aenter__()
        async with queue.enter(deadline):
            now = 5.0
            await first.__aexit__(None, None, None)
            now = 6.0
            assert (deadline.elapsed, deadline.paused, deadline.remaining) == (1.0, 5.0, 9.0)

    asyncio.run(scenario())


def test_only_prompts_that_comfyui_had_are_lost() -> None:
    async def scenario() -> None:
        queue = PromptQueue()
        one, two, three = (queue.enter(Deadline(1)) for _ in range(3))
        async with one as first, two as second, three as third:
            first.submitted()
            second.submitted()
            assert first.has_successor and not second.has_successor
            queue.mark_lost(first)
            states = [entry.state for entry in (first, second, third)]
            assert states == [EntryState.RUNNING, EntryState.LOST, EntryState.WAITING]

    asyncio.run(scenario())


def test_a_prompt_runs_once_it_is_the_head() -> None:
    async def scenario() -> None:
        queue = PromptQueue()
        one, two = queue.enter(Deadline(1)), queue.enter(Deadline(1))
        first = await one.__aenter__()
        async with two as second:
            first.submitted()
            second.submitted()
            assert (first.state, second.state) == (EntryState.RUNNING, EntryState.QUEUED)
            first.ended(1000.0)
            await one.__aexit__(None, None, None)
            assert (first.state, second.state) == (EntryState.ENDED, EntryState.RUNNING)

    asyncio.run(scenario())


def test_one_that_was_lost_waits_and_runs_again() -> None:
    """Even one that had ended: its failure may be due to what ended ComfyUI."""

    async def scenario() -> None:
        queue = PromptQueue()
        one, two, three = (queue.enter(Deadline(1)) for _ in range(3))
        first = await one.__aenter__()
        async with two as second, three as third:
            for entry in (first, second, third):
                entry.submitted()
            second.ended(1000.0)
            queue.mark_lost(first)
            queue.mark_lost(first)
            await one.__aexit__(None, None, None)
            assert [entry.state for entry in (second, third)] == [EntryState.LOST] * 2
            assert second.output_cutoff is not None, "what it wrote is its own all the same"
            second.retry()
            assert [second.state, second.output_cutoff] == [EntryState.WAITING, None]
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(third.wait_until_next(), 0.05)
            second.submitted()
            await asyncio.wait_for(third.wait_until_next(), 5)

    asyncio.run(scenario())


def test_the_end_of_one_that_was_lost_does_not_count_as_its_own() -> None:
    async def scenario() -> None:
        queue = PromptQueue()
        async with queue.enter(Deadline(1)) as first, queue.enter(Deadline(1)) as second:
            first.submitted()
            second.submitted()
            queue.mark_lost(first)
            second.ended(1000.0)
            assert second.state is EntryState.LOST and second.output_cutoff == 1000.0

    asyncio.run(scenario())


def test_no_state_follows_that_cannot() -> None:
    async def scenario() -> None:
        queue = PromptQueue()
        async with queue.enter(Deadline(1)) as entry:
            with pytest.raises(RuntimeError, match="WAITING to LOST"):
                entry.lost()
            entry.submitted()
            with pytest.raises(RuntimeError, match="RUNNING to LOST"):
                entry.lost()

    asyncio.run(scenario())


def test_files_of_the_last_moment_are_left_where_another_prompt_may_have_written_them() -> None:
    async def scenario(at: float | None) -> list[float | None]:
        queue = PromptQueue()
        async with queue.enter(Deadline(1)) as first:
            cutoffs = [first.output_cutoff]
            first.submitted()
            first.ended(at)
            cutoffs.append(first.output_cutoff)
            async with queue.enter(Deadline(1)):
                return [*cutoffs, first.output_cutoff]

    before, alone, followed = asyncio.run(scenario(1000.0))
    assert before is None and alone == 1000.0
    assert followed is not None and 999.9 < followed < 999.99
    before, alone, followed = asyncio.run(scenario(None))
    assert alone is not None and abs(alone - time.time()) < 60
    assert followed == 0.0, "when it ended is not known"
