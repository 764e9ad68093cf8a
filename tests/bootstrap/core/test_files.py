"""Copies that appear complete or not at all, and replace nothing."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bootstrap.config import Settings
from bootstrap.core.concurrency import ByteSemaphore
from bootstrap.core.files import (
    Disk,
    Stamp,
    copy_opened,
    lease_name,
    open_regular,
    publish_copy,
    publish_new,
    replacing,
    write_whole,
)
from bootstrap.doctor.facts.volume_places import further_folders, tabs_in
from bootstrap.environment.package_store import read_record
from bootstrap.environment.venv_mirror.archive import read_archive
from bootstrap.environment.venv_mirror.layout import look_at_venv
from bootstrap.models.download.part import read_state
from bootstrap.models.manifest_file import load_manifest
from bootstrap.models.prefetch import Request
from bootstrap.models.weights_file import WeightsState, examine
from bootstrap.nodes.manifest import load_nodes
from bootstrap.volume import locate
from bootstrap.volume.args_file import NAME, read_args_file

ROOT = Path(__file__).parents[3]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.png"
    path.write_bytes(b"content")
    return path


@pytest.fixture(params=[(), ("link",), ("link", "rename_to_free_name")])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on a file system that has hard links, on one that has none, and on one that cannot
    refuse to replace either."""
    for lacking in request.param:
        monkeypatch.setattr(Disk, lacking, refuse)
    return tmp_path / "ComfyUI/output"


def refuse(*_: object) -> None:
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


def test_a_copy_gets_its_name_in_a_folder_that_is_made(source: Path, folder: Path) -> None:
    final = publish_copy(source, folder / "sub", "a.png")
    assert final == folder / "sub/a.png" and final.read_bytes() == b"content"
    assert os.listdir(final.parent) == ["a.png"]
    assert source.exists()


def test_a_name_that_is_taken_gets_a_number(source: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "a.tar.png").write_text("old")
    (folder / "a.tar-2.png").symlink_to("/nowhere")
    assert publish_copy(source, folder, "a.tar.png") == folder / "a.tar-3.png"
    assert (folder / "a.tar.png").read_text() == "old"
    assert sorted(os.listdir(folder)) == ["a.tar-2.png", "a.tar-3.png", "a.tar.png"]


def test_no_incomplete_copy_is_ever_seen_under_its_name(tmp_path: Path, folder: Path) -> None:
    big = tmp_path / "big"
    big.write_bytes(b"x" * 3_000_000)
    sizes: set[int] = set()
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            for name in os.listdir(folder) if folder.is_dir() else []:
                if not name.startswith("."):
                    sizes.add((folder / name).stat().st_size)

    reader = threading.Thread(target=look)
    reader.start()
    for number in range(30):
        publish_copy(big, folder, f"{number}.bin")
    done.set()
    reader.join()
    assert sizes == {3_000_000}


@pytest.mark.parametrize("lacking", [(), ("link",), ("link", "rename_to_free_name")])
def test_eight_writers_of_one_name_all_get_one_and_overwrite_no_one(
    tmp_path: Path, lacking: tuple[str, ...]
) -> None:
    script = (
        "import errno, sys; from pathlib import Path\n"
        "from bootstrap.core.files import Disk, publish_copy\n"
        "def refuse(*_): raise OSError(errno.EPERM, 'cannot')\n"
        f"for name in {lacking}: setattr(Disk, name, refuse)\n"
        "folder, me = Path(sys.argv[1]), sys.argv[2]\n"
        "source = folder.with_name(me); source.write_text(me)\n"
        "for _ in range(10): publish_copy(source, folder, 'a.png')\n"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "out"), f"w{n}"], cwd=ROOT)
        for n in range(8)
    ]
    assert [writer.wait() for writer in writers] == [0] * 8
    written = [path.read_text() for path in (tmp_path / "out").iterdir()]
    assert {name: written.count(name) for name in written} == {f"w{n}": 10 for n in range(8)}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of one megabyte, where the machine lets us mount one."""
    place = tmp_path / "small"
    place.mkdir()
    mount = shutil.which("mount")
    command = [mount or "false", "-t", "tmpfs", "-o", "size=1m", "none", str(place)]
    mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    if not mounted:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, small_disk: Path) -> None:
    big = tmp_path / "big"
    big.write_bytes(b"x" * 2_000_000)
    with pytest.raises(OSError, match="No space left") as caught:
        publish_copy(big, small_disk, "a.png")
    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(small_disk) == []


def test_a_disk_that_turns_out_full_at_the_flush_leaves_nothing_behind(
    source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        publish_copy(source, folder, "a.png")
    assert os.listdir(folder) == []


def test_a_failed_move_leaves_nothing_behind(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    for name in ("link", "rename_to_free_name"):
        monkeypatch.setattr(Disk, name, refuse)
    monkeypatch.setattr(Disk, "rename", broken)
    with pytest.raises(OSError, match="Input/output"):
        publish_copy(source, tmp_path / "out", "a.png")
    assert os.listdir(tmp_path / "out") == []


def test_a_name_that_is_too_long_is_an_error_that_leaves_nothing_behind(
    source: Path, folder: Path
) -> None:
    with pytest.raises(OSError, match="too long"):
        publish_copy(source, folder, "x" * 300 + ".png")
    assert os.listdir(folder) == []


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        open_regular(tmp_path / "pipe")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("path", ["{root}/pipe", "/dev/zero", "{root}"])
def test_a_path_in_a_setting_never_hangs_the_worker(path: str, tmp_path: Path) -> None:
    """A pipe without a writer, a device without an end, a folder: each is said, with a fix."""
    os.mkfifo(tmp_path / "pipe")
    path = path.format(root=tmp_path)
    models, nodes = load_manifest(path, tmp_path), load_nodes(path, tmp_path)
    assert nodes is not None
    for finding in (*models.findings, *nodes.findings):
        assert finding.code == "manifest.unreadable"
        assert "regular file" in finding.message and "_MANIFEST" in finding.fix


@pytest.mark.timeout(20)
def test_a_pipe_in_the_place_of_a_file_that_is_looked_for(tmp_path: Path) -> None:
    (tmp_path / "ComfyUI").mkdir()
    (tmp_path / "ComfyUI/main.py").touch()
    (tmp_path / "venv").mkdir()
    for name in (NAME, "ComfyUI/extra_model_paths.yaml", "x.safetensors", "venv/pyvenv.cfg"):
        os.mkfifo(tmp_path / name)
    args = read_args_file(locate(Settings(volume_path=tmp_path)))
    assert args is not None and args.problem == "it is not a regular file"
    assert further_folders(tmp_path / "ComfyUI") == {}
    assert tabs_in(str(tmp_path / "ComfyUI/extra_model_paths.yaml")) == ()
    examined = examine(str(tmp_path / "x.safetensors"), 1, ByteSemaphore(1))
    assert (examined.state, examined.kind) == (WeightsState.UNREADABLE, "")
    assert read_state(tmp_path / "x.safetensors") is None
    for read in (read_record, read_archive):
        with pytest.raises(OSError, match="not a regular file"):
            read(tmp_path / "x.safetensors")
    with pytest.raises(OSError, match="not a regular file"):
        look_at_venv(tmp_path / "venv", None)
    request = Request([tmp_path / "x.safetensors"], lambda: 1 << 30, 1)
    request.start()
    assert request.wait(10) and "regular file" in str(request.reading.problem)


def test_the_marker_of_a_frozen_publisher_is_not_broken_for_another_result(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its maker may still rename: our result takes another name at once."""
    for name in ("link", "rename_to_free_name"):
        monkeypatch.setattr(Disk, name, refuse)
    (tmp_path / lease_name("a.png", "publishing")).touch()
    assert publish_new(source, tmp_path / "a.png") is False
    assert publish_copy(source, tmp_path, "a.png") == tmp_path / "a-2.png"
    assert not (tmp_path / "a.png").exists()


def test_a_replaced_file_is_the_old_or_the_new_one(tmp_path: Path) -> None:
    place = tmp_path / "settings.json"
    place.write_text("old")
    with pytest.raises(FileNotFoundError), replacing(place) as part:
        shutil.copy2(tmp_path / "gone", part)
    assert (place.read_text(), os.listdir(tmp_path)) == ("old", ["settings.json"])
    with replacing(place) as part:
        part.write_text("new")
        assert place.read_text() == "old"
    assert (place.read_text(), os.listdir(tmp_path)) == ("new", ["settings.json"])


def test_a_stamp_is_kept_by_a_copy_and_lost_by_a_change(source: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copy2(source, tmp_path / "copy"))
    assert Stamp.of(copy) == Stamp.of(source) is not None
    copy.write_bytes(b"content, changed")
    assert Stamp.of(copy) != Stamp.of(source)
    assert Stamp.of(tmp_path / "gone") is None


@pytest.mark.parametrize("content", [b"", b"0123456789"])
@pytest.mark.parametrize("expected", [0, 4, 10])
def test_an_open_file_is_copied_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, expected: int
) -> None:
    """Whatever its size was, and although a nearly full disk accepts less than it is given."""
    source, real = tmp_path / "source", os.write
    source.write_bytes(content)
    source.chmod(0o544)
    found = os.stat(source)
    of_then = os.stat_result([*found[:6], expected, *found[7:10]], {"st_mtime_ns": 12_000_000_345})
    monkeypatch.setattr(os, "write", lambda file, data: real(file, data[:3]))
    with source.open("rb") as file:
        stamp = copy_opened(file.fileno(), of_then, str(tmp_path / "copy"))
    assert stamp == Stamp.of(tmp_path / "copy")
    copy = os.stat(tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == content
    assert (copy.st_mode & 0o777, copy.st_mtime_ns) == (0o744, 12_000_000_345)


def test_a_file_that_was_empty_is_not_read_byte_by_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has grown since, or its file system tells no size; each read may be a round trip."""
    source, real = tmp_path / "source", os.read
    reads: list[int] = []

    def read(file: int, most: int) -> bytes:
        reads.append(most)
        return real(file, most)

    source.touch()
    found = os.stat(source)
    source.write_bytes(b"x" * 200_000)
    monkeypatch.setattr(os, "read", read)
    with source.open("rb") as file:
        assert copy_opened(file.fileno(), found, str(tmp_path / "copy")).size == 200_000
    assert len(reads) < 10


def test_who_may_read_a_file_stays_when_its_text_is_replaced(tmp_path: Path) -> None:
    place = tmp_path / "models.json"
    write_whole(place, "one")
    place.chmod(0o600)
    write_whole(place, "two")
    assert place.read_text() == "two"
    assert place.stat().st_mode & 0o777 == 0o600
