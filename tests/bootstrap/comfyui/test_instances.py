"""How many ComfyUIs a worker starts."""

from __future__ import annotations

import pytest

from bootstrap.comfyui.launch import count_instances
from bootstrap.config import Settings


@pytest.mark.parametrize(
    ("env", "args", "count"),
    [
        ({}, (), 1),
        ({"RUNPOD_GPU_COUNT": "1"}, (), 1),
        ({"RUNPOD_GPU_COUNT": "4"}, (), 4),
        ({"RUNPOD_GPU_COUNT": "4"}, ("--cpu",), 1),
        ({"RUNPOD_GPU_COUNT": "4"}, ("--cuda-device=1",), 1),
        ({"RUNPOD_GPU_COUNT": "4", "COMFYUI_INSTANCES": "1"}, (), 1),
        ({"COMFYUI_INSTANCES": "2"}, ("--cpu",), 2),
        ({"RUNPOD_GPU_COUNT": "many"}, (), 1),
        ({"RUNPOD_GPU_COUNT": "10000"}, (), 16),
    ],
)
def test_one_comfyui_for_each_gpu(env: dict[str, str], args: tuple[str, ...], count: int) -> None:
    settings, problems = Settings.from_env(env)
    assert not list(problems)
    assert count_instances(settings, env, args) == count
