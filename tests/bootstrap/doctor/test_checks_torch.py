"""torch versus driver and GPU: NVIDIA's tables, and each finding with its fix."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bootstrap.core.findings import Severity
from bootstrap.doctor.checks.requirements import CODES, check_torch_build
from bootstrap.environment.python_probe import TorchBuild, oldest_driver, version_numbers
from tests.support.check_cases import DEVICE, NO_GPU, Case, assert_case, device, gpu, look

OK, INFO, WARNING, ERROR = Severity
TORCH_CODES = {code for code in CODES if code.startswith("gpu.")}
CU118 = TorchBuild("2.4.1+cu118", "11.8")
CU130 = TorchBuild("2.10.0+cu130", "13.0")
BLACKWELL = device(name="NVIDIA GeForce RTX 5090", compute_capability=(12, 0))
VOLTA = gpu(
    devices=(replace(DEVICE, name="Tesla V100", compute_capability=(7, 0)),),
    driver_version="580.82.07",
)

CASES = [
    Case("gpu.torch_good", OK),
    Case("gpu.torch_unknown", INFO, {"torch": None}),
    Case("gpu.torch_without_cuda", ERROR, {"torch": TorchBuild("2.13.0+cpu", None)}),
    Case("gpu.torch_without_cuda", ERROR, {"torch": TorchBuild("2.4", None, hip="6.1")}),
    Case("gpu.driver_old", ERROR, {"torch": CU130}, host=True),
    Case("gpu.torch_too_old", ERROR, {**BLACKWELL, "torch": CU118}, fixed=BLACKWELL),
    Case("gpu.torch_too_new", ERROR, {**VOLTA, "torch": CU130}, fixed=VOLTA),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.code)
def test_finding(case: Case) -> None:
    assert_case(case)


def test_every_code_has_a_case() -> None:
    assert {case.code for case in CASES} == TORCH_CODES


@pytest.mark.parametrize(
    ("cuda", "driver"),
    [
        ("9.2", None),
        ("10.2", (440, 33)),
        ("11.0", (450, 80, 2)),
        ("11.8", (450, 80, 2)),
        ("12.8", (525, 60, 13)),
        ("13.1", (580, 65, 6)),
        ("14.0", (580, 65, 6)),
    ],
)
def test_the_oldest_driver(cuda: str, driver: tuple[int, ...] | None) -> None:
    assert oldest_driver(version_numbers(cuda)) == driver


@pytest.mark.parametrize(
    ("driver", "fits"),
    [("525.60.13", True), ("525.60.11", False), ("570.124.06", True), ("470.82", False)],
)
def test_drivers_are_compared_as_numbers(driver: str, fits: bool) -> None:
    found = check_torch_build(TorchBuild("2.4", "12.1"), gpu(driver_version=driver)["gpu"])
    assert ("gpu.driver_old" not in {f.code for f in found}) is fits


def test_the_fix_names_the_interpreter() -> None:
    found = look({"torch": TorchBuild("2.9+cpu", None)}, {"COMFYUI_PYTHON": "/v/bin/python"})
    (finding,) = [f for f in found if f.code == "gpu.torch_without_cuda"]
    assert "`/v/bin/python -m pip install" in finding.fix


def test_no_gpu_no_comparison() -> None:
    env = {"RUNPOD_GPU_COUNT": "0", "COMFYUI_ARGS": "--cpu"}
    found = look({"gpu": NO_GPU, "torch": TorchBuild("2.13.0+cpu", None)}, env)
    assert not {f.code for f in found} & TORCH_CODES


@pytest.mark.parametrize(
    ("cuda", "capability", "code"),
    [
        ("12.8", (12, 0), "gpu.torch_good"),
        ("12.7", (12, 0), "gpu.torch_too_old"),
        ("11.8", (9, 0), "gpu.torch_good"),
        ("11.7", (9, 0), "gpu.torch_too_old"),
        ("13.0", (7, 5), "gpu.torch_good"),
        ("13.0", (7, 0), "gpu.torch_too_new"),
        ("12.8", (7, 0), "gpu.torch_good"),
    ],
)
def test_without_a_list_the_cuda_version_decides(
    cuda: str, capability: tuple[int, int], code: str
) -> None:
    facts = gpu(
        devices=(replace(DEVICE, compute_capability=capability),), driver_version="580.82.07"
    )
    (finding,) = check_torch_build(TorchBuild("2.9", cuda), facts["gpu"])
    assert finding.code == code


def test_messages_carry_the_values() -> None:
    (old,) = check_torch_build(TorchBuild("2.6", "12.4"), BLACKWELL["gpu"])
    assert "RTX 5090 (compute capability 12.0)" in old.message
    (rocm,) = check_torch_build(TorchBuild("2.4", None, hip="6.1"), BLACKWELL["gpu"])
    assert "for AMD (ROCm)" in rocm.message
