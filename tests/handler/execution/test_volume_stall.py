"""When a ComfyUI that does nothing is taken to wait for a silent volume. The real ones: faults."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import cast

import pytest

from bootstrap.comfyui import ComfyUI
from handler.common.calls import VolumeWatchdog
from handler.common.errors import JobError
from handler.execution.comfy_client import STALL_LOOKS, VolumeStallDetector
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


def looked(looks: list[tuple[float | None, bool]]) -> JobError | None:
    """What came of so many looks."""
    scene = Scene(looks)
    stall = VolumeStallDetector(cast(ComfyUI, scene), cast(VolumeWatchdog, scene))
    progress = NodeProgress({"3": {"class_type": "CheckpointLoaderSimple", "inputs": {}}})
    progress.on_message({"type": "executing", "data": {"node": "3", "prompt_id": "p"}}, "p")

    async def all_of_them() -> JobError | None:
        for _ in looks:
            try:
                await stall.look(progress)
            except JobError as error:
                return error
        return None

    return asyncio.run(all_of_them())


def test_a_comfyui_that_waits_for_a_silent_volume_is_reported_with_its_node() -> None:
    assert looked([(IDLE, False)] * STALL_LOOKS) is None, (
        "the first look has nothing to compare with"
    )
    error = looked([(IDLE, False)] * (STALL_LOOKS + 1))
    assert error is not None and error.code == "volume.silent"
    assert "node 3 (CheckpointLoaderSimple)" in error.message and error.fix


@pytest.mark.parametrize(
    "other", [(BUSY, False), (IDLE, True), (None, False)], ids=["computes", "answers", "unknown"]
)
def test_one_that_computes_or_whose_volume_answers_goes_on(
    other: tuple[float | None, bool],
) -> None:
    assert looked([other] * 3 * STALL_LOOKS) is None
    silent = [(IDLE, False)] * (STALL_LOOKS - 1)
    assert looked([(IDLE, False), *silent, other, *silent]) is None
