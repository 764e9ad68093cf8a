"""Does ComfyUI's torch fit this driver and this GPU?"""

from __future__ import annotations

from collections.abc import Mapping

from bootstrap.config import Settings
from bootstrap.core.findings import Finding, error, host_error, info, ok
from bootstrap.doctor.checks.gpu import gpu_expectation
from bootstrap.doctor.facts.gpu import GpuDevice, GpuFacts
from bootstrap.doctor.facts.machine import MachineFacts
from bootstrap.environment.torch_build import TorchBuild, oldest_driver, version_numbers

# The first CUDA whose compiler knows GPUs of that compute capability, where a torch without code
# for the whole generation cannot run at all: 9 Hopper, 10 and 12 Blackwell. Ada (8.9) runs
# Ampere's code. Source: the compiler's "new features" in the CUDA release notes 11.8 and 12.8.
FIRST_CUDA = {8: (11, 0), 9: (11, 8), 10: (12, 8), 11: (13, 0), 12: (12, 8)}
# CUDA 13 removed Maxwell, Pascal and Volta. Source: CUDA Toolkit 13.0 release notes.
OLDEST_CAPABILITY_OF_13 = (7, 5)

CODES = {
    "gpu.torch_good": "ComfyUI's torch fits driver and GPU.",
    "gpu.torch_unknown": "ComfyUI's torch could not be found, so it was not compared.",
    "gpu.torch_without_cuda": "ComfyUI's torch is a build without CUDA on a GPU machine.",
    "gpu.driver_old": "The driver is too old for the CUDA that ComfyUI's torch was built with.",
    "gpu.torch_too_old": "ComfyUI's torch has no code for this GPU, which is newer.",
    "gpu.torch_too_new": "ComfyUI's torch has no code for this GPU any more.",
}


def check_torch(facts: MachineFacts, settings: Settings, env: Mapping[str, str]) -> list[Finding]:
    """Findings about torch against driver and GPU; nothing where no GPU is expected or there."""
    gpu = facts.gpu
    if gpu is None or not gpu.visible or not gpu_expectation(gpu, settings, env).expected:
        return []
    if facts.torch is None or facts.torch.version is None:
        return [info("gpu.torch_unknown", "ComfyUI's torch was not found, so not compared.")]
    python = str(settings.comfyui_python or "python")
    return check_torch_build(facts.torch, gpu, python)


def check_torch_build(build: TorchBuild, gpu: GpuFacts, python: str = "python") -> list[Finding]:
    """The same for one torch; `python` is the interpreter that fixes name."""
    if build.cuda is None:
        return [_without_cuda(build, python)]
    cuda = version_numbers(build.cuda)
    found = [f for f in (_driver(build, gpu, cuda),) if f]
    for device in gpu.visible:
        found += [f for f in (_capability(build, device, cuda, python),) if f]
    return found or [
        ok("gpu.torch_good", f"torch {build.version} (CUDA {build.cuda}) fits driver and GPU.")
    ]


def _without_cuda(build: TorchBuild, python: str) -> Finding:
    kind = "for AMD (ROCm)" if build.hip else "without CUDA"
    return error(
        "gpu.torch_without_cuda",
        f"ComfyUI's torch {build.version} is a build {kind}; ComfyUI ends at start with 'Torch not "
        "compiled with CUDA enabled'.",
        f"`{python} -m pip install --force-reinstall torch torchvision torchaudio` (on Linux that "
        "is the CUDA build), or set COMFYUI_ARGS to `--cpu`.",
        torch=build.version,
    )


def _driver(build: TorchBuild, gpu: GpuFacts, cuda: tuple[int, ...]) -> Finding | None:
    needed = oldest_driver(cuda)
    have = version_numbers(gpu.driver_version or "")
    if not needed or not have or have >= needed:
        return None
    wanted = ".".join(f"{n:02d}" for n in needed)
    # Another machine of the same endpoint may have a newer driver, so this one is unfit.
    return host_error(
        "gpu.driver_old",
        f"torch {build.version} is built for CUDA {build.cuda}, which needs driver {wanted} or "
        f"newer; this machine has {gpu.driver_version} (CUDA {gpu.cuda_driver_version}).",
        f"Let only machines with CUDA {build.cuda} or newer be chosen: Edit Endpoint > Advanced > "
        "Allowed CUDA versions (on a Pod: filter by CUDA version when deploying).",
        driver=gpu.driver_version,
        cuda=build.cuda,
    )


def _capability(
    build: TorchBuild, device: GpuDevice, cuda: tuple[int, ...], python: str
) -> Finding | None:
    capability = device.compute_capability
    if capability is None or _runs_on(cuda, capability):
        return None
    label = f"{device.name or 'this GPU'} (compute capability {capability[0]}.{capability[1]})"
    message = f"torch {build.version}, built for CUDA {build.cuda}, has no code for {label}"
    too_old = capability >= OLDEST_CAPABILITY_OF_13
    if too_old:
        first = ".".join(str(n) for n in FIRST_CUDA.get(capability[0], (13, 0)))
        return error(
            "gpu.torch_too_old",
            f"{message}: jobs fail with 'no kernel image is available for execution'.",
            f"Install a torch built for CUDA {first} or newer: `{python} -m pip install --upgrade "
            "torch torchvision torchaudio`; or choose an older GPU type in Edit Endpoint.",
            capability=list(capability),
        )
    return error(
        "gpu.torch_too_new",
        f"{message}: jobs fail with 'no kernel image is available for execution'.",
        f"Choose a newer GPU type in Edit Endpoint, or install an older torch: `{python} "
        "-m pip install 'torch<2.8' torchvision torchaudio`.",
        capability=list(capability),
    )


def _runs_on(cuda: tuple[int, ...], capability: tuple[int, int]) -> bool:
    first = FIRST_CUDA.get(capability[0], (0, 0))
    return cuda[:2] >= first and (cuda[:1] < (13,) or capability >= OLDEST_CAPABILITY_OF_13)
