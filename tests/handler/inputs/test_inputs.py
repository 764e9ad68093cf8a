"""A job's input files: their names and contents."""

from __future__ import annotations

import asyncio
import base64
import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootstrap.config import Settings
from bootstrap.volume import Layout
from handler.common.blocking import Calls
from handler.common.errors import Deadline, JobError
from handler.inputs.fetch import Fetcher
from handler.inputs.job_inputs import JobInputs
from handler.inputs.volume_cache import VolumeInputs
from handler.request.fields import InputFile, checked_name, read_files

PIXEL = b"\x89PNG\r\n\x1a\n pixel"
TEXT = base64.b64encode(PIXEL).decode()
MARK = "0123456789ab"


def job_inputs(folder: Path, mark: str = MARK, **settings: Any) -> JobInputs:
    calls = Calls.on(Path("/"))
    fetcher = Fetcher(Settings(**settings), Deadline(30), calls.network)
    shared = VolumeInputs(Layout(folder / "no volume", False, None), folder, calls.volume)
    return JobInputs(folder, mark, fetcher, shared, calls.local)


def materialize(inputs: JobInputs, files: list[InputFile], workflow: dict[str, Any]) -> None:
    """As a job does, which removes its files at its end whatever happens."""
    try:
        asyncio.run(inputs.materialize(files, workflow, Deadline(30)))
    except BaseException:
        inputs.remove()
        raise


def place(
    files: list[InputFile], workflow: dict[str, Any], folder: Path, mark: str = MARK
) -> list[Path]:
    before = set(folder.rglob("*"))
    materialize(job_inputs(folder, mark), files, workflow)
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
def test_what_is_not_base64_is_refused(data: str) -> None:
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
def test_a_name_that_is_not_a_plain_file_name_is_refused(name: str) -> None:
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


_IN_A_NARROW_LOCALE = """
import asyncio, pathlib, sys
from handler.common.errors import Deadline
from handler.common.errors import JobError
from handler.request.fields import InputFile
from tests.handler.inputs.test_inputs import TEXT, job_inputs, load

folder = pathlib.Path(sys.argv[1])
name = "\\u7167\\u7247.png"
(folder / "no volume/ComfyUI/input").mkdir(parents=True)
for files, workflow in (([], load(name)), ([], load(name + " [output]"))):
    asyncio.run(job_inputs(folder).materialize(files, workflow, Deadline(30)))
try:
    asyncio.run(job_inputs(folder).materialize([InputFile(name, TEXT)], {}, Deadline(30)))
except JobError as error:
    print(sys.getfilesystemencoding(), error.code)
"""


def test_a_name_that_the_locale_cannot_write_has_a_code_of_its_own(folder: Path) -> None:
    env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    ran = subprocess.run(
        [sys.executable, "-c", _IN_A_NARROW_LOCALE, str(folder)],
        env=env, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert ran.stdout.split() == ["ascii", "image.bad_name"], ran.stderr


def test_removing_files_twice_is_fine(folder: Path) -> None:
    placed = job_inputs(folder)
    materialize(placed, [InputFile("a.png", TEXT)], {})
    assert os.listdir(folder)
    placed.remove()
    placed.remove()
    assert os.listdir(folder) == []


def test_a_folder_in_the_place_of_an_input_keeps_no_other_one(tmp_path: Path) -> None:
    """A node may replace what it was given; the job is done all the same."""
    inputs = job_inputs(tmp_path)
    files = [InputFile(name, data=TEXT) for name in ("a.png", "b.png")]
    materialize(inputs, files, load("a.png"))
    replaced = tmp_path / f"a-{MARK}.png"
    replaced.unlink()
    replaced.mkdir()
    inputs.remove()
    assert list(tmp_path.iterdir()) == [replaced]
