"""Machine and memory: each finding is produced by facts, and gone once its fix is followed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bootstrap.config import Settings
from bootstrap.core.container_limits import CpuFacts
from bootstrap.core.findings import Severity
from bootstrap.doctor.checks import machine
from bootstrap.doctor.facts.machine import ClockFacts, MachineFacts
from tests.support.check_cases import DISK, GB, HEALTHY, NOW, Case, assert_case, look

OK, INFO, WARNING, ERROR = Severity
MB = 1024**2
assert HEALTHY.memory and HEALTHY.shm
SMALL = replace(HEALTHY.memory, limit=3 * GB, available=2 * GB, source="cgroup v1")
FULL = replace(DISK, path="/tmp", device=2, free=63 * MB, total=5 * GB)

CASES = [
    Case("machine.good", OK),
    Case("memory.good", OK),
    Case("machine.probe_failed", WARNING, {"problems": ("CPU: ValueError: of a test",)}),
    Case(
        "machine.temp_unusable",
        ERROR,
        {"temp": None, "problems": ("temp folder: FileNotFoundError: no usable folder",)},
        host=True,
    ),
    Case("machine.disk_read_only", ERROR, {"temp": replace(FULL, read_only=True)}, host=True),
    Case("machine.disk_full", ERROR, {"temp": FULL}, host=True),
    Case("machine.disk_low", WARNING, {"temp": replace(FULL, free=2 * GB - 1)}),
    Case("machine.inodes_low", WARNING, {"root_disk": replace(DISK, inodes_free=9_999)}),
    Case("machine.shm_small", INFO, {"shm": replace(HEALTHY.shm, total=63 * MB)}),
    Case("machine.locks_unusable", ERROR, {"locks": "Read-only file system"}, host=True),
    Case("machine.open_files_low", WARNING, {"open_files": (1024, None)}),
    Case("machine.clock_wrong", ERROR, {"clock": ClockFacts(0.0, NOW)}, host=True),
    Case("machine.clock_behind", WARNING, {"clock": ClockFacts(NOW, NOW + 90_000)}),
    Case("machine.python_old", ERROR, {"python": "3.9.18"}),
    Case("machine.cpu_few", INFO, {"cpu": CpuFacts(1.5, 64, 64, "cgroup v2")}),
    Case("memory.limit_small", WARNING, {"memory": SMALL}),
    Case("memory.available_low", WARNING, {"memory": replace(HEALTHY.memory, available=GB - 1)}),
    Case("memory.oom_killed", WARNING, {"memory": replace(HEALTHY.memory, oom_kills=2)}),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.code)
def test_finding(case: Case) -> None:
    assert_case(case)


def test_every_code_has_a_case() -> None:
    assert {case.code for case in CASES} == set(machine.CODES)


def test_the_bounds_themselves_are_fine() -> None:
    disk = replace(DISK, free=2 * GB, inodes_free=10_000)
    assert HEALTHY.memory and HEALTHY.shm
    found = look(
        {
            "root_disk": disk,
            "temp": replace(disk, inodes_total=0, inodes_free=0),  # btrfs counts no inodes
            "open_files": (4096, 4096),
            "shm": replace(HEALTHY.shm, total=64 * MB),
            "clock": ClockFacts(NOW, NOW + 86_400),
            "memory": replace(HEALTHY.memory, limit=4 * GB, available=GB, oom_kills=None),
            "cpu": CpuFacts(None, 2, 64, "affinity"),
            "python": "3.10.0",
        },
        {},
    )
    assert {f.severity for f in found} == {OK}


def test_one_disk_is_reported_once() -> None:
    low = replace(DISK, free=GB)
    found = look({"root_disk": low, "temp": replace(low, path="/tmp")}, {})
    assert [f.code for f in found].count("machine.disk_low") == 1


def test_a_read_only_root_is_a_choice_where_temp_is_elsewhere() -> None:
    found = look(
        {"root_disk": replace(DISK, read_only=True, free=0), "temp": replace(DISK, device=2)}, {}
    )
    assert all(f.severity is OK for f in found)


def test_unlimited_memory_is_called_the_machines() -> None:
    assert HEALTHY.memory
    found = look({"memory": replace(HEALTHY.memory, source="/proc/meminfo")}, {})
    (good,) = [f for f in found if f.code == "memory.good"]
    assert "no cgroup limit" in good.message


def test_facts_that_could_not_be_had_break_no_check() -> None:
    facts = MachineFacts(python="3.11.0", problems=("memory: ValueError: x",))
    assert machine.check_memory(facts, Settings(), {}) == []
    found = machine.check_machine(facts, Settings(), {})
    assert [f.code for f in found] == ["machine.probe_failed"]


@pytest.mark.parametrize(("free", "code"), [(64 * MB, "disk_low"), (64 * MB - 1, "disk_full")])
def test_where_low_ends_and_full_begins(free: int, code: str) -> None:
    found = look({"temp": replace(FULL, free=free)}, {})
    assert {f.code for f in found if "disk" in f.code} == {f"machine.{code}"}


@pytest.mark.parametrize(("hard", "shown"), [(None, "no limit"), (4096, "4096")])
def test_the_hard_limit_is_reported(hard: int | None, shown: str) -> None:
    (finding,) = [f for f in look({"open_files": (1024, hard)}, {}) if f.fix]
    assert f"(hard limit: {shown})" in finding.message
