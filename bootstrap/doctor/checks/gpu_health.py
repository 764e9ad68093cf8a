"""A GPU that answers can still be ill, held back, or taken by somebody else."""

from __future__ import annotations

from collections.abc import Mapping

from bootstrap.config import Settings
from bootstrap.core.findings import Finding, host_error, info, warning
from bootstrap.core.text import GB
from bootstrap.doctor.checks.gpu import gpu_expectation
from bootstrap.doctor.facts.gpu import GpuDevice
from bootstrap.doctor.facts.machine import MachineFacts

# The driver itself takes 0.3 to 0.7 GB; what is above this share belongs to another process.
TAKEN_SHARE = 0.10
TAKEN_BYTES = 1 * GB
# nvmlReturn_t, nvml.h
_NVML_CODES = {
    3: "not supported",
    15: "the GPU has fallen off the bus",
    16: "the GPU needs a reset",
    18: "driver and library versions differ",
    999: "unknown error",
}
# The power cap is normal under load and says nothing about health.
_SERIOUS = {
    "hw_slowdown": "hardware slowdown (heat or power)",
    "hw_thermal": "hardware slowdown for heat",
    "hw_power_brake": "power brake from outside",
    "sw_thermal": "driver slowdown for heat",
}
_ANOTHER = (
    "A serverless worker is replaced by Runpod. On a Pod: stop it and start another, and tell "
    "Runpod's support the Pod's id."
)

CODES = {
    "gpu.lost": "The driver cannot reach a GPU.",
    "gpu.ecc": "The GPU's memory has uncorrected errors.",
    "gpu.throttled": "The GPU is held back by heat or power.",
    "gpu.memory_taken": "Another process uses much of the GPU's memory.",
    "gpu.nvml_unavailable": "NVML, and with it memory, ECC and temperature, could not be asked.",
}


def check_gpu_health(
    facts: MachineFacts, settings: Settings, env: Mapping[str, str]
) -> list[Finding]:
    """Findings about GPUs that are there; nothing where none is expected or the driver hangs."""
    gpu = facts.gpu
    if gpu is None or gpu.silent_in or not gpu_expectation(gpu, settings, env).expected:
        return []
    found = [f for device in gpu.devices for f in _device(device, facts.comfyui_running)]
    if gpu.cuda.answered and not gpu.nvml.answered:
        why = gpu.nvml.missing or f"{gpu.nvml.failed} returned {gpu.nvml.code}"
        found.append(
            info(
                "gpu.nvml_unavailable",
                f"CUDA answers, but NVML does not ({why}): memory, ECC and temperature are "
                "unknown.",
                "Set NVIDIA_DRIVER_CAPABILITIES to `compute,utility`.",
            )
        )
    return found


def _device(device: GpuDevice, comfyui_running: bool) -> list[Finding]:
    if device.error_code is not None:
        return [_lost(device, device.error_code)]
    if not device.visible:
        return []
    checks = (_ecc(device), _throttled(device), _taken(device, comfyui_running))
    return [f for f in checks if f]


def _label(device: GpuDevice) -> str:
    return f"GPU {device.index} ({device.name or 'name unknown'})"


def _lost(device: GpuDevice, code: int) -> Finding:
    meaning = _NVML_CODES.get(code, "see nvmlReturn_t in nvml.h")
    return host_error(
        "gpu.lost",
        f"The driver cannot reach {_label(device)}: NVML says {code} ({meaning}).",
        _ANOTHER,
        nvml_error=code,
    )


def _ecc(device: GpuDevice) -> Finding | None:
    if not device.ecc_uncorrected:
        return None
    return host_error(
        "gpu.ecc",
        f"{_label(device)} has had {device.ecc_uncorrected} uncorrected memory error(s) since its "
        "driver was loaded: jobs fail or give wrong pictures.",
        _ANOTHER,
        ecc_uncorrected=device.ecc_uncorrected,
    )


def _throttled(device: GpuDevice) -> Finding | None:
    reasons = [_SERIOUS[r] for r in device.throttle if r in _SERIOUS]
    if not reasons:
        return None
    heat = f" at {device.temperature} °C" if device.temperature is not None else ""
    return warning(
        "gpu.throttled",
        f"{_label(device)} is slowed down{heat}: {', '.join(reasons)}.",
        "Jobs take longer on this machine. If it stays so, stop this worker (Workers tab > "
        "Terminate) and Runpod starts another.",
        throttle=list(device.throttle),
        temperature=device.temperature,
    )


def _taken(device: GpuDevice, comfyui_running: bool) -> Finding | None:
    if comfyui_running or device.memory_total is None or device.memory_free is None:
        return None
    taken = device.memory_total - device.memory_free
    if taken <= max(TAKEN_BYTES, TAKEN_SHARE * device.memory_total):
        return None
    pids = ", ".join(str(p.pid) for p in device.processes)
    whose = f" by process(es) {pids}" if pids else ""
    return warning(
        "gpu.memory_taken",
        f"{taken / GB:.1f} of {device.memory_total / GB:.0f} GB of {_label(device)} are taken"
        f"{whose} before ComfyUI starts.",
        "On a Pod: `nvidia-smi` lists the processes; end those you don't need. On Serverless it is "
        "somebody else's: stop this worker (Workers tab > Terminate) and Runpod starts another.",
        taken=taken,
        total=device.memory_total,
        processes=[p.pid for p in device.processes],
    )
