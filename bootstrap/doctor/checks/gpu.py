"""The GPU: is there one where one is expected, and does it really answer?

Whether one is expected is decided in this order; the first source that says something wins:

1. `GPU=required` or `GPU=none` (a setting of ours).
2. `--cpu` in COMFYUI_ARGS: the user chose the CPU.
3. RUNPOD_GPU_COUNT, which Runpod sets for the worker: a number above 0 or not.
4. /dev/nvidia*: the container was given a device.
5. NVIDIA_VISIBLE_DEVICES naming devices (`0,1`, `GPU-…`). `all` says nothing: CUDA base images
   have it baked in, and run on CPU endpoints too; `void` and `none` mean no GPU.

A GPU that answers is then judged by the driver's data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bootstrap.config import Settings
from bootstrap.core.findings import Finding, error, host_error, info, ok, warning
from bootstrap.core.text import GB, whole
from bootstrap.doctor.facts.gpu import GpuDevice, GpuFacts
from bootstrap.doctor.facts.machine import MachineFacts

_NO_DEVICES = ("", "void", "none")
# CUresult, cuda.h
CUDA_OUT_OF_MEMORY = 2
CUDA_NO_DEVICE = 100
_CUDA_CODES = {
    -1: "wrong bytes came back",
    CUDA_OUT_OF_MEMORY: "CUDA_ERROR_OUT_OF_MEMORY",
    3: "CUDA_ERROR_NOT_INITIALIZED",
    46: "CUDA_ERROR_DEVICE_UNAVAILABLE: another process holds it exclusively",
    CUDA_NO_DEVICE: "CUDA_ERROR_NO_DEVICE",
    101: "CUDA_ERROR_INVALID_DEVICE",
    214: "CUDA_ERROR_ECC_UNCORRECTABLE",
    700: "CUDA_ERROR_ILLEGAL_ADDRESS",
    719: "CUDA_ERROR_LAUNCH_FAILED",
    802: "CUDA_ERROR_SYSTEM_NOT_READY: the host's fabric manager does not run",
    803: "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
    804: "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE: the image's CUDA compatibility package is "
    "for data-centre GPUs only",
    999: "CUDA_ERROR_UNKNOWN",
}
# The image's own compatibility libraries cause this one; another machine of that kind won't help.
CUDA_COMPAT_NOT_SUPPORTED = 804
CODES = {
    "gpu.good": "The GPU is present and responds",
    "gpu.none": "There is no GPU, and none is expected",
    "gpu.unused": "There is a GPU, but `COMFYUI_ARGS` or `GPU` says not to use it",
    "gpu.absent": "A GPU is expected, but there is none",
    "gpu.fewer": "There are fewer GPUs than Runpod promised",
    "gpu.hidden": "`CUDA_VISIBLE_DEVICES` hides the GPU",
    "gpu.capabilities": "`NVIDIA_DRIVER_CAPABILITIES` keeps CUDA out of the container",
    "gpu.library_missing": "The GPU is present, but the driver's library is not",
    "gpu.driver_silent": "The driver did not respond in time",
    "gpu.probe_died": "The process that queried the driver died",
    "gpu.not_answering": "CUDA cannot use the GPU: it returned an error",
    "gpu.compat_package": "The image's CUDA compatibility package does not fit this GPU",
    "gpu.memory_full": "Other processes fill the GPU's memory: not even 4 KB could be allocated",
    "gpu.not_asked": "The GPU could not be examined",
    "gpu.cpu_flag_missing": "There is no GPU, and ComfyUI is not set to use the CPU",
    "gpu.lost": "The driver has lost contact with a GPU",
    "gpu.ecc": "The GPU's memory has uncorrected errors",
    "gpu.throttled": "Heat or power limits slow the GPU down",
    "gpu.memory_taken": "Another process uses much of the GPU's memory",
    "gpu.nvml_unavailable": "NVML does not work, so memory, ECC and temperature are unknown",
}


@dataclass(frozen=True)
class Expectation:
    """Whether a GPU is expected, and a clause that says why."""

    expected: bool
    why: str


def _needs_another(code: str, message: str, unless: str = "", /, **details: Any) -> Finding:
    """A fault of this machine's; `unless` is what else to try."""
    fix = (
        "A serverless worker is replaced by Runpod; if every worker reports this, choose another "
        f"GPU type or datacenter in Edit Endpoint. On a Pod: stop it and start another. {unless}"
    )
    return host_error(code, message, fix.rstrip(), **details)


def gpu_expectation(
    gpu: GpuFacts | None, settings: Settings, env: Mapping[str, str]
) -> Expectation:
    """Whether a GPU is expected, by the rules above."""
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
    """Whether ComfyUI is set to use the CPU."""
    return "--cpu" in settings.comfyui_args


def promised_gpus(env: Mapping[str, str]) -> int | None:
    """The number of GPUs that Runpod promises this worker; None if it says nothing."""
    text = env.get("RUNPOD_GPU_COUNT", "").strip()
    return whole(text)


def check_gpu(facts: MachineFacts, settings: Settings, env: Mapping[str, str]) -> list[Finding]:
    """Is there a GPU, if one is expected, and does it answer? At most one of these is an error."""
    gpu = facts.gpu
    if gpu is None:
        return [_not_asked(facts)]
    expectation = gpu_expectation(gpu, settings, env)
    if not expectation.expected:
        return _not_expected(gpu, settings, env, expectation.why)
    trouble = _trouble(gpu, facts.comfyui_running, env, expectation.why)
    if trouble:
        return [trouble]
    return [*_fewer(gpu, env), _good(gpu)]


def _not_asked(facts: MachineFacts) -> Finding:
    why = "; ".join(p for p in facts.problems if p.startswith("GPU")) or "no facts were gathered"
    return warning(
        "gpu.not_asked",
        f"The GPU could not be queried: {why}.",
        "Try again with a diagnostics request; on a Pod, `nvidia-smi` shows the driver's state.",
    )


def _not_expected(
    gpu: GpuFacts, settings: Settings, env: Mapping[str, str], why: str
) -> list[Finding]:
    if gpu.devices:
        return [
            warning(
                "gpu.unused",
                f"There is a GPU ({_names(gpu)}) that will not be used: {why}.",
                "Remove --cpu from COMFYUI_ARGS and GPU=none from the endpoint's environment "
                "variables, or use a CPU endpoint, which costs less.",
            )
        ]
    found = [info("gpu.none", f"No GPU, and none is expected: {why}.")]
    # COMFYUI_ARGS that were refused for another flag have their own finding.
    if not wants_cpu(settings) and "--cpu" not in env.get("COMFYUI_ARGS", "").split():
        found.append(
            warning(
                "gpu.cpu_flag_missing",
                "There is no GPU, and COMFYUI_ARGS does not have --cpu, without which ComfyUI "
                "exits at start with 'Found no NVIDIA driver'.",
                "Set COMFYUI_ARGS to `--cpu` (add it to the flags that are there). If there should "
                "be a GPU, set GPU=required, and choose a GPU in Edit Endpoint.",
            )
        )
    return found


def _trouble(
    gpu: GpuFacts, comfyui_running: bool, env: Mapping[str, str], why: str
) -> Finding | None:
    if gpu.silent_in:
        silent = f"The NVIDIA driver did not answer in {gpu.timeout:g} s (in {gpu.silent_in})."
        return _needs_another("gpu.driver_silent", silent, call=gpu.silent_in)
    if gpu.died:
        died = f"The process that queried the NVIDIA driver ended with {gpu.died}."
        return _needs_another("gpu.probe_died", died)
    if gpu.cuda.missing:
        return _library_missing(gpu, env, why)
    if gpu.cuda.failed:
        return _cuda_failed(gpu, comfyui_running, env, why)
    return None if gpu.visible else _none_visible(gpu, env, why)


def _library_missing(gpu: GpuFacts, env: Mapping[str, str], why: str) -> Finding:
    allowed = env.get("NVIDIA_DRIVER_CAPABILITIES", "").replace(" ", "").split(",")
    if gpu.devices and any(allowed) and not {"all", "compute"} & set(allowed):
        return error(
            "gpu.capabilities",
            f"The GPU ({_names(gpu)}) is there, but not CUDA: NVIDIA_DRIVER_CAPABILITIES is "
            f"`{','.join(allowed)[:80]}`.",
            "Set NVIDIA_DRIVER_CAPABILITIES to `compute,utility` in the endpoint's environment "
            "variables.",
        )
    if gpu.devices or gpu.device_files:
        missing = f"A GPU is there, but the driver's library is not ({gpu.cuda.missing})."
        return _needs_another("gpu.library_missing", missing)
    return _absent(why)


def _absent(why: str) -> Finding:
    return _needs_another(
        "gpu.absent",
        f"There is no GPU, although one is expected: {why}.",
        "If this is meant to be a CPU endpoint, set COMFYUI_ARGS to `--cpu`.",
    )


def _cuda_failed(
    gpu: GpuFacts, comfyui_running: bool, env: Mapping[str, str], why: str
) -> Finding | None:
    code = gpu.cuda.code if gpu.cuda.code is not None else -1
    if code == CUDA_NO_DEVICE:
        return _none_visible(gpu, env, why)
    if code == CUDA_OUT_OF_MEMORY:
        # Our own ComfyUI may fill it, as it should.
        return None if comfyui_running else _memory_full(gpu)
    said = f"{gpu.cuda.failed} returned {code} ({_CUDA_CODES.get(code, 'see CUresult in cuda.h')})"
    if code == CUDA_COMPAT_NOT_SUPPORTED:
        return error(
            "gpu.compat_package",
            f"CUDA cannot use the GPU ({_names(gpu)}): {said}.",
            "Choose only workers that have the image's CUDA version: Edit Endpoint > Advanced > "
            "Allowed CUDA versions; or `rm -rf /usr/local/cuda/compat` when building the image.",
            cuda_error=code,
        )
    unusable = f"CUDA cannot use the GPU ({_names(gpu)}): {said}."
    return _needs_another("gpu.not_answering", unusable, cuda_error=code, call=gpu.cuda.failed)


def _memory_full(gpu: GpuFacts) -> Finding:
    free = ", ".join(
        f"{d.memory_free / GB:.1f} of {d.memory_total / GB:.0f} GiB free"
        for d in gpu.visible
        if d.memory_free is not None and d.memory_total
    )
    return _needs_another(
        "gpu.memory_full",
        f"The GPU ({_names(gpu)}) has no memory left for this worker: {free or 'amount unknown'}.",
        "If something of yours runs there, such as another ComfyUI, end it first: `nvidia-smi` "
        "lists it.",
    )


def _none_visible(gpu: GpuFacts, env: Mapping[str, str], why: str) -> Finding:
    chosen = env.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None and gpu.devices:
        return error(
            "gpu.hidden",
            f"CUDA_VISIBLE_DEVICES is `{chosen[:80]}`, which hides the GPU ({_names(gpu)}).",
            "Remove CUDA_VISIBLE_DEVICES from the endpoint's environment variables, or set it "
            "to 0.",
        )
    if gpu.devices:
        unlisted = f"The driver has a GPU ({_names(gpu)}), but CUDA lists none."
        return _needs_another("gpu.not_answering", unlisted, cuda_error=gpu.cuda.code)
    return _absent(why)


def _fewer(gpu: GpuFacts, env: Mapping[str, str]) -> Iterator[Finding]:
    promised = promised_gpus(env)
    if promised is None or len(gpu.visible) >= promised:
        return
    yield warning(
        "gpu.fewer",
        f"RUNPOD_GPU_COUNT is {promised}, but CUDA lists {len(gpu.visible)} GPU(s).",
        "ComfyUI uses one GPU: set GPUs per worker to 1 in Edit Endpoint. If "
        "CUDA_VISIBLE_DEVICES is set, remove it.",
    )


def _good(gpu: GpuFacts) -> Finding:
    device = gpu.visible[0]
    memory = f", {device.memory_total / GB:.0f} GiB" if device.memory_total else ""
    cuda = f"CUDA {gpu.cuda_driver_version}" if gpu.cuda_driver_version else "CUDA"
    proof = "stores and returns bytes" if gpu.touched else "listed by CUDA (not touched)"
    return ok(
        "gpu.good",
        f"GPU: {_names(gpu)}{memory}, driver {gpu.driver_version or 'unknown'}, {cuda}; {proof}, "
        f"asked in {gpu.seconds:.1f} s.",
        seconds=gpu.seconds,
    )


def _names(gpu: GpuFacts) -> str:
    names = [d.name or f"GPU {d.index}" for d in gpu.devices]
    return ", ".join(dict.fromkeys(names)) or "name unknown"


# The driver itself uses 0.3 to 0.7 GB; more than this share belongs to another process.
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
    "hw_power_brake": "external power brake",
    "sw_thermal": "driver slowdown for heat",
}


def check_gpu_health(
    facts: MachineFacts, settings: Settings, env: Mapping[str, str]
) -> list[Finding]:
    """Findings about GPUs; nothing if none is expected or the driver hangs."""
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
    lost = f"The driver cannot reach {_label(device)}: NVML says {code} ({meaning})."
    return _needs_another("gpu.lost", lost, nvml_error=code)


def _ecc(device: GpuDevice) -> Finding | None:
    if not device.ecc_uncorrected:
        return None
    return _needs_another(
        "gpu.ecc",
        f"{_label(device)} has had {device.ecc_uncorrected} uncorrected memory error(s) since its "
        "driver was loaded: jobs fail or give wrong pictures.",
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
        f"{taken / GB:.1f} of {device.memory_total / GB:.0f} GiB of {_label(device)} are taken"
        f"{whose} before ComfyUI starts.",
        "On a Pod: `nvidia-smi` lists the processes; end those you don't need. On Serverless it is "
        "another process's: stop this worker (Workers tab > Terminate) and Runpod starts another.",
        taken=taken,
        total=device.memory_total,
        processes=[p.pid for p in device.processes],
    )
