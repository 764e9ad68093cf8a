"""A job's input files: names, contents, and files of the volume that a workflow names."""

from __future__ import annotations

import base64
import errno
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootstrap.settings import Settings
from handler import inputs
from handler.deadline import Deadline
from handler.errors import JobError
from handler.fetch_inputs import Fetcher
from handler.inputs import JobInputs
from handler.request_files import InputFile, checked_name, read_files

PIXEL = b"\x89PNG\r\n\x1a\n pixel"
TEXT = base64.b64encode(PIXEL).decode()
MARK = "0123456789ab"


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


def job_inputs(folder: Path, mark: str = MARK, **settings: Any) -> JobInputs:
    return JobInputs(folder, mark, Fetcher(Settings(**settings), Deadline(30)))


def place(
    files: list[InputFile], workflow: dict[str, Any], folder: Path, mark: str = MARK
) -> list[Path]:
    before = set(folder.rglob("*"))
    job_inputs(folder, mark).place(files, workflow)
    return sorted(set(folder.rglob("*")) - before)


def load(name: Any) -> dict[str, dict[str, Any]]:
    return {"1": {"class_type": "LoadImage", "inputs": {"image": name}}}


def refused(name: str = "a.png", data: str = TEXT) -> str:
    with pytest.raises(JobError) as caught:
        place(list(read_files([{"name": name, "image": data}], None)), {}, Path("/nowhere"), MARK)
    return caught.value.code


def test_an_image_gets_the_jobs_mark_and_the_workflow_refers_to_it(folder: Path) -> None:
    workflow = load("photo.png")
    (path,) = place([InputFile("photo.png", TEXT)], workflow, folder, MARK)
    assert path == folder / f"photo-{MARK}.png" and path.read_bytes() == PIXEL
    assert workflow == load(f"photo-{MARK}.png")


@pytest.mark.parametrize(
    "data",
    [
        f"data:image/png;base64,{TEXT}",
        f"data:;base64,{TEXT}",
        f"DATA:image/svg+xml;charset=utf-8;BASE64,{TEXT}",
        f"{TEXT[:8]}\n {TEXT[8:]}\r\n",
    ],
)
def test_data_uris_and_white_space_are_understood(folder: Path, data: str) -> None:
    (path,) = place([InputFile("a.png", data)], {}, folder, MARK)
    assert path.read_bytes() == PIXEL


@pytest.mark.parametrize("data", ["QQ", "QQ=", "a-b_", "é", "ftp://x/y.png", "data:image/png,x"])
def test_what_is_no_base64_is_refused(data: str) -> None:
    assert refused(data=data) == "image.bad_base64"


@pytest.mark.parametrize("data", [" \n", "data:image/png;base64,"])
def test_an_image_without_content_is_refused(data: str) -> None:
    assert refused(data=data) == "image.no_data"


@pytest.mark.parametrize(
    "name",
    [
        "..",
        ".",
        "../a.png",
        "/etc/passwd",
        "sub/a.png",
        "a\\b.png",
        "a\0.png",
        "a\n.png",
        "\ud800.png",
        " a.png",
        "a.png ",
        " ",
        "x" * 300 + ".png",
        "ü" * 101,
    ],
)
def test_a_name_that_is_no_plain_file_name_is_refused(name: str) -> None:
    assert refused(name) == "image.bad_name"


def name_or_error(name: str) -> str | JobError:
    try:
        return checked_name(name)
    except JobError as error:
        return error


@given(st.text())
def test_a_name_that_is_taken_is_one_path_component_that_fits(name: str) -> None:
    plain = name_or_error(name)
    if isinstance(plain, JobError):
        assert plain.code == "image.bad_name"
        str(plain).encode()
        return
    assert os.path.basename(plain) == plain not in ("", ".", "..")
    assert len(plain.encode()) <= 200 and "\0" not in plain


def test_one_name_in_two_unicode_spellings_is_the_same_name(folder: Path) -> None:
    workflow = load("u\u0308.png")
    place([InputFile("ü.png", TEXT)], workflow, folder, MARK)
    assert workflow["1"]["inputs"]["image"] == f"ü-{MARK}.png"


def test_nothing_is_written_when_one_of_the_images_is_bad(folder: Path) -> None:
    images = [InputFile("a.png", TEXT), InputFile("b.png", "!")]
    with pytest.raises(JobError):
        place(images, {}, folder, MARK)
    assert os.listdir(folder) == []


def test_nothing_stays_when_the_disk_gets_full(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        real(path, content[:3])
        if path.name.startswith("b"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return 3

    monkeypatch.setattr(Path, "write_bytes", full)
    images = [InputFile("a.png", TEXT), InputFile("b.png", TEXT)]
    with pytest.raises(JobError) as caught:
        place(images, {}, folder, MARK)
    assert caught.value.code == "image.not_stored"
    assert "No space left" in caught.value.message
    assert os.listdir(folder) == []


def test_removing_files_twice_is_fine(folder: Path) -> None:
    placed = job_inputs(folder)
    placed.place([InputFile("a.png", TEXT)], {})
    assert os.listdir(folder)
    placed.remove()
    placed.remove()
    assert os.listdir(folder) == []


@pytest.mark.parametrize("name", ["photo.png", "photo.png [input]", "sub/mask.png"])
def test_files_of_the_volume_that_the_workflow_names_are_copied(
    volume: Path, folder: Path, name: str
) -> None:
    inputs.fetch_from_volume(load(name), volume, folder)
    place = folder / name.removesuffix(" [input]")
    assert place.read_bytes() == PIXEL and not place.is_symlink()


def test_a_file_that_is_a_link_on_the_volume_is_copied_under_the_name_that_was_asked_for(
    volume: Path, folder: Path
) -> None:
    (volume / "latest.png").symlink_to("sub/mask.png")
    inputs.fetch_from_volume(load("latest.png"), volume, folder)
    assert (folder / "latest.png").read_bytes() == PIXEL


def test_a_copy_is_made_again_when_the_volumes_file_has_changed(volume: Path, folder: Path) -> None:
    for content in (PIXEL, b"other content"):
        (volume / "photo.png").write_bytes(content)
        inputs.fetch_from_volume(load("photo.png"), volume, folder)
        assert (folder / "photo.png").read_bytes() == content


def test_a_copy_that_is_up_to_date_is_left_alone(volume: Path, folder: Path) -> None:
    inputs.fetch_from_volume(load("photo.png"), volume, folder)
    before = (folder / "photo.png").stat().st_ctime_ns
    inputs.fetch_from_volume(load("photo.png"), volume, folder)
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
    inputs.fetch_from_volume(load(value), volume, folder)
    assert os.listdir(folder) == []


def test_a_volume_without_input_folder_is_fine(tmp_path: Path, folder: Path) -> None:
    inputs.fetch_from_volume(load("photo.png"), tmp_path / "nowhere", folder)
    assert os.listdir(folder) == []


def test_a_copy_that_finds_no_room_is_an_error_with_its_code(volume: Path, folder: Path) -> None:
    (folder / "sub").write_text("a file where a folder is needed")
    with pytest.raises(JobError) as caught:
        inputs.fetch_from_volume(load("sub/mask.png"), volume, folder)
    assert caught.value.code == "image.not_stored"
