"""Damaged and hostile archives, full disks, volumes that fall silent, recorders that are killed."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.simulated_volume import SimulatedVolume, mounted, why_not
from bootstrap.core.findings import Finding
from bootstrap.core.temp_files import Lease
from bootstrap.environment import venv_mirror
from bootstrap.environment.venv_mirror import Mirror, archive_writer, deferred, record_opened, walk
from bootstrap.environment.venv_mirror import archive as archives
from bootstrap.environment.venv_mirror.archive import DamagedArchive, read_archive
from demo.environment import REPOSITORY
from tests.bootstrap.environment.test_venv_mirror import archive_of
from tests.bootstrap.environment.venvs import VolumeVenv, ask, contents, make_venv

needs_fuse = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


@pytest.fixture
def venv(tmp_path: Path) -> VolumeVenv:
    (tmp_path / "volume").mkdir()
    return make_venv(tmp_path / "volume", tmp_path / "local")


def index_of(archive: Path) -> tuple[bytes, dict[str, Any]]:
    """An archive's data and its index."""
    packed, begin = archives._read_index(archive)
    return archive.read_bytes()[:begin], json.loads(zlib.decompress(packed))


def write(archive: Path, data: bytes, index: Any) -> None:
    packed = zlib.compress(json.dumps(index).encode())
    trailer = archives._TRAILER.pack(archives._MAGIC, len(packed), zlib.crc32(packed))
    archive.write_bytes(data + packed + trailer)


def renamed(index: dict[str, Any], name: str) -> None:
    """The first file of the archive gets another name, in its folder too."""
    first = index["blocks"][0][1][0]
    parent = os.path.dirname(first[0])
    first[0] = f"{parent}/{name}" if parent else name
    index["folders"][parent][1].append(name)


HOSTILE: dict[str, Callable[[dict[str, Any]], None]] = {
    "a name that leads up": lambda i: renamed(i, "../../../../escaped"),
    "an absolute name": lambda i: renamed(i, "/tmp/escaped"),
    "a name with a zero": lambda i: renamed(i, "a\0b"),
    "a name that is too long": lambda i: renamed(i, "n" * 300),
    "a folder that leads up": lambda i: i["folders"].update({"../up": [1, [], {}]}),
    "a folder in none": lambda i: i["folders"].update({"not/there": [1, [], {}]}),
    "a link where a folder is": lambda i: i["folders"][""][2].update({"alpha": "/tmp"}),
    "a link where a file is": lambda i: i["folders"][""][2].update({"single.py": "/tmp"}),
    "a link that leads up": lambda i: i["folders"][""][2].update({"../up": "/tmp"}),
    "a large file outside": lambda i: i["large"].update({"../../etc/passwd": 1}),
    "a negative size": lambda i: i["blocks"][0][1][0].__setitem__(1, -1),
    "another size": lambda i: i["blocks"][0][1][0].__setitem__(1, 10**6),
    "no folders": lambda i: i.update(folders={}),
    "a list": lambda i: i.update(folders=[]),
    "a number": lambda i: i.update(blocks=7),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_index_is_not_followed(venv: VolumeVenv, what: str) -> None:
    venv.recorded()
    data, index = index_of(archive_of(venv))
    HOSTILE[what](index)
    write(archive_of(venv), data, index)
    with pytest.raises(DamagedArchive):
        read_archive(archive_of(venv))
    made = venv.mirror()
    assert "without an archive" in made.note
    assert ask(made.python, "import alpha", "alpha.value") == "first"
    assert record_opened(made).endswith("archived"), "a good one takes its place"


def test_an_index_that_would_fill_the_memory(venv: VolumeVenv) -> None:
    venv.recorded()
    packed = zlib.compress(bytes(archives._MOST_INDEX + 1))
    trailer = archives._TRAILER.pack(archives._MAGIC, len(packed), zlib.crc32(packed))
    archive_of(venv).write_bytes(packed + trailer)
    with pytest.raises(DamagedArchive, match="too long"):
        read_archive(archive_of(venv))


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(at=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255), cut=st.booleans())
def test_a_damaged_archive_is_never_believed(
    venv: VolumeVenv, at: float, flip: int, cut: bool
) -> None:
    archive = archive_of(venv)
    if not archive.exists():
        venv.recorded()
        archive.with_name("good").write_bytes(archive.read_bytes())
    data = bytearray(archive.with_name("good").read_bytes())
    place = int(at * len(data))
    data[place] ^= flip
    archive.write_bytes(data[:place] if cut else data)
    made = venv.mirror()
    wanted = contents(venv.site)
    for name in wanted:
        assert (made.site / name).read_bytes() == (venv.site / name).read_bytes()


def test_a_full_disk_is_named_and_comfyui_runs_from_the_volume(
    venv: VolumeVenv, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(walk, "copy_opened", full)
    found = venv.try_to_mirror()
    assert isinstance(found, Finding)
    assert "was not copied to local disk: No space left on device" in found.message
    assert "larger container disk" in found.fix


def test_a_disk_without_room_for_the_archive(
    venv: VolumeVenv, monkeypatch: pytest.MonkeyPatch
) -> None:
    venv.recorded()
    monkeypatch.setattr(venv_mirror, "_HEADROOM", 1 << 60)
    found = venv.try_to_mirror()
    assert isinstance(found, Finding)
    assert "the local disk has no space for" in found.message
    assert "larger container disk" in found.fix


def test_only_a_lack_of_room_asks_for_a_larger_disk(venv: VolumeVenv) -> None:
    settings = venv.path / "pyvenv.cfg"
    (venv.path / "bin/python").unlink()
    (venv.path / "bin/python").symlink_to("/nowhere/bin/python")
    other = venv.try_to_mirror()
    settings.unlink()
    gone = venv.try_to_mirror()
    settings.mkdir()
    folder = venv.try_to_mirror()
    assert isinstance(other, Finding) and isinstance(gone, Finding) and isinstance(folder, Finding)
    assert f"No such file or directory ({settings})" in gone.message
    assert f"it is not a regular file ({settings})" in folder.message
    assert not [f for f in (other, gone, folder) if "disk" in f.fix]
    assert "COMFYUI_PYTHON" in other.fix and "can be read on a Pod" in gone.fix == folder.fix


_KILLED = """
import os, sys
from pathlib import Path
from bootstrap.environment import venv_mirror
from bootstrap.environment.venv_mirror import archive_writer
from tests.bootstrap.environment.venvs import VolumeVenv, ask
venv = VolumeVenv(Path(sys.argv[1]), Path(sys.argv[2]))
made = venv.mirror()
ask(made.python, "import alpha, single")
written = archive_writer.write_archive
def slow(file, contents, tree_of):
    def one_by_one():
        for content in contents:
            yield content
            file.flush()
            print("writing", flush=True)
            sys.stdin.read()
    return written(file, one_by_one(), tree_of)
archive_writer.write_archive = slow
venv_mirror.record_opened(made)
"""


def test_a_recorder_that_is_killed_leaves_nothing_half(
    venv: VolumeVenv, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient = partial(Lease, beat=0.2, stale=1.0)
    monkeypatch.setattr(archive_writer, "Lease", impatient)
    command = [sys.executable, "-c", _KILLED, str(venv.path), str(venv.scratch / "other")]
    (venv.scratch / "other").mkdir()
    child = subprocess.Popen(
        command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None and child.stdout.readline() == "writing\n"
    child.kill()
    child.communicate()
    assert not archive_of(venv).exists()
    left = [path for path in venv.store.iterdir() if path.suffix == ".part"]
    assert left
    for path in left:
        os.utime(path, (1, 1))  # it was long ago
    made = venv.mirror()
    assert "without an archive" in made.note
    ask(made.python, "import alpha")
    assert record_opened(made).endswith("archived"), "its lease is taken over"
    assert not any(path.exists() for path in left)


def test_a_store_on_a_volume_that_is_read_only(venv: VolumeVenv) -> None:
    venv.recorded()
    archive_of(venv).chmod(0o444)
    made = venv.mirror(store=venv.store)
    assert "from the archive" in made.note


@needs_fuse
def test_a_silent_volume_is_given_up_in_time(venv: VolumeVenv) -> None:
    with seen(venv) as (far, volume):
        far.recorded()
        os.kill(volume.pid, signal.SIGSTOP)
        try:
            for timeout in (0.5, 1.5):
                assert isinstance(far.try_to_mirror(timeout=timeout), Finding)
        finally:
            os.kill(volume.pid, signal.SIGCONT)
        assert isinstance(far.try_to_mirror(), Mirror)


@needs_fuse
def test_a_volume_that_falls_silent_on_the_way(
    venv: VolumeVenv, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(40):
        venv.write(f"alpha/many/m{number}.py", f"number = {number}\n")
    with seen(venv) as (far, volume):
        really_look = walk.FullCopy.look_at

        def look_at(self: walk.FullCopy, path: str) -> None:
            if path == "alpha/many":
                os.kill(volume.pid, signal.SIGSTOP)
            really_look(self, path)

        monkeypatch.setattr(walk.FullCopy, "look_at", look_at)
        try:
            found = far.try_to_mirror(timeout=2)
        finally:
            os.kill(volume.pid, signal.SIGCONT)
        assert isinstance(found, Finding)
        assert "within 2 s" in found.message or "no answer in 2 s" in found.message


class seen:  # noqa: N801 - used as a function
    """The venv through a simulated network."""

    def __init__(self, venv: VolumeVenv) -> None:
        self._venv = venv
        self._mount = mounted(venv.path.parent, venv.scratch.parent / "seen")

    def __enter__(self) -> tuple[VolumeVenv, SimulatedVolume]:
        volume = self._mount.__enter__()
        return VolumeVenv(volume.mountpoint / "venv", self._venv.scratch), volume

    def __exit__(self, *problem: Any) -> None:
        self._mount.__exit__(*problem)


@pytest.mark.parametrize("stay", [True, False])
def test_large_libraries_are_read_or_copied(
    venv: VolumeVenv, monkeypatch: pytest.MonkeyPatch, stay: bool
) -> None:
    large = venv.site / "alpha/lib/libalpha.so.1"
    large.parent.mkdir()
    large.write_bytes(os.urandom(20 << 20))
    os.utime(large, (1, 1))
    monkeypatch.setattr(deferred.LargeFiles, "_pages_stay", lambda *_: stay)
    made = venv.mirror()
    for thread in threading.enumerate():
        if thread.name == "libraries":
            thread.join()
    place = made.site / "alpha/lib/libalpha.so.1"
    assert place.is_symlink() is stay
    assert place.read_bytes() == large.read_bytes()
    assert not list(place.parent.glob("*.part"))
