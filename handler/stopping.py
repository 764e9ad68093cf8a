"""A prompt taken out of ComfyUI, and no other."""

from __future__ import annotations

import asyncio

from handler.comfy_client import ComfyClient, Refused, Unreachable

# A prompt that was cancelled has so long to go; the rest of two seconds is for ending ComfyUI.
_SECONDS = 1.5


async def lets_go(client: ComfyClient, prompt_id: str) -> bool:
    """Is the prompt gone from ComfyUI, having been removed or interrupted there?"""
    try:
        await asyncio.wait_for(_removed(client, prompt_id), _SECONDS)
    except (Unreachable, Refused, asyncio.TimeoutError):
        return False
    return True


async def _removed(client: ComfyClient, prompt_id: str) -> None:
    """Ask until it is gone; a node looks at the interrupt flag only now and then."""
    while True:
        running, pending = await client.queued()
        if prompt_id in pending:
            await client.remove_pending(prompt_id)
        elif prompt_id in running:
            await client.interrupt(prompt_id)
        else:
            return
        await asyncio.sleep(0.1)
