"""The GPU prober against a fake driver: real libraries, real child processes, real hangs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bootstrap.doctor.facts import gpu
from bootstrap.doctor.facts.gpu import GpuFacts, gather_gpu
from tests.support.fake_driver import fake_driver

FIRST = "GPU-01010101-0101-0101-0101-010101010101"


def gather(env: dict[str, str], root: Path = Path("/nowhere"), **options: object) -> GpuFacts:
    return gather_gpu(env, root, **options)  # type: ignore[arg-type]


def test_a_machine_without_a_driver_is_reported_calmly(tmp_path: Path) -> None:
    facts = gather_gpu({"LD_LIBRARY_PATH": str(tmp_path), "PATH": "/bin"}, tmp_path)
    if facts.devices:
        pytest.skip("this machine has a GPU")
    assert facts.cuda.missing and "libcuda.so.1" in facts.cuda.missing
    assert facts.nvml.missing and "libnvidia-ml.so.1" in facts.nvml.missing
    assert (facts.silent_in, facts.died, facts.touched, facts.device_files) == (None,) * 3 + ((),)


def test_a_healthy_gpu_is_described_and_touched() -> None:
    facts = gather(fake_driver(PIDS="41,42", ECC="0", THROTTLE="0x4"))
    assert (facts.driver_version, facts.cuda_driver_version) == ("570.124.06", "12.8")
    assert facts.nvml.answered and facts.cuda.answered and facts.touched is True
    (device,) = facts.devices
    assert (device.name, device.uuid, device.visible) == ("NVIDIA Fake 4090", FIRST, True)
    assert (device.memory_total, device.memory_free) == (24576 << 20, (24576 - 400) << 20)
    assert (device.compute_capability, device.ecc_uncorrected) == ((8, 9), 0)
    assert (device.throttle, device.temperature) == (("sw_power_cap",), 41)
    assert [(p.pid, p.used) for p in device.processes] == [(41, 5 << 30), (42, None)]
    assert facts.seconds > 0


def test_an_old_card_without_ecc_says_so() -> None:
    (device,) = gather(fake_driver()).devices
    assert device.ecc_uncorrected is None


def given_up_in(call: str) -> GpuFacts:
    """Facts of a driver that hangs in `call`, given the time to come that far."""
    timeout = 0.5
    while (facts := gather(fake_driver(HANG=call), timeout=timeout)).silent_in != call:
        timeout *= 2
        assert timeout < 30, facts
    assert facts.seconds < timeout + 9, "it hangs for ever"
    return facts


def test_a_hanging_driver_is_left_after_the_timeout_with_the_call_it_hangs_in() -> None:
    facts = given_up_in("cuInit")
    assert facts.driver_version == "570.124.06"  # what NVML said before is kept
    assert not facts.cuda.answered


def test_a_hang_while_touching_keeps_what_was_known() -> None:
    facts = given_up_in("cuDevicePrimaryCtxRetain")
    assert facts.touched is False
    assert len(facts.visible) == 1


def test_a_child_that_cannot_be_killed_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Like a process in an uninterruptible call, which SIGKILL does not end."""
    monkeypatch.setattr(subprocess.Popen, "kill", lambda self: pids.append(self.pid))
    pids: list[int] = []
    assert given_up_in("nvmlInit_v2").touched is None
    for pid in pids:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def test_a_driver_that_crashes_takes_only_the_child_along() -> None:
    facts = gather(fake_driver(CRASH="nvmlInit_v2"))
    assert facts.died == "exit status -6 in nvmlInit_v2"
    assert facts.silent_in is None


@pytest.mark.parametrize(
    ("fault", "call", "code"),
    [
        ("cuInit:100", "cuInit", 100),
        ("cuInit:999", "cuInit", 999),
        ("cuMemAlloc_v2:2", "cuMemAlloc_v2", 2),
        ("cuMemcpyDtoH_v2:214", "cuMemcpyDtoH_v2", 214),
    ],
)
def test_an_error_of_cuda_is_kept_with_its_call(fault: str, call: str, code: int) -> None:
    facts = gather(fake_driver(FAIL=fault))
    assert (facts.cuda.failed, facts.cuda.code, facts.cuda.answered) == (call, code, False)
    assert facts.nvml.answered and facts.touched is not True


def test_wrong_bytes_are_a_failure() -> None:
    facts = gather(fake_driver(WRONG_BYTES="1"))
    assert (facts.cuda.failed, facts.cuda.code, facts.touched) == ("compare", -1, False)


def test_untouched_means_no_context() -> None:
    facts = gather(fake_driver(HANG="cuDevicePrimaryCtxRetain"), touch=False)
    assert (facts.touched, facts.silent_in) == (None, None)
    assert facts.cuda.answered


def test_cuda_visible_devices_decides_what_is_visible() -> None:
    env = {**fake_driver(DEVICES="3"), "CUDA_VISIBLE_DEVICES": "2,0"}
    assert [d.visible for d in gather(env).devices] == [True, False, True]
    hidden = gather({**fake_driver(DEVICES="2"), "CUDA_VISIBLE_DEVICES": "-1"})
    assert hidden.cuda.code == 100
    assert [d.visible for d in hidden.devices] == [False, False]


def test_cuda_visible_devices_by_uuid_is_read_where_cuda_does_not_come_that_far() -> None:
    env = fake_driver(DEVICES="2", FAIL="cuInit:999")
    assert [d.visible for d in gather(env).devices] == [True, True]
    chosen = gather({**env, "CUDA_VISIBLE_DEVICES": FIRST[:9]})
    assert [d.visible for d in chosen.devices] == [True, False]


def test_a_lost_device_does_not_hide_the_others() -> None:
    facts = gather(fake_driver(DEVICES="2", LOST="0"))
    assert [d.error_code for d in facts.devices] == [15, None]
    assert facts.devices[1].name


def test_cuda_alone_names_its_devices() -> None:
    facts = gather(fake_driver("cuda"))
    assert facts.nvml.missing and facts.touched
    assert [(d.name, d.compute_capability) for d in facts.devices] == [("NVIDIA Fake 4090", (8, 9))]


def test_device_files_are_listed(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    for name in ("nvidia0", "nvidiactl", "null"):
        (tmp_path / "dev" / name).touch()
    assert gather(fake_driver(), tmp_path).device_files == ("nvidia0", "nvidiactl")


def test_no_secret_reaches_the_child(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, str]] = []
    real = subprocess.Popen

    def spying(*args: object, **options: object) -> object:
        seen.append(options["env"])  # type: ignore[arg-type]
        return real(*args, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "Popen", spying)
    gather({**fake_driver(), "HF_TOKEN": "hf_marker-of-this-test", "PYTHONPATH": "/x"})
    assert seen and not {"HF_TOKEN", "PYTHONPATH"} & set(seen[0])


def test_the_probe_runs_alone_with_nothing_installed() -> None:
    probe = Path(gpu.__file__).with_name("gpu_probe.py")
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(probe), "--touch"],
        env=fake_driver(DEVICES="64"),
        capture_output=True,
        check=True,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines[-1] == {"done": True}
    assert len(next(li for li in lines if "devices" in li)["devices"]) == 64
