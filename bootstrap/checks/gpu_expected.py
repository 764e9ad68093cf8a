"""Is this a GPU endpoint? An absent GPU is a broken machine there, and plain on a CPU endpoint.

Decided in this order; the first that says something wins:

1. `GPU=required` or `GPU=none` (a setting of ours).
2. `--cpu` in COMFYUI_ARGS: the user wants the CPU.
3. RUNPOD_GPU_COUNT, which Runpod sets for the worker: a number above 0 or not.
4. /dev/nvidia*: the container was given a device.
5. NVIDIA_VISIBLE_DEVICES naming devices (`0,1`, `GPU-…`). `all` says nothing: CUDA base images
   have it baked in, and run on CPU endpoints too; `void` and `none` mean no GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bootstrap.config import Settings
from bootstrap.facts.gpu import GpuFacts

_NO_DEVICES = ("", "void", "none")


@dataclass(frozen=True)
class Expectation:
    """Whether a GPU is expected, and a clause that says why."""

    expected: bool
    why: str


def gpu_expectation(
    gpu: GpuFacts | None, settings: Settings, env: Mapping[str, str]
) -> Expectation:
    """Whether a GPU must be there, by the rules above."""
    if settings.gpu != "auto":
        return Expectation(settings.gpu == "required", f"GPU={settings.gpu} is set")
    if wants_cpu(settings):
        return Expectation(False, "COMFYUI_ARGS has --cpu")
    count = promised_gpus(env)
    if count is not None:
        return Expectation(count > 0, f"RUNPOD_GPU_COUNT is {count}")
    if gpu and gpu.device_files:
        return Expectation(True, f"/dev/{gpu.device_files[0]} is there")
    named = env.get("NVIDIA_VISIBLE_DEVICES", "").strip()
    if named.lower() not in (*_NO_DEVICES, "all"):
        return Expectation(True, f"NVIDIA_VISIBLE_DEVICES is {named[:80]}")
    return Expectation(False, "neither Runpod nor /dev names a GPU")


def wants_cpu(settings: Settings) -> bool:
    """Whether ComfyUI is told to use the CPU."""
    return "--cpu" in settings.comfyui_args


def promised_gpus(env: Mapping[str, str]) -> int | None:
    """How many GPUs Runpod says this worker has; None where it says nothing."""
    text = env.get("RUNPOD_GPU_COUNT", "").strip()
    return int(text) if text.isdigit() else None
