"""Cases for the checks of machine and environment: what is broken, what is found, what fixes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from bootstrap.config import Settings
from bootstrap.core.container_limits import CpuFacts, MemoryFacts
from bootstrap.core.findings import Finding, Severity
from bootstrap.doctor.checks.allocator import check_allocator
from bootstrap.doctor.checks.gpu import check_gpu, check_gpu_health
from bootstrap.doctor.checks.machine import check_machine, check_memory
from bootstrap.doctor.checks.requirements import check_torch
from bootstrap.doctor.checks.tokens import check_tokens
from bootstrap.doctor.checks.variables import check_environment, check_runpod
from bootstrap.doctor.facts.gpu import DriverPart, GpuDevice, GpuFacts
from bootstrap.doctor.facts.machine import ClockFacts, DiskFacts, MachineFacts
from bootstrap.environment.python_probe import TorchBuild

GB = 1024**3
CHECKS = (
    check_machine,
    check_memory,
    check_gpu,
    check_gpu_health,
    check_torch,
    check_allocator,
    check_tokens,
    check_environment,
    check_runpod,
)
# Autumn 2026, and a file from the day before.
NOW = 1_795_500_000.0
DISK = DiskFacts("/", 50 * GB, 40 * GB, 10**6, 9 * 10**5, False, 1)
DEVICE = GpuDevice(
    index=0,
    name="NVIDIA GeForce RTX 4090",
    uuid="GPU-01010101-0101-0101-0101-010101010101",
    memory_total=24 * GB,
    memory_free=23 * GB + GB // 2,
    compute_capability=(8, 9),
    ecc_uncorrected=0,
    temperature=41,
)
GPU = GpuFacts(
    device_files=("nvidia0", "nvidiactl"),
    devices=(DEVICE,),
    driver_version="570.124.06",
    cuda_driver_version="12.8",
    nvml=DriverPart(answered=True),
    cuda=DriverPart(answered=True),
    touched=True,
    seconds=0.2,
)
NO_GPU = GpuFacts(
    nvml=DriverPart(missing="libnvidia-ml.so.1: cannot open"),
    cuda=DriverPart(missing="libcuda.so.1: cannot open"),
)
HEALTHY = MachineFacts(
    gpu=GPU,
    memory=MemoryFacts(64 * GB, 50 * GB, 20 * GB, 6 * GB, 512 * GB, 300 * GB, "cgroup v2", 0),
    cpu=CpuFacts(8.0, 64, 64, "cgroup v2"),
    shm=replace(DISK, path="/dev/shm", total=16 * GB, free=16 * GB),
    root_disk=DISK,
    temp=replace(DISK, path="/tmp", device=2),
    open_files=(65536, 65536),
    clock=ClockFacts(NOW, NOW - 86_400),
    torch=TorchBuild("2.9.1+cu128", "12.8"),
    python="3.11.9",
    kernel="6.8.0",
    architecture="x86_64",
)
ENV = {"RUNPOD_GPU_COUNT": "1", "MALLOC_ARENA_MAX": "2"}


@dataclass(frozen=True)
class Case:
    """`code` is found with `facts` changed and `env` set; with `fixed` and `cured` it is gone.

    None as a value in `env` and `cured` removes a variable. `fixed` and `cured` are all that still
    differs from the healthy machine and environment after the fix.
    """

    code: str
    severity: Severity
    facts: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, str | None] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    cured: Mapping[str, str | None] = field(default_factory=dict)
    host: bool = False


def gpu(**changes: Any) -> dict[str, Any]:
    """The healthy GPU facts with changes, as a change of machine facts."""
    return {"gpu": replace(GPU, **changes)}


def device(**changes: Any) -> dict[str, Any]:
    """The healthy device with changes, as a change of machine facts."""
    return gpu(devices=(replace(DEVICE, **changes),))


def look(facts: Mapping[str, Any], env: Mapping[str, str | None]) -> list[Finding]:
    """The findings of all checks with these changes."""
    whole = {k: v for k, v in {**ENV, **env}.items() if v is not None}
    settings, wrong = Settings.from_env(whole)
    assert not wrong, wrong
    machine = replace(HEALTHY, **facts)
    return [finding for check in CHECKS for finding in check(machine, settings, whole)]


def assert_case(case: Case) -> None:
    """The finding is there; a warning or error is the only one and has a fix; fixed, it is gone."""
    found = look(case.facts, case.env)
    (finding,) = [f for f in found if f.code == case.code]
    assert (finding.severity, finding.host_fault) == (case.severity, case.host), finding
    if case.severity in (Severity.WARNING, Severity.ERROR):
        assert finding.fix, finding
        serious = [f.code for f in found if f.severity.rank >= Severity.WARNING.rank]
        assert serious == [case.code], serious
    after = look(case.fixed, case.cured)
    if case.severity is not Severity.OK:
        assert case.code not in {f.code for f in after}
    assert [f for f in after if f.severity.rank >= Severity.WARNING.rank] == []
