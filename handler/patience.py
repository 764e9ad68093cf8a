"""Looks at a prompt's history, and how long a ComfyUI that does not answer is waited for."""

from __future__ import annotations

import asyncio
from typing import Any

from bootstrap.comfyui import ComfyUI
from handler.comfy_client import ComfyClient, Unreachable
from handler.common.deadline import Deadline

# An answer that comes so soon needs no further care.
_AT_ONCE = 0.2
# Without an answer in so many seconds, and with less CPU time used meanwhile, nothing goes on in
# there; seen several times in a row, since a host or a volume can stall for a while. Where it
# computes, each look gets twice the time.
_LOOK_SECONDS, _IDLE_CPU_SECONDS, _IDLE_LOOKS = 3.0, 0.05, 3
_PATIENT_LOOKS, _LONGEST_LOOK = 6, 30.0


async def look_at_history(
    comfyui: ComfyUI, client: ComfyClient, prompt_id: str, deadline: Deadline
) -> Any | None:
    """The prompt's entry; None while there is none. Raises Refused, and Unreachable for a ComfyUI
    that is frozen: it does not answer and does nothing else either. One that computes may hold
    Python's lock, and has more time."""
    seconds, idle = _LOOK_SECONDS, 0
    for last in (False,) * (_PATIENT_LOOKS - 1) + (True,):
        before = None
        limit = min(seconds, max(deadline.remaining, 1.0))
        asking = asyncio.ensure_future(client.history(prompt_id, limit))
        try:
            await asyncio.wait({asking}, timeout=_AT_ONCE)
            before = None if asking.done() else comfyui.cpu_seconds()
            return await asking
        except Unreachable:
            if deadline.expired:
                return None
            after = comfyui.cpu_seconds()
            works = before is None or after is None or after - before > _IDLE_CPU_SECONDS
            idle = 0 if works else idle + 1
            if last or idle == _IDLE_LOOKS:
                raise
            seconds = min(2 * seconds, _LONGEST_LOOK) if works else seconds
        finally:
            asking.cancel()
    raise AssertionError("the last look returns or raises")
