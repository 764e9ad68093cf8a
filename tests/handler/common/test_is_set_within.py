"""Waiting for an event: in time, too late, and a cancellation that comes in the same moment."""

from __future__ import annotations

import asyncio

import pytest

from handler.common.blocking import is_set_within


def test_in_time_and_too_late() -> None:
    async def scenario() -> tuple[bool, bool]:
        event = asyncio.Event()
        late = await is_set_within(event, 0.01)
        asyncio.get_running_loop().call_later(0.01, event.set)
        return late, await is_set_within(event, 30)

    assert asyncio.run(scenario()) == (False, True)


@pytest.mark.parametrize("ticks", range(4))
def test_a_cancellation_is_never_lost(ticks: int) -> None:
    """`asyncio.wait_for` of Python 3.11 returns instead, and the cancelled work goes on forever."""

    async def scenario() -> None:
        event = asyncio.Event()
        waiting = asyncio.create_task(is_set_within(event, 30))
        await asyncio.sleep(0.01)
        event.set()
        for _ in range(ticks):
            await asyncio.sleep(0)
        if not waiting.done():
            waiting.cancel()
            await asyncio.wait({waiting})
            assert waiting.cancelled()

    asyncio.run(scenario())
