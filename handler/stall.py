"""Notices a ComfyUI that waits for a volume which has fallen silent: a node that opens a model
there hangs in the kernel, while ComfyUI's server answers and its log is still."""

from __future__ import annotations

from bootstrap.comfyui import ComfyUI
from handler import failures
from handler.headway import Headway
from handler.volume_watchdog import VolumeWatchdog

# So many looks in a row, two seconds or more apart. A volume can stall for a while, and the job has
# cost something already.
_LOOKS = 8
# What ComfyUI uses between two looks for the questions it is asked.
_IDLE_CPU_SECONDS = 0.1


class VolumeStallDetector:
    """What was seen of one prompt."""

    def __init__(self, comfyui: ComfyUI, volume: VolumeWatchdog) -> None:
        self._comfyui = comfyui
        self._volume = volume
        self._used: float | None = None
        self._seen = 0

    async def look(self, headway: Headway) -> None:
        """To be called every few seconds while the prompt runs. Raises JobError when ComfyUI has
        computed nothing for long, and the volume has not answered all the while."""
        used, before = self._comfyui.cpu_seconds(), self._used
        self._used = used
        idle = used is not None and before is not None and used - before <= _IDLE_CPU_SECONDS
        waits = idle and not await self._volume.responds()
        self._seen = self._seen + 1 if waits else 0
        if self._seen == _LOOKS:
            raise failures.volume_silent(headway)
