"""Waiting that a cancellation ends for sure: until Python 3.12 `asyncio.wait_for` loses one that
comes in the moment in which what it waits for is there."""

from __future__ import annotations

import asyncio


async def is_set_within(event: asyncio.Event, seconds: float) -> bool:
    """Is it set, within so many seconds?"""
    waiting = asyncio.ensure_future(event.wait())
    try:
        done, _ = await asyncio.wait({waiting}, timeout=seconds)
    finally:
        waiting.cancel()
    return bool(done)
