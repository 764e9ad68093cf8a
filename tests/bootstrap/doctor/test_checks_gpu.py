"""The GPU: each finding from facts, gone once fixed, and end to end from a fake driver."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bootstrap.config import Settings
from bootstrap.core.findings import Outcome, Severity, outcome_of
from bootstrap.doctor.checks import gpu as checks
from bootstrap.doctor.checks.gpu import gpu_expectation
from bootstrap.doctor.facts.gpu import DriverPart, GpuFacts, GpuProcess, gather_gpu
from tests.support.check_cases import (
    DEVICE,
    GB,
    GPU,
    HEALTHY,
    NO_GPU,
    Case,
    assert_case,
    device,
    gpu,
    look,
)
from tests.support.fake_driver import fake_driver

OK, INFO, WARNING, ERROR = Severity
ANSWERED = DriverPart(answered=True)
NO_LIBRARY = DriverPart(missing="libcuda.so.1: cannot open shared object file")
CPU = {"RUNPOD_GPU_COUNT": None, "COMFYUI_ARGS": "--cpu"}


def failed(call: str, code: int) -> dict[str, Any]:
    return gpu(cuda=DriverPart(failed=call, code=code), touched=False)


CASES = [
    Case("gpu.good", OK),
    Case("gpu.none", INFO, {"gpu": NO_GPU}, CPU),
    Case("gpu.unused", WARNING, {}, {"COMFYUI_ARGS": "--cpu"}),
    Case("gpu.unused", WARNING, {}, {"GPU": "none"}),
    Case("gpu.absent", ERROR, {"gpu": NO_GPU}, fixed={"gpu": NO_GPU}, cured=CPU, host=True),
    Case("gpu.fewer", WARNING, {}, {"RUNPOD_GPU_COUNT": "2"}),
    Case(
        "gpu.hidden",
        ERROR,
        gpu(devices=(replace(DEVICE, visible=False),), cuda=DriverPart(failed="cuInit", code=100)),
        {"CUDA_VISIBLE_DEVICES": ""},
    ),
    Case(
        "gpu.capabilities",
        ERROR,
        gpu(cuda=NO_LIBRARY, touched=None),
        {"NVIDIA_DRIVER_CAPABILITIES": "utility"},
        cured={"NVIDIA_DRIVER_CAPABILITIES": "compute,utility"},
    ),
    Case("gpu.library_missing", ERROR, gpu(cuda=NO_LIBRARY, touched=None), host=True),
    Case("gpu.driver_silent", ERROR, gpu(silent_in="cuInit"), host=True),
    Case("gpu.probe_died", ERROR, gpu(died="exit status -11 in cuInit"), host=True),
    Case("gpu.not_answering", ERROR, failed("cuInit", 999), host=True),
    Case("gpu.not_answering", ERROR, failed("cuMemcpyDtoH_v2", 214), host=True),
    Case("gpu.not_answering", ERROR, failed("compare", -1), host=True),
    Case("gpu.not_answering", ERROR, failed("cuInit", 100), host=True),
    Case("gpu.compat_package", ERROR, failed("cuInit", 804)),
    Case("gpu.memory_full", ERROR, failed("cuMemAlloc_v2", 2), host=True),
    Case("gpu.not_asked", WARNING, {"gpu": None, "problems": ()}),
    Case(
        "gpu.cpu_flag_missing",
        WARNING,
        {"gpu": NO_GPU},
        {"RUNPOD_GPU_COUNT": "0"},
        fixed={"gpu": NO_GPU},
        cured={"RUNPOD_GPU_COUNT": "0", "COMFYUI_ARGS": "--cpu"},
    ),
    Case("gpu.lost", ERROR, gpu(devices=(DEVICE, replace(DEVICE, error_code=15))), host=True),
    Case("gpu.ecc", ERROR, device(ecc_uncorrected=3), host=True),
    Case("gpu.throttled", WARNING, device(throttle=("hw_thermal",), temperature=94)),
    Case("gpu.memory_taken", WARNING, device(memory_free=20 * GB)),
    Case("gpu.nvml_unavailable", INFO, gpu(nvml=DriverPart(missing="libnvidia-ml.so.1: no"))),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.code)
def test_finding(case: Case) -> None:
    assert_case(case)


def test_a_cpu_flag_among_refused_arguments_is_not_missed() -> None:
    env = {"RUNPOD_GPU_COUNT": "0", "COMFYUI_ARGS": "--cpu --port 9000"}
    settings, refused = Settings.from_env(env)
    assert refused
    found = checks.check_gpu(replace(HEALTHY, gpu=NO_GPU), settings, env)
    assert [f.code for f in found] == ["gpu.none"]


def test_every_code_has_a_case() -> None:
    assert {case.code for case in CASES} == set(checks.CODES)


@pytest.mark.parametrize(
    ("facts", "env", "expected"),
    [
        (NO_GPU, {}, False),
        (NO_GPU, {"RUNPOD_GPU_COUNT": "1"}, True),
        (NO_GPU, {"RUNPOD_GPU_COUNT": "0", "NVIDIA_VISIBLE_DEVICES": "0"}, False),
        (NO_GPU, {"RUNPOD_GPU_COUNT": "two"}, False),
        (NO_GPU, {"NVIDIA_VISIBLE_DEVICES": "GPU-1234"}, True),
        (NO_GPU, {"NVIDIA_VISIBLE_DEVICES": "all"}, False),
        (NO_GPU, {"NVIDIA_VISIBLE_DEVICES": "void"}, False),
        (replace(NO_GPU, device_files=("nvidia0",)), {}, True),
        (GPU, {"COMFYUI_ARGS": "--cpu", "RUNPOD_GPU_COUNT": "1"}, False),
        (NO_GPU, {"GPU": "required", "COMFYUI_ARGS": "--cpu"}, True),
        (GPU, {"GPU": "none", "RUNPOD_GPU_COUNT": "1"}, False),
        (None, {"RUNPOD_GPU_COUNT": "1"}, True),
    ],
)
def test_what_makes_a_gpu_endpoint(
    facts: GpuFacts | None, env: dict[str, str], expected: bool
) -> None:
    settings, _ = Settings.from_env(env)
    assert gpu_expectation(facts, settings, env).expected is expected


def outcome(env: dict[str, str], extra: dict[str, str], **options: Any) -> tuple[Outcome, set[str]]:
    """From a driver's answers to the outcome of the boot."""
    answer = gather_gpu({**env, **extra}, Path("/nowhere"), timeout=options.pop("timeout", 10))
    found = look({"gpu": answer, **options}, extra)
    return outcome_of(found), {f.code for f in found if f.severity.rank >= WARNING.rank}


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ({}, set()),
        ({"FAIL": "cuInit:100"}, {"gpu.not_answering"}),
        ({"FAIL": "cuInit:999"}, {"gpu.not_answering"}),
        ({"FAIL": "cuMemsetD8_v2:214"}, {"gpu.not_answering"}),
        ({"HANG": "cuInit"}, {"gpu.driver_silent"}),
        ({"CRASH": "cuInit"}, {"gpu.probe_died"}),
        ({"ECC": "1"}, {"gpu.ecc"}),
        ({"WRONG_BYTES": "1"}, {"gpu.not_answering"}),
        ({"DEVICES": "2", "LOST": "1"}, {"gpu.lost"}),
        ({"FAIL": "cuMemAlloc_v2:2"}, {"gpu.memory_full"}),
    ],
)
def test_a_host_fault_makes_the_worker_unfit(answers: dict[str, str], expected: set[str]) -> None:
    result, codes = outcome(fake_driver(**answers), {}, timeout=1)
    assert codes == expected
    assert result is (Outcome.UNFIT if expected else Outcome.READY)


def test_no_driver_at_all_on_a_gpu_endpoint(tmp_path: Path) -> None:
    assert outcome({"LD_LIBRARY_PATH": str(tmp_path)}, {}) == (Outcome.UNFIT, {"gpu.absent"})


def test_no_driver_at_all_on_a_cpu_endpoint(tmp_path: Path) -> None:
    extra = {"COMFYUI_ARGS": "--cpu"}
    assert outcome({"LD_LIBRARY_PATH": str(tmp_path)}, extra) == (Outcome.READY, set())


def test_a_gpu_hidden_by_a_variable_is_the_users_to_fix() -> None:
    result, codes = outcome(fake_driver(), {"CUDA_VISIBLE_DEVICES": "-1"})
    assert (result, codes) == (Outcome.DEGRADED, {"gpu.hidden"})


def test_memory_taken_by_another_process_names_it() -> None:
    env = fake_driver(USED_MB="12000", PIDS="4711")
    answer = gather_gpu(env, Path("/nowhere"))
    (finding,) = [f for f in look({"gpu": answer}, {}) if f.code == "gpu.memory_taken"]
    assert "4711" in finding.message and "11.7 of 24 GiB" in finding.message


def test_memory_taken_by_our_own_comfyui_is_what_it_is_for() -> None:
    full = gpu(
        devices=(replace(DEVICE, memory_free=0, processes=(GpuProcess(7, None),)),),
        cuda=DriverPart(failed="cuDevicePrimaryCtxRetain", code=2),
    )
    found = look({**full, "comfyui_running": True}, {})
    assert outcome_of(found) is Outcome.READY
    assert "gpu.memory_taken" not in {f.code for f in found}


def test_a_power_cap_is_normal() -> None:
    assert outcome_of(look(device(throttle=("sw_power_cap",)), {})) is Outcome.READY
    assert not [f for f in look(device(throttle=("sw_power_cap",)), {}) if f.fix]


def test_a_cpu_endpoint_is_not_reported_off_for_a_broken_gpu() -> None:
    found = look({**gpu(silent_in="cuInit", devices=())}, {"GPU": "none", "COMFYUI_ARGS": "--cpu"})
    assert outcome_of(found) is Outcome.READY


def message(facts: dict[str, Any], code: str) -> str:
    (finding,) = [f for f in look(facts, {}) if f.code == code]
    return finding.message


def test_the_good_news_says_what_was_proved() -> None:
    good = message({}, "gpu.good")
    assert "RTX 4090, 24 GiB, driver 570.124.06, CUDA 12.8; stores and returns bytes" in good
    good = message(gpu(touched=None, driver_version=None, cuda_driver_version=None), "gpu.good")
    assert "driver unknown, CUDA; listed by CUDA (not touched)" in good


def test_messages_carry_the_values() -> None:
    full = failed("cuMemAlloc_v2", 2)
    assert "23.5 of 24 GiB free" in message(full, "gpu.memory_full")
    unknown = {"gpu": replace(full["gpu"], devices=(replace(DEVICE, memory_free=None),))}
    assert "amount unknown" in message(unknown, "gpu.memory_full")
    hot = device(throttle=("hw_thermal",), temperature=94)
    assert "slowed down at 94 °C: hardware slowdown for heat" in message(hot, "gpu.throttled")
    hot = device(throttle=("hw_thermal",), temperature=None, name=None)
    assert "GPU 0 (name unknown) is slowed down: " in message(hot, "gpu.throttled")
    failing = gpu(nvml=DriverPart(failed="nvmlInit_v2", code=18))
    assert "nvmlInit_v2 returned 18" in message(failing, "gpu.nvml_unavailable")
    nothing = {"gpu": None, "problems": ("GPU: OSError: no processes",)}
    assert "GPU: OSError: no processes" in message(nothing, "gpu.not_asked")


def test_a_device_file_without_any_library_is_a_broken_host() -> None:
    facts = {"gpu": replace(NO_GPU, device_files=("nvidia0",))}
    assert "gpu.library_missing" in {f.code for f in look(facts, {})}


def test_a_tenth_of_the_memory_may_be_taken() -> None:
    facts = device(memory_total=20 * GB, memory_free=18 * GB)
    assert outcome_of(look(facts, {})) is Outcome.READY
    assert "gpu.memory_taken" not in {f.code for f in look(facts, {})}
