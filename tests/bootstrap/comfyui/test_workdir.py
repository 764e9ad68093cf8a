"""The worker's own folder: created, kept while its worker runs, removed after its death."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bootstrap.comfyui import workdir
from bootstrap.comfyui.workdir import WorkDir, make_workdir
from bootstrap.core.findings import Finding
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[3]
MAKE = (
    "import sys; from pathlib import Path; from bootstrap.comfyui import make_workdir\n"
    "work = make_workdir(Path(sys.argv[1])); print(getattr(work, 'root', work), flush=True)\n"
)


@pytest.fixture
def work(tmp_path: Path) -> Iterator[WorkDir]:
    made = make(tmp_path)
    yield made
    if made.root.exists():
        made.remove()


def make(parent: Path) -> WorkDir:
    made = make_workdir(parent)
    assert isinstance(made, WorkDir), made
    return made


def other_worker(parent: Path, then: str) -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen(
        [sys.executable, "-c", MAKE + then, str(parent)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_the_folders_are_there_and_temp_is_left_to_comfyui(work: WorkDir) -> None:
    assert all(f.is_dir() for f in (work.input, work.output, work.user, work.front_end))
    assert "<title>" in (work.front_end / "index.html").read_text()
    assert (work.temp_parent / "temp", False) == (work.temp, work.temp.exists())
    assert work.database == f"sqlite:///{work.root}/comfyui.db"


def test_two_workers_share_nothing(work: WorkDir, tmp_path: Path) -> None:
    other = make(tmp_path)
    assert other.root != work.root and work.root.is_dir()
    other.remove()


def test_a_removed_folder_is_gone_with_all_that_is_in_it(work: WorkDir, tmp_path: Path) -> None:
    (work.output / "a.png").write_text("x")
    work.remove()
    assert os.listdir(tmp_path) == []


def test_a_parent_that_is_not_there_is_made(tmp_path: Path) -> None:
    make(tmp_path / "a/b").remove()


@pytest.mark.parametrize("is_roomy", [True, False])
def test_a_start_waits_for_the_sweep_only_where_it_needs_the_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_roomy: bool
) -> None:
    leftover = tmp_path / "comfyui-worker-old"
    (leftover / "python").mkdir(parents=True)
    (leftover / ".lock").touch()
    slowly, remove = threading.Event(), shutil.rmtree
    monkeypatch.setattr(workdir, "_ROOMY", 0 if is_roomy else 1 << 60)
    monkeypatch.setattr(workdir, "_SWEEP_SECONDS", 0.0)

    def delayed(path: Path, ignore_errors: bool = False) -> None:
        slowly.wait(30 if is_roomy else 0.3)
        remove(path, ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", delayed)
    made = make_workdir(tmp_path)
    assert isinstance(made, WorkDir) and leftover.exists() is is_roomy
    slowly.set()
    wait_until(lambda: not leftover.exists())
    made.remove()


def test_what_a_killed_worker_left_is_swept_by_the_next(tmp_path: Path) -> None:
    process, root = other_worker(tmp_path, "sys.stdin.read()")
    (root / "output/big").write_text("x")
    process.kill()
    process.communicate()
    assert root.is_dir()
    make(tmp_path).remove()
    assert os.listdir(tmp_path) == []


def test_what_a_living_worker_uses_is_not_swept(tmp_path: Path) -> None:
    process, root = other_worker(tmp_path, "sys.stdin.read()")
    make(tmp_path).remove()
    assert (root / "output").is_dir()
    process.communicate()


def test_folders_that_are_not_ours_are_not_swept(tmp_path: Path) -> None:
    for name in ("someone", "comfyui-worker-notes", "comfyui-worker-file"):
        (tmp_path / name).mkdir()
    (tmp_path / "comfyui-worker-file").rmdir()
    (tmp_path / "comfyui-worker-file").write_text("x")
    (tmp_path / "someone/.lock").write_text("")
    make(tmp_path).remove()
    assert len(os.listdir(tmp_path)) == 3


def test_many_workers_may_start_and_sweep_at_once(tmp_path: Path) -> None:
    again = (
        "for _ in range(60):\n"
        "    made = make_workdir(Path(sys.argv[1]))\n"
        "    assert (made.front_end / 'index.html').exists(), made\n"
        "    made.remove()\n"
    )
    workers = [other_worker(tmp_path, again)[0] for _ in range(6)]
    assert [(w.communicate()[0], w.returncode) for w in workers] == [("", 0)] * 6


def test_where_no_folder_can_be_made_the_machine_is_at_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    finding = make_workdir(tmp_path / "file/below")
    assert isinstance(finding, Finding)
    assert (finding.code, finding.host_fault) == ("disk.local_unusable", True)
    assert "Not a directory" in finding.message
