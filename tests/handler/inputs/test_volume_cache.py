"""Files of the volume that a workflow names: copied, shared by jobs, and not kept for ever."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from handler.common.calls import Calls, VolumeWatchdog
from handler.common.deadline import Deadline
from handler.common.errors import JobError
from handler.inputs import volume_cache
from handler.inputs.volume_cache import VolumeInputs
from tests.conftest import BootedWorker
from tests.end_to_end.test_worker import png

PIXEL = b"\x89PNG\r\n\x1a\n pixel"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "input"
    path.mkdir()
    return path


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    path = tmp_path / "volume/ComfyUI/input"
    (path / "sub").mkdir(parents=True)
    (path / "photo.png").write_bytes(PIXEL)
    (path / "sub/mask.png").write_bytes(PIXEL)
    return path


def volume_calls() -> VolumeWatchdog:
    return Calls.on(Path("/")).volume


def bring(copies: VolumeInputs, workflow: dict[str, dict[str, Any]], user: str) -> None:
    asyncio.run(copies.bring(workflow, user, Deadline(30)))


def load(name: Any) -> dict[str, dict[str, Any]]:
    return {"1": {"class_type": "LoadImage", "inputs": {"image": name}}}


@pytest.mark.parametrize("name", ["photo.png", "photo.png [input]", "sub/mask.png"])
def test_files_of_the_volume_that_the_workflow_names_are_copied(
    volume: Path, folder: Path, name: str
) -> None:
    bring(VolumeInputs(volume, folder, volume_calls()), load(name), "job")
    place = folder / name.removesuffix(" [input]")
    assert place.read_bytes() == PIXEL and not place.is_symlink()


def test_a_file_that_is_a_link_on_the_volume_is_copied_under_the_name_that_was_asked_for(
    volume: Path, folder: Path
) -> None:
    (volume / "latest.png").symlink_to("sub/mask.png")
    bring(VolumeInputs(volume, folder, volume_calls()), load("latest.png"), "job")
    assert (folder / "latest.png").read_bytes() == PIXEL


def test_a_copy_is_made_again_when_the_volumes_file_has_changed(volume: Path, folder: Path) -> None:
    for content in (PIXEL, b"other content"):
        (volume / "photo.png").write_bytes(content)
        bring(VolumeInputs(volume, folder, volume_calls()), load("photo.png"), "job")
        assert (folder / "photo.png").read_bytes() == content


def test_a_copy_that_is_up_to_date_is_left_alone(volume: Path, folder: Path) -> None:
    bring(VolumeInputs(volume, folder, volume_calls()), load("photo.png"), "job")
    before = (folder / "photo.png").stat().st_ctime_ns
    bring(VolumeInputs(volume, folder, volume_calls()), load("photo.png"), "job")
    assert (folder / "photo.png").stat().st_ctime_ns == before


@pytest.mark.parametrize(
    "value",
    [
        "../secret.txt",
        "sub/../../secret.txt",
        "/etc/hostname.png",
        "escape.png",
        "missing.png",
        "sub",
        "",
        "a cat, 8k",
        "猫" * 200 + ".png",
        "\ud800.png",
        "x" * 250 + ".png",
        7,
        ["1", 0],
        None,
    ],
)
def test_nothing_else_is_copied(volume: Path, folder: Path, value: Any) -> None:
    (volume.parent / "secret.txt").write_text("secret")
    (volume / "escape.png").symlink_to(volume.parent / "secret.txt")
    bring(VolumeInputs(volume, folder, volume_calls()), load(value), "job")
    assert os.listdir(folder) == []


def test_a_volume_without_input_folder_is_fine(tmp_path: Path, folder: Path) -> None:
    bring(VolumeInputs(tmp_path / "nowhere", folder, volume_calls()), load("photo.png"), "job")
    assert os.listdir(folder) == []


def test_a_copy_that_finds_no_room_is_an_error_with_its_code(volume: Path, folder: Path) -> None:
    (folder / "sub").write_text("a file where a folder is needed")
    with pytest.raises(JobError) as caught:
        bring(VolumeInputs(volume, folder, volume_calls()), load("sub/mask.png"), "job")
    assert caught.value.code == "image.not_stored"


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_copies_beyond_the_size_go_the_longest_unused_first(
    volume: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volume_cache, "_UNUSED_BYTES", 250)
    clock = Clock()
    copies = VolumeInputs(volume, folder, volume_calls(), clock)
    for name in ("a.png", "b.png", "c.png"):
        (volume / name).write_bytes(b"x" * 100)
        bring(copies, load(name), name)
        clock.seconds += 1
    assert names(folder) == ["a.png", "b.png", "c.png"], "all are used"
    for user in ("b.png", "c.png"):
        copies.release(user)
        clock.seconds += 1
    assert names(folder) == ["a.png", "b.png", "c.png"], "two that are not used have room"
    copies.release("a.png")
    assert names(folder) == ["a.png", "c.png"]
    bring(copies, load("b.png"), "again")
    assert (folder / "b.png").stat().st_size == 100


def test_copies_that_no_job_named_for_long_go_and_others_do_not(volume: Path, folder: Path) -> None:
    clock = Clock()
    copies = VolumeInputs(volume, folder, volume_calls(), clock)
    (folder / "own.png").write_bytes(b"of a node")
    (folder / "photo.png").write_bytes(b"of a node")
    bring(copies, load("photo.png"), "1")
    bring(copies, load("sub/mask.png"), "2")
    copies.release("2")
    clock.seconds += 3601
    copies.release("3")
    assert names(folder) == ["own.png", "photo.png"], "one job uses it still"
    copies.release("1")
    (folder / "photo.png").write_bytes(b"of a node again")
    clock.seconds += 3601
    copies.release("4")
    assert names(folder) == ["own.png", "photo.png"], "it is no copy any more"


def test_a_job_that_ends_does_not_wait_for_another_ones_copy(
    volume: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = VolumeInputs(volume, folder, volume_calls())
    begun, go_on = threading.Event(), threading.Event()

    def slow(*_: object) -> None:
        begun.set()
        assert go_on.wait(10)

    monkeypatch.setattr(volume_cache, "_copy", slow)
    copying = threading.Thread(target=bring, args=(copies, load("photo.png"), "1"))
    copying.start()
    assert begun.wait(10)
    copies.release("2")
    copies.release("1")
    assert copying.is_alive()
    go_on.set()
    copying.join()


def test_who_reads_a_copy_is_not_disturbed_by_a_newer_one(volume: Path, folder: Path) -> None:
    copies = VolumeInputs(volume, folder, volume_calls())
    bring(copies, load("photo.png"), "1")
    with open(folder / "photo.png", "rb") as reader:
        (volume / "photo.png").write_bytes(b"new content")
        bring(copies, load("photo.png"), "2")
        assert reader.read() == PIXEL
    assert names(folder) == ["photo.png"] and (folder / "photo.png").read_bytes() == b"new content"


def test_what_a_job_had_from_the_volume_is_free_to_go_when_it_is_over(
    worker: BootedWorker, shared_volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a real ComfyUI; a bound of 0 bytes shows that the copy is no longer held."""
    monkeypatch.setattr(volume_cache, "_UNUSED_BYTES", 0)
    picture = shared_volume / "ComfyUI" / "input" / "shared-picture.png"
    picture.parent.mkdir(exist_ok=True)
    picture.write_bytes(png(4, 4))
    nodes = load(picture.name) | {
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "v"}}
    }
    for _ in range(2):
        reply = worker.ask({"workflow": nodes})
        assert reply["status"] == "completed", reply
        assert worker.boot.work is not None
        assert not (worker.boot.work.input / picture.name).exists()
