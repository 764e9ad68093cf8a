"""Files on the volume that a workflow names: copied, shared by jobs, and not kept forever."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from bootstrap.volume import Layout
from handler.common.blocking import Calls, VolumeWatchdog
from handler.common.errors import Deadline, JobError
from handler.inputs import volume_cache
from handler.inputs.volume_cache import VolumeInputs
from tests.conftest import BootedWorker
from tests.end_to_end.test_worker import png

PIXEL = b"\x89PNG\r\n\x1a\n pixel"


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    path = tmp_path / "volume/ComfyUI/input"
    (path / "sub").mkdir(parents=True)
    (path / "photo.png").write_bytes(PIXEL)
    (path / "sub/mask.png").write_bytes(PIXEL)
    return path


def layout_of(volume_input: Path) -> Layout:
    root = volume_input.parent.parent
    return Layout(root, True, root / "ComfyUI")


def volume_calls() -> VolumeWatchdog:
    return Calls.on(Path("/")).volume


def bring(copies: VolumeInputs, workflow: dict[str, dict[str, Any]], user: str) -> None:
    asyncio.run(copies.ensure_copies(workflow, user, Deadline(30)))


def load(name: Any) -> dict[str, dict[str, Any]]:
    return {"1": {"class_type": "LoadImage", "inputs": {"image": name}}}


@pytest.mark.parametrize("name", ["photo.png", "photo.png [input]", "sub/mask.png"])
def test_files_of_the_volume_that_the_workflow_names_are_copied(
    volume: Path, folder: Path, name: str
) -> None:
    bring(VolumeInputs(layout_of(volume), folder, volume_calls()), load(name), "job")
    place = folder / name.removesuffix(" [input]")
    assert place.read_bytes() == PIXEL and not place.is_symlink()


def test_a_file_that_is_a_link_on_the_volume_is_copied_under_the_name_that_was_asked_for(
    volume: Path, folder: Path
) -> None:
    (volume / "latest.png").symlink_to("sub/mask.png")
    bring(VolumeInputs(layout_of(volume), folder, volume_calls()), load("latest.png"), "job")
    assert (folder / "latest.png").read_bytes() == PIXEL


def test_a_copy_is_made_again_when_the_volumes_file_has_changed(volume: Path, folder: Path) -> None:
    for content in (PIXEL, b"other content"):
        (volume / "photo.png").write_bytes(content)
        bring(VolumeInputs(layout_of(volume), folder, volume_calls()), load("photo.png"), "job")
        assert (folder / "photo.png").read_bytes() == content


def test_a_copy_that_is_up_to_date_is_left_alone(volume: Path, folder: Path) -> None:
    bring(VolumeInputs(layout_of(volume), folder, volume_calls()), load("photo.png"), "job")
    before = (folder / "photo.png").stat().st_ctime_ns
    bring(VolumeInputs(layout_of(volume), folder, volume_calls()), load("photo.png"), "job")
    assert (folder / "photo.png").stat().st_ctime_ns == before


@pytest.mark.parametrize(
    "value",
    [
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
    bring(VolumeInputs(layout_of(volume), folder, volume_calls()), load(value), "job")
    assert os.listdir(folder) == []


@pytest.mark.parametrize("name", ["x.latent", "noext", "a.safetensors", "照片 one.PNG", "a.b c"])
def test_any_name_will_do(volume: Path, folder: Path, name: str) -> None:
    (volume / name).write_bytes(PIXEL)
    bring(VolumeInputs(layout_of(volume), folder, volume_calls()), load(name), "job")
    assert (folder / name).read_bytes() == PIXEL


@pytest.mark.parametrize("class_type", ["LoadImageDataSetFromFolder", "SomeNode", "LoadSomething"])
@pytest.mark.parametrize("name", ["folder", "directory", "image_dir", "input_path"])
def test_a_folder_is_copied_with_all_that_is_in_it(
    volume: Path, folder: Path, class_type: str, name: str
) -> None:
    (volume / "sub/deep").mkdir()
    (volume / "sub/deep/1.png").write_bytes(PIXEL)
    (volume / "sub/link.png").symlink_to("mask.png")
    (volume / "sub/escape.png").symlink_to("/etc/hostname")
    (volume / "sub/round").symlink_to(".")
    nodes: dict[str, dict[str, Any]] = {"1": {"class_type": class_type, "inputs": {name: "sub"}}}
    bring(VolumeInputs(layout_of(volume), folder, volume_calls()), nodes, "job")
    assert names(folder) == ["1.png", "link.png", "mask.png"]
    assert (folder / "sub/deep/1.png").read_bytes() == PIXEL
    assert next(iter(nodes["1"]["inputs"].values())) == "sub"


def test_a_file_that_goes_while_its_folder_is_listed_costs_no_other_one_nor_does_a_link_to_itself(
    folder: Path,
) -> None:
    (folder / "first").symlink_to("first")
    for number in range(20):
        (folder / str(number)).touch()
    (folder / "last").symlink_to("last")
    listing = volume_cache._files_below(folder, folder)
    first, _ = next(listing)
    gone = {str(number) for number in range(0, 20, 2)} - {first}
    for name in gone:
        (folder / name).unlink()
    assert {first, *(name for name, _ in listing)} == {str(n) for n in range(20)} - gone


def test_what_is_gone_from_a_folder_goes_from_its_copy(volume: Path, folder: Path) -> None:
    copies = VolumeInputs(layout_of(volume), folder, volume_calls())
    nodes: dict[str, dict[str, Any]] = {"1": {"class_type": "X", "inputs": {"folder": "sub"}}}
    (volume / "sub/old.png").write_bytes(PIXEL)
    bring(copies, nodes, "1")
    (volume / "sub/old.png").unlink()
    bring(copies, nodes, "2")
    assert names(folder) == ["mask.png", "old.png"], "the first job reads it still"
    copies.release("1")
    copies.release("2")
    bring(copies, nodes, "3")
    assert names(folder) == ["mask.png"]


def test_a_folder_that_the_disk_does_not_hold_is_an_error(volume: Path, folder: Path) -> None:
    nodes: dict[str, dict[str, Any]] = {"1": {"class_type": "X", "inputs": {"folder": "sub"}}}
    with open(volume / "sub/huge.png", "wb") as file:
        file.truncate(1 << 43)
    with pytest.raises(JobError, match="no space for") as caught:
        bring(VolumeInputs(layout_of(volume), folder, volume_calls()), nodes, "job")
    assert caught.value.code == "image.not_stored" and os.listdir(folder) == []


@pytest.mark.parametrize(
    ("text", "becomes"),
    [
        ("sub\\mask.png", "sub/mask.png"),
        ("sub\\mask.png [input]", "sub/mask.png"),
        ("{root}/ComfyUI/input/sub/mask.png", "sub/mask.png"),
        ("/workspace/ComfyUI/input/sub/mask.png", "sub/mask.png"),
        ("/runpod-volume/ComfyUI/input/sub/mask.png", "sub/mask.png"),
        ("old.png [output]", ".from-output/old.png"),
        ("old.png[output]", ".from-output/old.png"),
        ("deep\\old.png [output]", ".from-output/deep/old.png"),
        ("/workspace/ComfyUI/output/old.png", ".from-output/old.png"),
    ],
)
def test_a_loader_names_a_file_of_the_volume_in_any_way(
    volume: Path, folder: Path, text: str, becomes: str
) -> None:
    output = volume.parent / "output"
    (output / "deep").mkdir(parents=True)
    for name in ("old.png", "deep/old.png"):
        (output / name).write_bytes(PIXEL)
    nodes = load(text.format(root=volume.parent.parent))
    bring(VolumeInputs(layout_of(volume), folder, volume_calls()), nodes, "job")
    assert nodes == load(becomes) and (folder / becomes).read_bytes() == PIXEL


@pytest.mark.parametrize("text", ["new.png [output]", "p.png [temp]", "gone.png"])
def test_what_is_not_on_the_volume_is_left_to_comfyui(
    volume: Path, folder: Path, text: str
) -> None:
    nodes = load(text)
    bring(VolumeInputs(layout_of(volume), folder, volume_calls()), nodes, "job")
    assert nodes == load(text) and os.listdir(folder) == []


def test_a_path_by_the_other_mount_leads_to_the_volume_in_any_node(
    volume: Path, folder: Path
) -> None:
    root = volume.parent.parent
    inputs = {"video_path": "/workspace/ComfyUI/input/photo.png", "path": "/workspace/gone.png"}
    nodes: dict[str, dict[str, Any]] = {"1": {"class_type": "SomeNode", "inputs": inputs}}
    bring(VolumeInputs(layout_of(volume), folder, volume_calls()), nodes, "job")
    assert nodes["1"]["inputs"] == {
        "video_path": f"{root}/ComfyUI/input/photo.png", "path": "/workspace/gone.png"
    }  # fmt: skip


OUTSIDE = [
    "/etc/hostname", "/etc/no-such-file", "../secret.txt", "../nothing.txt", "sub/../../secret.txt",
    "../secret.txt [output]", "/etc/hostname [output]", "../../x [temp]", "..\\secret.txt",
    "/etc/hostname[input]", "{root}/secret.txt", "{root}/ComfyUI/input/../secret.txt", "..",
    "/workspace/ComfyUI/models/a.png",
]  # fmt: skip
LOADERS = [
    ("LoadImage", "image"), ("LoadImageMask", "image"), ("LoadImageOutput", "image"),
    ("LoadLatent", "latent"), ("LoadAudio", "audio"), ("LoadVideo", "file"),
    ("LoadImageDataSetFromFolder", "folder"), ("VHS_LoadImages", "directory"),
]  # fmt: skip


@pytest.mark.parametrize("text", OUTSIDE)
@pytest.mark.parametrize(("class_type", "name"), LOADERS)
def test_an_upload_loader_reads_nothing_else_and_does_not_reveal_whether_it_exists(
    volume: Path, folder: Path, class_type: str, name: str, text: str
) -> None:
    (volume.parent / "secret.txt").write_text("secret")
    text = text.format(root=volume.parent.parent)
    nodes: dict[str, dict[str, Any]] = {"1": {"class_type": class_type, "inputs": {name: text}}}
    with pytest.raises(JobError) as caught:
        bring(VolumeInputs(layout_of(volume), folder, volume_calls()), nodes, "job")
    assert caught.value.code == "input.outside" and os.listdir(folder) == []
    assert "exist" not in str(caught.value)


def test_names_in_lists_and_objects_of_a_loader_are_looked_at(volume: Path, folder: Path) -> None:
    for inputs in ({"images": ["photo.png", "/etc/passwd"]}, {"image": {"mask": "../x"}}):
        nodes: dict[str, dict[str, Any]] = {"1": {"class_type": "Load3D", "inputs": inputs}}
        with pytest.raises(JobError) as caught:
            bring(VolumeInputs(layout_of(volume), folder, volume_calls()), nodes, "job")
        assert caught.value.code == "input.outside"


def test_a_link_in_the_volumes_output_leads_no_further(volume: Path, folder: Path) -> None:
    (volume.parent / "output").mkdir()
    (volume.parent / "output/link.png").symlink_to("/etc/hostname")
    nodes = load("link.png [output]")
    bring(VolumeInputs(layout_of(volume), folder, volume_calls()), nodes, "job")
    assert os.listdir(folder) == []


def test_a_volume_without_input_folder_is_fine(tmp_path: Path, folder: Path) -> None:
    nowhere = layout_of(tmp_path / "nowhere/ComfyUI/input")
    bring(VolumeInputs(nowhere, folder, volume_calls()), load("photo.png"), "job")
    assert os.listdir(folder) == []


def test_a_copy_that_finds_no_room_is_an_error_with_its_code(volume: Path, folder: Path) -> None:
    (folder / "sub").write_text("a file where a folder is needed")
    with pytest.raises(JobError) as caught:
        bring(VolumeInputs(layout_of(volume), folder, volume_calls()), load("sub/mask.png"), "job")
    assert caught.value.code == "image.not_stored"


class Clock:
    seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(volume_cache, "time", clock)
    return clock


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_copies_beyond_the_size_go_the_longest_unused_first(
    volume: Path, folder: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volume_cache, "_UNUSED_BYTES", 250)
    copies = VolumeInputs(layout_of(volume), folder, volume_calls())
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


def test_copies_that_no_job_named_for_long_go_and_others_do_not(
    volume: Path, folder: Path, clock: Clock
) -> None:
    copies = VolumeInputs(layout_of(volume), folder, volume_calls())
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
    assert names(folder) == ["own.png", "photo.png"], "it is no longer a copy"


def test_a_job_that_ends_does_not_wait_for_another_ones_copy(
    volume: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = VolumeInputs(layout_of(volume), folder, volume_calls())
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


def test_a_copy_for_a_job_that_ended_while_the_volume_was_silent_is_not_kept_for_it(
    volume: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call goes on when the volume responds again, and its job never releases another copy."""
    monkeypatch.setattr(volume_cache, "_UNUSED_BYTES", 0)
    copies = VolumeInputs(layout_of(volume), folder, volume_calls())
    begun, go_on = threading.Event(), threading.Event()
    copy = volume_cache._copy

    def slow(source: Path, target: Path) -> None:
        begun.set()
        assert go_on.wait(10)
        copy(source, target)

    monkeypatch.setattr(volume_cache, "_copy", slow)
    two = load("photo.png") | {"2": load("sub/mask.png")["1"]}
    copying = threading.Thread(target=bring, args=(copies, two, "1"))
    copying.start()
    assert begun.wait(10)
    copies.release("1")
    go_on.set()
    copying.join()
    copies.release("another")
    assert names(folder) == []


def test_who_reads_a_copy_is_not_disturbed_by_a_newer_one(volume: Path, folder: Path) -> None:
    copies = VolumeInputs(layout_of(volume), folder, volume_calls())
    bring(copies, load("photo.png"), "1")
    with open(folder / "photo.png", "rb") as reader:
        (volume / "photo.png").write_bytes(b"new content")
        bring(copies, load("photo.png"), "2")
        assert reader.read() == PIXEL
    assert names(folder) == ["photo.png"] and (folder / "photo.png").read_bytes() == b"new content"


def test_a_jobs_copies_from_the_volume_are_released_when_it_ends(
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
        assert not (worker.serving.work.input / picture.name).exists()
