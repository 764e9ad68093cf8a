"""The parallel walk finds what os.walk finds, says where links lead, and always ends."""

from __future__ import annotations

import errno
import itertools
import os
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from bootstrap.core import concurrency
from bootstrap.core.concurrency import ByteSemaphore, WorkerPool
from bootstrap.doctor.facts import walk as walk_module
from bootstrap.doctor.facts.volume_facts import LinkTarget
from bootstrap.doctor.facts.walk import Entry, walk
from bootstrap.volume.link_plan import EntryKind
from tests.support.model_folders import link, write
from tests.support.waiting import Clock


def by_path(*roots: Path, **options: object) -> dict[str, Entry]:
    return {e.path: e for e in walk(roots, **options).entries}  # type: ignore[arg-type]


def as_os_walk_sees(root: Path) -> set[str]:
    found = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        found |= {os.path.relpath(os.path.join(folder, name), root) for name in folders + files}
    return found


@pytest.mark.parametrize("threads", [1, 3, 64])
def test_same_names_and_sizes_as_os_walk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    root = tmp_path / "models"
    for i in range(40):
        for j in range(i):
            write(root / f"d{i % 7}" / f"d{i}" / f"f{j}", b"x" * j)
    outside = write(tmp_path / "elsewhere" / "deep" / "file", b"123")
    link(root / "linked", "../elsewhere")
    monkeypatch.setattr(walk_module, "THREADS", threads)
    found = by_path(root)
    assert set(found) == as_os_walk_sees(root)
    for entry in found.values():
        if entry.is_file:
            real = os.stat(entry.full_path)
            assert (entry.size, entry.mtime) == (real.st_size, real.st_mtime)
            assert entry.inode == (real.st_dev, real.st_ino)
    assert found["linked/deep/file"].inode == (outside.stat().st_dev, outside.stat().st_ino)


def test_order_is_that_of_roots_and_paths(tmp_path: Path) -> None:
    for name in ("b/y", "b/x", "a/z"):
        write(tmp_path / name, b"")
    entries = walk([tmp_path / "b", tmp_path / "a"]).entries
    assert [(e.root.name, e.path) for e in entries] == [("b", "x"), ("b", "y"), ("a", "z")]


def test_where_links_lead(tmp_path: Path) -> None:
    root = tmp_path / "volume"
    write(root / "real", b"12345")
    write(tmp_path / "outside", b"1")
    link(root / "good", "real")
    link(root / "broken", "gone")
    link(root / "through_file", "real/x")
    link(root / "self", "self")
    link(root / "sub" / "up", "..")
    link(root / "out", tmp_path / "outside")
    found = by_path(root)
    states = {path: e.target for path, e in found.items() if e.kind is EntryKind.LINK}
    assert states == {
        "good": LinkTarget.OK,
        "broken": LinkTarget.BROKEN,
        "through_file": LinkTarget.BROKEN,
        "self": LinkTarget.LOOP,
        "sub/up": LinkTarget.LOOP,
        "out": LinkTarget.OUTSIDE,
    }
    assert found["good"].is_file and found["good"].size == 5 and found["good"].link == "real"
    assert not found["broken"].is_file and found["sub/up"].to_folder


def test_inside_may_be_wider_than_the_roots(tmp_path: Path) -> None:
    write(tmp_path / "store" / "x", b"")
    link(tmp_path / "models" / "x", "../store/x")
    assert by_path(tmp_path / "models")["x"].target is LinkTarget.OUTSIDE
    assert by_path(tmp_path / "models", inside=[tmp_path])["x"].target is LinkTarget.OK


def test_a_link_to_a_parent_of_the_root_ends(tmp_path: Path) -> None:
    link(tmp_path / "models" / "all", tmp_path)
    link(tmp_path / "models" / "root", "/")
    found = by_path(tmp_path / "models")
    assert {path: e.target for path, e in found.items()} == {
        "all": LinkTarget.LOOP,
        "root": LinkTarget.LOOP,
    }


def test_two_folders_that_link_to_each_other_end(tmp_path: Path) -> None:
    link(tmp_path / "a" / "to_b", "../b")
    link(tmp_path / "b" / "to_a", "../a")
    found = by_path(tmp_path)
    assert found["a/to_b/to_a"].target is LinkTarget.LOOP
    assert found["b/to_a/to_b"].target is LinkTarget.LOOP
    assert len(found) == 6


def test_a_folder_reached_twice_is_listed_twice_as_comfyui_does(tmp_path: Path) -> None:
    write(tmp_path / "unet" / "flux", b"1")
    link(tmp_path / "diffusion_models", "unet")
    assert {"unet/flux", "diffusion_models/flux"} <= set(by_path(tmp_path))


def test_git_is_left_out(tmp_path: Path) -> None:
    write(tmp_path / ".git" / "objects" / "x", b"")
    write(tmp_path / ".hidden" / "x", b"")
    assert set(by_path(tmp_path)) == {".hidden", ".hidden/x"}


def test_what_is_not_a_file_is_not_listed(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    link(tmp_path / "to_pipe", "pipe")
    found = by_path(tmp_path)
    assert found["pipe"].kind is EntryKind.OTHER
    assert not found["pipe"].is_file and not found["to_pipe"].is_file


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/b\xff\n", "wb"):
        pass
    (entry,) = walk([tmp_path]).entries
    assert os.fsencode(entry.full_path).endswith(b"/b\xff\n")


def test_a_missing_root_is_a_problem(tmp_path: Path) -> None:
    found = walk([tmp_path / "gone"])
    assert found.complete and not found.entries and found.problem_count == 1
    assert found.problems[0].code == errno.ENOENT


def test_a_folder_that_fails_leaves_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root reads everything here, so the refusal is put in by hand."""
    write(tmp_path / "closed" / "x", b"")
    write(tmp_path / "open" / "x", b"")
    real = os.scandir

    def scandir(path: str) -> object:
        if path.endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found = walk([tmp_path])
    assert {e.path for e in found.entries} == {"closed", "open", "open/x"}
    assert [(Path(p.path).name, p.code) for p in found.problems] == [("closed", errno.EACCES)]


def test_problems_are_counted_but_kept_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walk_module, "MOST_PROBLEMS", 3)
    found = walk([tmp_path / f"gone{i}" for i in range(9)])
    assert found.problem_count == 9 and len(found.problems) == 3


def test_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(50):
        write(tmp_path / f"d{i % 5}" / f"f{i}", b"")
    monkeypatch.setattr(walk_module, "LIMIT", 20)
    found = walk([tmp_path])
    assert len(found.entries) == 20 and not found.complete
    monkeypatch.setattr(walk_module, "LIMIT", 55)
    assert walk([tmp_path]).complete


def test_a_file_system_that_never_answers(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time is up once all that answers has answered."""
    for i in range(5):
        write(tmp_path / f"d{i}" / "x", b"")
    released = threading.Event()
    real = os.scandir

    def scandir(path: str) -> object:
        if path.endswith("d3"):
            assert released.wait(100)
        return real(path)

    def progress(count: int) -> None:
        clock.ahead = 60.0 * (count == 9)

    monkeypatch.setattr(os, "scandir", scandir)
    found = walk([tmp_path], progress=progress, timeout=50)
    released.set()
    assert not found.complete
    answered = {f"d{i}/x" for i in range(5)} - {"d3/x"}
    assert {e.path for e in found.entries} == {f"d{i}" for i in range(5)} | answered


def test_progress_ends_with_the_total(tmp_path: Path) -> None:
    for i in range(30):
        write(tmp_path / f"f{i}", b"")
    seen: list[int] = []
    walk([tmp_path], progress=seen.append)
    assert seen[-1] == 30


def test_many_calls_are_in_flight_at_once(tmp_path: Path) -> None:
    """64 files are stat'ed at the same moment, or this never ends."""
    pool = WorkerPool(64)
    together = threading.Barrier(64)

    def task() -> None:
        together.wait(30)

    assert pool.run([task] * 64, timeout=30)


def test_tasks_that_compute_are_left_to_two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 threads that wait for the GIL take three times as long. Here all time is computing."""
    pool = WorkerPool(64)
    computed = itertools.count()
    clock = SimpleNamespace(
        monotonic=lambda: pool._computed, thread_time=lambda: next(computed) / 1000
    )
    monkeypatch.setattr(concurrency, "time", clock)
    threads: set[int] = set()

    def task() -> None:
        time.sleep(0.002)
        threads.add(threading.get_ident())

    assert pool.run([task] * 100)
    assert len(threads) <= 2


def test_a_failing_task_is_raised_to_the_caller() -> None:
    def task() -> None:
        raise KeyError("mistake")

    with pytest.raises(KeyError, match="mistake"):
        WorkerPool(4).run([task] * 10)


def test_threads_are_gone_afterwards(tmp_path: Path) -> None:
    for i in range(100):
        write(tmp_path / f"d{i}" / "f", b"")
    before = threading.active_count()
    for _ in range(5):
        walk([tmp_path])
    end = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_allowance_bounds_what_is_held() -> None:
    allowance = ByteSemaphore(100)
    held, most, lock = 0, 0, threading.Lock()

    def task(size: int) -> None:
        nonlocal held, most
        with allowance.hold(size):
            with lock:
                held += min(size, 100)
                most = max(most, held)
            time.sleep(0.002)
            with lock:
                held -= min(size, 100)

    assert WorkerPool(16).run([partial(task, size) for size in (10, 60, 500, 40) * 10])
    assert 60 <= most <= 100 and held == 0
