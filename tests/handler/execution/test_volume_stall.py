"""When an idle ComfyUI counts as waiting for a silent volume. For real ones see the faults."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import cast

import pytest

from handler.common.blocking import VolumeWatchdog
from handler.execution.comfy_client import STALL_LOOKS, VolumeStallDetector
from handler.execution.history import volume_silent_error
from handler.execution.node_progress import NodeProgress

IDLE, BUSY = 0.01, 1.0


class Scene:
    """ComfyUI uses so much between looks, and the volume answers or not."""

    def __init__(self, looks: Iterable[tuple[float | None, bool]]) -> None:
        self.looks = iter(looks)
        self.used = 0.0
        self.answers = True

    def cpu_seconds(self) -> float | None:
        step, self.answers = next(self.looks)
        if step is None:
            return None
        self.used += step
        return self.used

    async def responds(self) -> bool:
        return self.answers


def is_stalled(looks: list[tuple[float | None, bool]]) -> bool:
    """Was it detected as stalled in one of so many checks?"""
    scene = Scene(looks)
    stall = VolumeStallDetector(scene.cpu_seconds, cast(VolumeWatchdog, scene))

    async def all_of_them() -> bool:
        return any([await stall.is_stalled() for _ in looks])

    return asyncio.run(all_of_them())


def test_a_comfyui_that_waits_for_a_silent_volume_is_noticed() -> None:
    assert not is_stalled([(IDLE, False)] * STALL_LOOKS), (
        "the first look has nothing to compare with"
    )
    assert is_stalled([(IDLE, False)] * (STALL_LOOKS + 1))


def test_it_is_reported_with_its_node() -> None:
    progress = NodeProgress({"3": {"class_type": "CheckpointLoaderSimple", "inputs": {}}})
    progress.on_message({"type": "executing", "data": {"node": "3", "prompt_id": "p"}}, "p")
    error = volume_silent_error(progress)
    assert error.code == "volume.silent" and error.fix
    assert "node 3 (CheckpointLoaderSimple)" in error.message


@pytest.mark.parametrize(
    "other", [(BUSY, False), (IDLE, True), (None, False)], ids=["computes", "answers", "unknown"]
)
def test_one_that_computes_or_whose_volume_answers_goes_on(
    other: tuple[float | None, bool],
) -> None:
    assert not is_stalled([other] * 3 * STALL_LOOKS)
    silent = [(IDLE, False)] * (STALL_LOOKS - 1)
    assert not is_stalled([(IDLE, False), *silent, other, *silent])
