"""The order of prompts, and clocks that stand still for those who wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from handler.common.deadline import Deadline
from handler.execution.queue import Line


def together(*jobs: Callable[[Line], Coroutine[Any, Any, None]]) -> None:
    """Run jobs at once, in the order given, on one line."""

    async def all_of_them() -> None:
        line = Line()
        await asyncio.wait_for(asyncio.gather(*(job(line) for job in jobs)), 10)

    asyncio.run(all_of_them())


def test_each_comes_when_those_before_it_have_gone() -> None:
    went: list[str] = []

    def job(name: str) -> Callable[[Line], Coroutine[Any, Any, None]]:
        async def run(line: Line) -> None:
            async with line.turn(Deadline(10)) as turn:
                await turn.come()
                assert turn.first
                await asyncio.sleep(0.01)
                went.append(name)

        return run

    together(*map(job, "abcd"))
    assert went == ["a", "b", "c", "d"]


def test_a_prompt_follows_as_soon_as_the_one_before_it_is_queued_and_never_sooner() -> None:
    said: list[str] = []

    async def first(line: Line) -> None:
        async with line.turn(Deadline(10)) as turn:
            await asyncio.sleep(0.05)
            said.append("first queued")
            turn.queue()
            await asyncio.sleep(0.05)
            said.append("first gone")

    async def second(line: Line) -> None:
        async with line.turn(Deadline(10)) as turn:
            await turn.near()
            assert not turn.first
            said.append("second near")
            await turn.come()

    together(first, second)
    assert said == ["first queued", "second near", "first gone"]


def test_behind_one_that_ended_nobody_begins_until_its_files_are_told() -> None:
    """What a prompt wrote that began now might be taken for its."""
    said: list[str] = []

    async def first(line: Line) -> None:
        async with line.turn(Deadline(10)) as turn:
            turn.queue()
            turn.end(1.0)
            await asyncio.sleep(0.05)
            said.append("told")

    async def second(line: Line) -> None:
        async with line.turn(Deadline(10)) as turn:
            await turn.near()
            assert turn.first
            said.append("begins")

    together(first, second)
    assert said == ["told", "begins"]


def test_one_that_leaves_from_the_middle_lets_the_next_one_up() -> None:
    async def first(line: Line) -> None:
        async with line.turn(Deadline(10)) as turn:
            turn.queue()
            await asyncio.sleep(0.1)

    async def second(line: Line) -> None:
        async with line.turn(Deadline(10)):
            await asyncio.sleep(0.01)

    async def third(line: Line) -> None:
        async with line.turn(Deadline(10)) as turn:
            await turn.near()
            assert not turn.first, "behind the first one now"
            await turn.come()

    together(first, second, third)


def test_the_clock_of_one_that_waits_stands_still() -> None:
    now = 0.0

    async def scenario() -> None:
        nonlocal now
        line = Line()
        deadlines = [Deadline(10, lambda: now) for _ in range(3)]
        first, second, third = (line.turn(deadline) for deadline in deadlines)
        async with first, second:
            async with third:
                now = 8.0
            assert [d.remaining for d in deadlines] == [2.0, 10.0, 10.0]
        # The second left before the first did, so that its time never began.
        assert deadlines[1].elapsed == 0.0

    asyncio.run(scenario())


def test_the_clock_goes_on_with_the_turn() -> None:
    now = 0.0

    async def scenario() -> None:
        nonlocal now
        line = Line()
        deadline = Deadline(10, lambda: now)
        first = line.turn(Deadline(10))
        await first.__aenter__()
        async with line.turn(deadline):
            now = 5.0
            await first.__aexit__(None, None, None)
            now = 6.0
            assert (deadline.elapsed, deadline.paused, deadline.remaining) == (1.0, 5.0, 9.0)

    asyncio.run(scenario())


def test_only_prompts_that_comfyui_had_are_displaced() -> None:
    async def scenario() -> None:
        line = Line()
        one, two, three = (line.turn(Deadline(1)) for _ in range(3))
        async with one as first, two as second, three as third:
            first.queue()
            second.queue()
            assert first.followed and not second.followed
            line.displace_others(first)
            turns = (first, second, third)
            assert [turn.displaced for turn in turns] == [False, True, False]

    asyncio.run(scenario())


def test_files_of_the_last_moment_are_left_where_another_prompt_may_have_written_them() -> None:
    async def scenario() -> None:
        line = Line()
        async with line.turn(Deadline(1)) as first:
            first.end(1000.0)
            alone = first.wrote_until
            async with line.turn(Deadline(1)):
                followed = first.wrote_until
                first.end(None)
                assert first.wrote_until == 0.0, "nobody knows when"
        assert alone == 1000.0 and 999.9 < followed < 999.99

    asyncio.run(scenario())
