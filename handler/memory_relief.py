"""Between jobs: a container near its memory limit is relieved before the kernel kills ComfyUI."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from bootstrap.config import Settings
from bootstrap.core.log import say
from bootstrap.core.memory import MemoryGauge
from handler.comfy_client import Refused, Unreachable, connect

_LOOKS, _LOOK_EVERY = 20, 0.25  # seconds
# What freeing could not bring down is tried again only when this many percent more are in use.
_WORTH_ANOTHER_TRY = 2.0


class MemoryRelief:
    """Asks ComfyUI to let go at MEMORY_FREE_AT percent, wants a restart at MEMORY_RESTART_AT."""

    def __init__(
        self, settings: Settings, percent: Callable[[], float | None] | None = None
    ) -> None:
        """`percent` of memory is in use; None where there is no limit."""
        self._free_at = settings.memory_free_at
        self._restart_at = settings.memory_restart_at
        self._read = percent or _gauge()
        self._stuck_at = 0.0

    def is_due(self) -> bool:
        """Is memory so short that something has to be done about it between jobs?"""
        used = self._percent()
        if used is None or used < min(self._free_at, self._restart_at):
            self._stuck_at = 0.0
            return False
        return used >= self._restart_at or used >= self._stuck_at + _WORTH_ANOTHER_TRY

    async def must_restart(self, url: str) -> bool:
        """Make room where it is short; is a restart all that is left? Never while ComfyUI works."""
        if not self.is_due():
            return False
        try:
            async with connect(url) as client:
                running, pending = await client.queued()
                if running or pending:
                    return False
                used = self._percent() or 0.0
                say(f"{used:.0f} % of the container's memory is in use; ComfyUI is asked to free")
                await client.free()
        except (Unreachable, Refused) as problem:
            say(f"ComfyUI could not be asked to free memory: {problem}")
        left = await self._after_freeing()
        self._stuck_at = left if left >= self._free_at else 0.0
        if left < self._restart_at:
            return False
        say(f"{left:.0f} % of the container's memory is in use still; ComfyUI is restarted")
        return True

    async def _after_freeing(self) -> float:
        used = 0.0
        for _ in range(_LOOKS):
            await asyncio.sleep(_LOOK_EVERY)
            used = self._percent() or 0.0
            if used < self._free_at:
                break
        return used

    def _percent(self) -> float | None:
        try:
            return self._read()
        except (OSError, ValueError):
            return None  # no facts, no deeds


def _gauge() -> Callable[[], float | None]:
    try:
        return MemoryGauge().percent
    except (OSError, ValueError):
        return lambda: None
