"""The simulated volume: the same files, slower; times are checked only against its own delays."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.cold_start.pages import share_in_memory
from benchmarks.simulated_volume import (
    Delays,
    SimulatedVolume,
    forget_pages,
    mounted,
    why_not,
)
from bootstrap.doctor.facts.walk import walk
from tests.support.model_folders import link, write

pytestmark = pytest.mark.skipif(why_not() is not None, reason=f"no simulated volume: {why_not()}")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(5):
        write(tmp_path / "real" / f"d{i}" / "file", bytes([i]) * 100_000)
    link(tmp_path / "real" / "link", "d1/file")
    return tmp_path / "real"


@pytest.fixture
def volume(folder: Path, tmp_path: Path) -> Iterator[SimulatedVolume]:
    with mounted(folder, tmp_path / "mnt") as volume:
        yield volume


def test_the_same_tree(volume: SimulatedVolume) -> None:
    through = [(e.path, e.kind, e.size, e.link) for e in walk([volume.mountpoint]).entries]
    direct = [(e.path, e.kind, e.size, e.link) for e in walk([volume.folder]).entries]
    assert through == direct and len(direct) == 11
    assert (volume.mountpoint / "link").read_bytes() == b"\1" * 100_000


def test_what_it_serves_stays_out_of_this_machines_memory(volume: SimulatedVolume) -> None:
    """A real server is another machine: its page cache is not the worker's."""
    real = volume.folder / "d1" / "file"
    os.sync()  # dirty pages cannot be dropped
    forget_pages(real)
    if share_in_memory(real):
        pytest.skip("this file system keeps its files in memory")
    assert (volume.mountpoint / "d1" / "file").read_bytes() == b"\1" * 100_000
    assert share_in_memory(volume.mountpoint / "d1" / "file") == 1
    assert share_in_memory(real) == 0


def test_all_file_operations_of_a_worker(volume: SimulatedVolume) -> None:
    there, real = volume.mountpoint, volume.folder
    write(there / "new" / "x", b"hello")
    os.link(there / "new" / "x", there / "new" / "y")
    with pytest.raises(FileExistsError):
        os.link(there / "new" / "x", there / "new" / "y")
    os.replace(there / "new" / "y", there / "new" / "z")
    os.symlink("z", there / "new" / "s")
    with open(there / "new" / "z", "r+b") as file:
        file.seek(10)
        file.write(b"end")
        file.truncate(12)
        os.fsync(file.fileno())
    os.chmod(there / "new" / "z", 0o600)
    os.utime(there / "new" / "z", (1, 2))
    assert (real / "new" / "s").read_bytes() == b"hello\0\0\0\0\0en"
    assert (real / "new" / "z").stat().st_mode & 0o777 == 0o600
    assert (real / "new" / "z").stat().st_mtime == 2
    for name in ("x", "s", "z"):
        os.unlink(there / "new" / name)
    os.rmdir(there / "new")
    assert not (real / "new").exists()
    assert os.statvfs(there).f_blocks == os.statvfs(real).f_blocks


def test_pages_are_cached_until_dropped_or_changed(volume: SimulatedVolume) -> None:
    path = volume.mountpoint / "d2" / "file"
    path.read_bytes()
    volume.kill()  # what is read now can only come from the page cache
    volume.unmount()
    volume.mount()
    assert path.read_bytes() == b"\2" * 100_000
    (volume.folder / "d2" / "file").write_bytes(b"changed behind its back")
    time.sleep(1.1)
    assert path.read_bytes() == b"changed behind its back"
    volume.forget()
    assert path.read_bytes() == b"changed behind its back"


def test_calls_in_many_folders_run_in_parallel(folder: Path, tmp_path: Path) -> None:
    """Each of 5 names takes 0.4 s: 2 s in one folder, one after another."""
    delays = Delays(metadata_ms=400, attr_seconds=60)
    with mounted(folder, tmp_path / "mnt", delays) as volume:
        names = [str(volume.mountpoint / f"d{i}") for i in range(5)]
        one_folder = seconds_of_stats(names)
        many_folders = seconds_of_stats([f"{name}/file" for name in names])
    assert one_folder >= 2.0
    assert 0.4 <= many_folders < one_folder


def seconds_of_stats(names: list[str]) -> float:
    threads = [threading.Thread(target=os.stat, args=(name,)) for name in names]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.monotonic() - started


def test_reads_are_as_slow_as_specified(folder: Path, tmp_path: Path) -> None:
    write(folder / "large", bytes(4_000_000))
    with mounted(folder, tmp_path / "mnt", Delays(stream_mb=10)) as volume:
        started = time.monotonic()
        (volume.mountpoint / "large").read_bytes()
        assert time.monotonic() - started >= 0.4


def test_a_dead_server_is_reported_and_unmounted(volume: SimulatedVolume) -> None:
    volume.kill()
    found = walk([volume.mountpoint])
    assert [p.code for p in found.problems] == [errno.ENOTCONN]
    volume.unmount()
    assert list(volume.mountpoint.iterdir()) == []
