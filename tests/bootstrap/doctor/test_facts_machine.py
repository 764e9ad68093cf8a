"""Memory, CPU, disks, clock, LD_PRELOAD and torch, from trees laid out in a folder."""

from __future__ import annotations

import json
import os
import resource
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from bootstrap.core.container_limits import MemoryGauge, gather_cpu, gather_memory
from bootstrap.doctor.facts import machine
from bootstrap.doctor.facts.machine import gather_machine, look_at_preloads
from bootstrap.environment.python_probe import TorchBuild, look_at_venv, read_torch_build

GB = 1024**3
UNLIMITED_V1 = 9223372036854771712
V2_MOUNT = "30 20 0:26 {shown} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup rw,nsdelegate"


class Root:
    """A fake `/`."""

    def __init__(self, folder: Path, total: int = 64 * GB, available: int = 50 * GB) -> None:
        self.path = folder
        self.write(
            "proc/meminfo",
            f"MemTotal: {total // 1024} kB\nMemFree: 1 kB\nMemAvailable: {available // 1024} kB\n"
            "HugePages_Total: 0\n",
        )

    def write(self, path: str, text: object) -> None:
        target = self.path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(f"{text}\n")

    def v2(self, group: str = "/", shown: str = "/") -> None:
        self.write("proc/self/cgroup", f"0::{group}")
        self.write("proc/self/mountinfo", V2_MOUNT.format(shown=shown))

    def v1(self, group: str = "/", shown: str = "/") -> None:
        self.write("proc/self/cgroup", f"4:memory:{group}\n3:cpu,cpuacct:{group}\n0::/")
        lines = [
            f"35 31 0:32 {shown} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory",
            f"36 31 0:33 {shown} /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct",
            "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw",
        ]
        self.write("proc/self/mountinfo", "\n".join(lines))
        (self.path / "sys/fs/cgroup/unified").mkdir(parents=True)

    def group(self, folder: str, limit: object, used: int, inactive: int = 0) -> None:
        base = f"sys/fs/cgroup/{folder}".rstrip("/")
        self.write(f"{base}/memory.max", limit)
        self.write(f"{base}/memory.current", used)
        self.write(f"{base}/memory.stat", f"anon 5\ninactive_file {inactive}\nactive_file 9")
        self.write(f"{base}/memory.events", "low 0\noom 3\noom_kill 2")


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root(tmp_path)


def test_version_2_limit_and_page_cache(root: Root) -> None:
    root.v2()
    root.group("", 16 * GB, used=12 * GB, inactive=5 * GB)
    memory = gather_memory(root.path)
    assert (memory.limit, memory.source, memory.host_total) == (16 * GB, "cgroup v2", 64 * GB)
    assert (memory.available, memory.reclaimable, memory.used) == (9 * GB, 5 * GB, 12 * GB)
    assert memory.file_pages == 5 * GB + 9, "active ones too"
    assert memory.oom_kills == 2


def test_version_2_max_means_the_machine(root: Root) -> None:
    root.v2()
    root.group("", "max", used=12 * GB)
    memory = gather_memory(root.path)
    assert (memory.limit, memory.available) == (64 * GB, 50 * GB)
    assert (memory.source, memory.oom_kills) == ("/proc/meminfo", 2)


def test_the_smallest_limit_of_all_ancestors_counts(root: Root) -> None:
    root.v2("/pod/worker")
    root.group("pod/worker", "max", used=1 * GB)
    root.group("pod", 8 * GB, used=7 * GB, inactive=2 * GB)
    root.group("", 32 * GB, used=30 * GB)
    memory = gather_memory(root.path)
    assert memory.limit == 8 * GB
    assert memory.available == 2 * GB  # the outermost group has less left than the tightest


def test_the_machine_bounds_what_is_available(tmp_path: Path) -> None:
    root = Root(tmp_path, available=1 * GB)
    root.v2()
    root.group("", 16 * GB, used=1 * GB)
    assert gather_memory(root.path).available == 1 * GB


def test_version_1_with_a_host_path_and_no_namespace(root: Root) -> None:
    root.v1("/docker/abc", shown="/docker/abc")
    base = "sys/fs/cgroup/memory"
    root.write(f"{base}/memory.limit_in_bytes", 10 * GB)
    root.write(f"{base}/memory.usage_in_bytes", 6 * GB)
    root.write(f"{base}/memory.stat", f"inactive_file 1\ntotal_inactive_file {1 * GB}")
    root.write(f"{base}/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 1")
    memory = gather_memory(root.path)
    assert (memory.limit, memory.available, memory.source) == (10 * GB, 5 * GB, "cgroup v1")
    assert memory.oom_kills == 1


def test_version_1_unlimited_is_the_machine(root: Root) -> None:
    root.v1()
    root.write("sys/fs/cgroup/memory/memory.limit_in_bytes", UNLIMITED_V1)
    root.write("sys/fs/cgroup/memory/memory.usage_in_bytes", 1)
    assert gather_memory(root.path).source == "/proc/meminfo"


def test_a_limit_of_all_the_machine_has_is_none(root: Root) -> None:
    root.v2()
    root.group("", 64 * GB, used=1 * GB)
    assert gather_memory(root.path).source == "/proc/meminfo"


def test_the_gauge_reads_the_tightest_limit_and_leaves_pages_of_files_out(root: Root) -> None:
    root.v2("/pod/worker")
    root.group("pod/worker", "max", used=1 * GB)
    root.group("pod", 8 * GB, used=7 * GB, inactive=2 * GB)
    root.group("", 32 * GB, used=30 * GB)
    gauge = MemoryGauge(root.path)
    assert gauge.percent() == pytest.approx(100 * 5 / 8)
    root.group("pod", 8 * GB, used=8 * GB, inactive=0)
    assert gauge.percent() == pytest.approx(100), "read again each time"


def test_the_gauge_knows_nothing_without_a_limit(root: Root) -> None:
    root.v1()
    root.write("sys/fs/cgroup/memory/memory.limit_in_bytes", UNLIMITED_V1)
    root.write("sys/fs/cgroup/memory/memory.usage_in_bytes", 1)
    assert MemoryGauge(root.path).percent() is None


def test_files_that_make_no_sense_limit_nothing(root: Root) -> None:
    root.v2()
    root.group("", "nonsense", used=1 * GB)
    root.write("sys/fs/cgroup/cpu.max", "100000 0")
    assert gather_memory(root.path).limit == 64 * GB
    assert gather_cpu(root.path).quota is None
    root.write("proc/meminfo", "nonsense")
    with pytest.raises(ValueError, match="MemTotal"):
        gather_memory(root.path)


def test_a_group_path_the_mount_does_not_show_means_the_mount(root: Root) -> None:
    root.v2("/system.slice/docker-abc.scope")
    root.group("", 4 * GB, used=0)
    assert gather_memory(root.path).limit == 4 * GB


def test_a_group_outside_our_namespace_is_not_followed(root: Root) -> None:
    root.v2("/../outside")
    root.group("", 4 * GB, used=0)
    root.write("sys/fs/outside/memory.max", 1)
    root.write("sys/fs/outside/memory.current", 1)
    assert gather_memory(root.path).limit == 4 * GB


def test_without_cgroups_there_is_the_machine(root: Root) -> None:
    assert gather_memory(root.path).limit == 64 * GB
    assert gather_cpu(root.path).quota is None


def test_cpu_quota_of_both_versions(root: Root, tmp_path: Path) -> None:
    root.v2("/a")
    root.write("sys/fs/cgroup/cpu.max", "150000 100000")
    root.write("sys/fs/cgroup/a/cpu.max", "max 100000")
    assert (gather_cpu(root.path).quota, gather_cpu(root.path).source) == (1.5, "cgroup v2")
    old = Root(tmp_path / "old")
    old.v1()
    old.write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", 50000)
    old.write("sys/fs/cgroup/cpu/cpu.cfs_period_us", 100000)
    cpu = gather_cpu(old.path)
    assert (cpu.quota, cpu.cores, cpu.source) == (0.5, 0.5, "cgroup v1")
    old.write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", -1)
    assert gather_cpu(old.path).quota is None
    assert gather_cpu(old.path).cores == len(os.sched_getaffinity(0))


def test_this_machine_in_json(tmp_path: Path) -> None:
    facts = gather_machine(env={"PATH": os.environ["PATH"], "LD_PRELOAD": "libgone.so"})
    assert facts.preloads == (machine.Preload("libgone.so", False),)
    assert facts.problems == ()
    data = json.loads(json.dumps(facts.as_dict()))
    assert data["memory"]["limit"] > 0 and data["root_disk"]["total"] > 0
    assert facts.clock and facts.clock.newest_file and facts.clock.newest_file <= facts.clock.now
    assert os.uname().nodename not in data.values()


def test_a_probe_that_breaks_does_not_spoil_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(root: Path) -> None:
        raise ZeroDivisionError("of this test")

    monkeypatch.setattr(machine, "gather_cpu", broken)
    facts = gather_machine(tmp_path)  # an empty root: no /proc, no /dev
    assert facts.cpu is None and facts.memory is None and facts.shm is None
    assert facts.gpu is not None and facts.temp is not None and facts.open_files is not None
    assert "CPU: ZeroDivisionError: of this test" in facts.problems
    assert len(facts.problems) == 3


def test_the_disk_of_a_work_dir_that_does_not_exist_yet(tmp_path: Path) -> None:
    facts = gather_machine(work_dir=tmp_path / "not/yet")
    assert facts.temp and facts.temp.path == str(tmp_path)


def test_no_limit_of_open_files_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    unlimited = resource.RLIM_INFINITY
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1024, unlimited))
    assert gather_machine().open_files == (1024, None)


def test_preloads_by_path_and_by_name(tmp_path: Path) -> None:
    (tmp_path / "usr/lib").mkdir(parents=True)
    (tmp_path / "usr/lib/libtcmalloc.so.4").touch()
    (tmp_path / "opt").mkdir()
    (tmp_path / "opt/libjemalloc.so").touch()
    named = "libtcmalloc.so.4:/opt/libjemalloc.so libgone.so /opt/gone.so"
    found = look_at_preloads({"LD_PRELOAD": named}, tmp_path)
    assert [p.exists for p in found] == [True, True, False, False]
    searched = {"LD_PRELOAD": "libjemalloc.so", "LD_LIBRARY_PATH": "/x:/opt"}
    assert look_at_preloads(searched, tmp_path)[0].exists
    assert look_at_preloads({}, tmp_path) == ()


def site_of(venv: Path) -> Path:
    return venv / "lib/python3.11/site-packages"


def install_torch(folder: Path, version_file: str | None, dist_info: str) -> Path:
    """A venv-like folder with a torch in it; its interpreter's path."""
    packages = site_of(folder)
    (packages / dist_info).mkdir(parents=True)
    if version_file is not None:
        (packages / "torch").mkdir()
        (packages / "torch/version.py").write_text(textwrap.dedent(version_file))
    (folder / "pyvenv.cfg").write_text("include-system-site-packages = false\n")
    (folder / "bin").mkdir()
    (folder / "bin/python").symlink_to(sys.executable)
    return folder / "bin/python"


@pytest.mark.parametrize(
    ("version_file", "expected"),
    [
        (
            """
            from typing import Optional
            __version__ = '2.9.1+cu128'
            debug = False
            cuda: Optional[str] = '12.8'
            hip: Optional[str] = None
            """,
            TorchBuild("2.9.1+cu128", "12.8"),
        ),
        ("__version__ = '2.13.0+cpu'\ncuda = None\n", TorchBuild("2.13.0+cpu", None)),
        ("__version__ = '2.4'\nhip = '6.1'\n", TorchBuild("2.4", None, hip="6.1")),
        ("this is no Python (", TorchBuild("2.1.0+cu118", "11.8")),
        (None, TorchBuild("2.1.0+cu118", "11.8")),
    ],
)
def test_torch_is_read_from_its_files(
    tmp_path: Path, version_file: str | None, expected: TorchBuild
) -> None:
    python = install_torch(tmp_path, version_file, "torch-2.1.0+cu118.dist-info")
    assert read_torch_build(python) == expected


def test_a_venv_without_torch_does_not_find_the_systems(tmp_path: Path) -> None:
    assert read_torch_build(install_torch(tmp_path, None, "numpy-2.0.dist-info")) is None


def test_a_venv_that_sees_the_system_finds_the_systems_torch(tmp_path: Path) -> None:
    base = install_torch(tmp_path / "base", None, "torch-2.9.1+cu128.dist-info")
    (tmp_path / "base/pyvenv.cfg").unlink()
    base.unlink()
    base.touch()  # a real file, not a link to the interpreter of this test
    venv = install_torch(tmp_path / "venv", None, "numpy-2.0.dist-info")
    venv.unlink()
    venv.symlink_to(base)
    config = tmp_path / "venv/pyvenv.cfg"
    assert read_torch_build(venv) is None
    config.write_text("home = /x\nInclude-System-Site-Packages = True\n")
    assert read_torch_build(venv) == TorchBuild("2.9.1+cu128", "12.8")
    config.write_text("include-system-site-packages = no\nprompt = true\n")
    assert read_torch_build(venv) is None


@pytest.mark.timeout(10)
@pytest.mark.parametrize("name", ["pyvenv.cfg", "bin/activate", "torch/version.py"])
def test_a_pipe_in_place_of_a_venvs_file_is_not_waited_for(tmp_path: Path, name: str) -> None:
    python = install_torch(tmp_path, "__version__ = '2'\n", "torch-2.1.0+cu118.dist-info")
    place = (python.parent.parent if name != "torch/version.py" else site_of(tmp_path)) / name
    place.unlink(missing_ok=True)
    os.mkfifo(place)
    assert read_torch_build(python) is not None
    assert (look_at_venv(str(tmp_path)) is None) == (name == "pyvenv.cfg")


def test_gathering_needs_the_standard_library_only() -> None:
    code = "from bootstrap.doctor.facts.machine import gather_machine as g; print(g().problems)"
    project = Path(machine.__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=project, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "()"


def test_a_shm_that_cannot_be_written_to_is_reported() -> None:
    """In a namespace of mounts of its own, which takes rights that not every machine gives."""
    script = (
        "mount -t tmpfs -o ro tmpfs /dev/shm && exec "
        + shlex.quote(sys.executable)
        + " -c 'from bootstrap.doctor.facts.machine import look_at_locks; print(look_at_locks())'"
    )
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script],
        cwd=Path(machine.__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        pytest.skip(f"no namespace of mounts: {done.stderr.strip()[-200:]}")
    assert done.stdout.strip() == "Read-only file system"
    assert machine.look_at_locks() == ""
