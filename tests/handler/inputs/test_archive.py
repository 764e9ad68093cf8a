"""Zip files of requests: unpacked where they are plain, refused where they are anything else."""

from __future__ import annotations

import base64
import copy
import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from handler.common.errors import JobError
from handler.inputs import archive as module
from handler.inputs.archive import unpack
from handler.request.fields import read_files
from tests.handler.inputs.test_inputs import job_inputs, materialize

PNG = b"\x89PNG\r\n\x1a\n" + b"pixel" * 100
MOST = 1_000_000


def packed(*entries: tuple[Any, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip file; an entry's name may be a ZipInfo."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", method) as made:
        for name, content in entries:
            made.writestr(name, content)
    return target.getvalue()


def info(name: str, mode: int) -> zipfile.ZipInfo:
    made = zipfile.ZipInfo(name)
    made.external_attr = mode << 16
    return made


def unpacked(folder: Path, content: bytes, most: float = MOST) -> list[str]:
    place = folder / "a.zip"
    place.write_bytes(content)
    return unpack(place, folder / "out", most, "The archive 'a.zip'")


def refused(folder: Path, content: bytes, code: str = "input.bad_archive") -> JobError:
    with pytest.raises(JobError) as caught:
        unpacked(folder, content)
    assert caught.value.code == code and caught.value.fix
    out = [path for path in folder.rglob("*") if path.is_symlink() or path.parent == folder]
    assert set(out) <= {folder / "a.zip", folder / "out"}, "nothing beside its folder"
    return caught.value


def test_files_and_folders_come_out_as_they_are(tmp_path: Path) -> None:
    content = packed(("a.png", PNG), ("deep/", b""), ("deep/er/b.png", PNG + b"b"), ("ü.txt", b""))
    assert unpacked(tmp_path, content) == ["a.png", "deep/er/b.png", "ü.txt"]
    assert (tmp_path / "out/deep/er/b.png").read_bytes() == PNG + b"b"


HOSTILE: dict[str, Callable[[], bytes]] = {
    "climbs": lambda: packed(("../evil.png", PNG)),
    "climbs inside": lambda: packed(("a/../../evil.png", PNG)),
    "absolute": lambda: packed(("/tmp/evil.png", PNG)),
    "backslash": lambda: packed(("a\\..\\evil.png", PNG)),
    "drive": lambda: packed(("c:evil.png", PNG)),
    "dot": lambda: packed(("./a.png", PNG)),
    "control": lambda: packed(("a\nb.png", PNG)),
    "long": lambda: packed(("x" * 250, PNG)),
    "deep": lambda: packed(("/".join("abcdefghijkl"), PNG)),
    "link": lambda: packed((info("link", 0o120777), b"/etc/passwd")),
    "link, then through it": lambda: packed(
        (info("link", 0o120777), b"/tmp"), ("link/evil.png", PNG)
    ),
    "device": lambda: packed((info("dev", 0o020666), b"")),
    "fifo": lambda: packed((info("pipe", 0o010666), b"")),
    "twice": lambda: packed(("A.png", PNG), ("a.png", PNG)),
    "file, then folder": lambda: packed(("a", PNG), ("a/b", PNG)),
    "folder, then file": lambda: packed(("a/b", PNG), ("a", PNG)),
    "bzip2": lambda: packed(("a.png", PNG), method=zipfile.ZIP_BZIP2),
    "lzma": lambda: packed(("a.png", PNG), method=zipfile.ZIP_LZMA),
    "not a zip": lambda: PNG,
    "empty": lambda: b"",
    "cut": lambda: packed(("a.png", PNG * 50))[:-30],
    "wrong checksum": lambda: packed(("a.png", PNG), method=0).replace(
        b"pixelpixel", b"pixelPIXEL", 1
    ),
    "encrypted": lambda: _with_flag(packed(("a.png", PNG)), 0x1),
    "many": lambda: packed(*((f"{n}", b"") for n in range(10_001))),
}


def _with_flag(content: bytes, flag: int) -> bytes:
    """Set a flag in the only entry's two headers."""
    changed = bytearray(content)
    central = content.index(b"PK\x01\x02")
    struct.pack_into("<H", changed, 6, flag)
    struct.pack_into("<H", changed, central + 8, flag)
    return bytes(changed)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_plain_archive_is_refused(tmp_path: Path, name: str) -> None:
    refused(tmp_path, HOSTILE[name]())
    assert not (tmp_path.parent / "evil.png").exists()
    assert not Path("/tmp/evil.png").exists()


def test_a_bomb_is_stopped_by_what_comes_out_whatever_it_says(tmp_path: Path) -> None:
    bomb = packed(("a", b"\0" * 3_000_000))
    assert len(bomb) < 10_000
    refused(tmp_path, bomb, "input.too_large")
    assert (tmp_path / "out/a").stat().st_size <= MOST
    lying = bytearray(bomb)
    central = bomb.index(b"PK\x01\x02")
    struct.pack_into("<L", lying, central + 24, 10)
    (tmp_path / "lying").mkdir()
    with pytest.raises(JobError):
        unpacked(tmp_path / "lying", bytes(lying))
    assert sum(p.stat().st_size for p in (tmp_path / "lying/out").rglob("*")) <= MOST


def test_many_small_ones_count_together(tmp_path: Path) -> None:
    refused(tmp_path, packed(*((str(n), b"\0" * 300_000) for n in range(5))), "input.too_large")


def test_a_list_of_contents_that_would_fill_the_memory_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LONGEST_LIST", 70_000)
    error = refused(tmp_path, packed(*((f"{n:0100}", b"") for n in range(1000))))
    assert "list of contents" in error.message


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 400), st.binary(min_size=1, max_size=8))
def test_whatever_the_bytes_are_it_is_unpacked_or_refused(
    tmp_path_factory: pytest.TempPathFactory, at: int, wrong: bytes
) -> None:
    folder = tmp_path_factory.mktemp("zip")
    content = bytearray(packed(("a.png", PNG), ("b/c.png", PNG)))
    content[at : at + len(wrong)] = wrong
    try:
        names = unpacked(folder, bytes(content))
    except JobError:
        names = []
    found = [p for p in folder.rglob("*") if p.is_file() and p.name != "a.zip"]
    assert len(found) >= len(names)


def test_a_workflow_names_what_is_in_it_by_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "input"
    folder.mkdir()
    data = base64.b64encode(packed(("1.png", PNG), ("2.png", PNG))).decode()
    files = list(read_files(None, [{"name": "frames.zip", "data": data, "unpack": True}]))
    nodes: dict[str, Any] = {
        "1": {"class_type": "VHS_LoadImages", "inputs": {"directory": "frames"}},
        "2": {"class_type": "LoadImage", "inputs": {"image": "frames/2.png"}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "frames"}},
        "4": {"class_type": "LoadImage", "inputs": {"image": "1.png"}},
    }
    inputs = job_inputs(folder)
    materialize(inputs, files, nodes)
    place = nodes["1"]["inputs"]["directory"]
    assert place != "frames" and (folder / place / "1.png").read_bytes() == PNG
    assert (folder / nodes["2"]["inputs"]["image"]).read_bytes() == PNG
    assert nodes["3"]["inputs"]["text"] == "frames", "a prompt is not a folder"
    assert nodes["4"]["inputs"]["image"] == f"{place}/1.png", "as cog's workflows name them"
    assert not list(folder.glob("*.zip"))
    inputs.remove()
    assert list(folder.rglob("*.png")) == []


def test_a_plain_name_counts_only_where_a_file_belongs(tmp_path: Path) -> None:
    folder = tmp_path / "input"
    folder.mkdir()
    names = ("a.png", "normal", "model.safetensors", "frames/deep.png")
    data = base64.b64encode(packed(*((name, PNG) for name in names))).decode()
    files = list(read_files(None, [{"name": "x.zip", "data": data, "unpack": True}]))
    others: dict[str, Any] = {
        "2": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "model.safetensors"}},
        "3": {"class_type": "KSampler", "inputs": {"scheduler": "normal"}},
        "4": {"class_type": "CLIPTextEncode", "inputs": {"text": "normal"}},
        "5": {"class_type": "Mine", "inputs": {"image": "a.png", "mode": "normal"}},
    }
    nodes = copy.deepcopy(others)
    nodes["1"] = {"class_type": "LoadImage", "inputs": {"image": "frames/deep.png [input]"}}
    nodes["6"] = {"class_type": "Mine", "inputs": {"latent": "x/model.safetensors"}}
    materialize(job_inputs(folder), files, nodes)
    place, end = nodes["5"]["inputs"].pop("image").rsplit("/", 1)
    assert end == "a.png" and others["5"]["inputs"].pop("image")
    assert {key: nodes[key] for key in others} == others
    assert nodes["1"]["inputs"]["image"] == f"{place}/frames/deep.png [input]"
    assert nodes["6"]["inputs"]["latent"] == f"{place}/model.safetensors"


def test_a_file_that_was_sent_goes_before_one_in_an_archive(tmp_path: Path) -> None:
    folder = tmp_path / "input"
    folder.mkdir()
    data = base64.b64encode(packed(("a.png", PNG))).decode()
    own = base64.b64encode(PNG + b"own").decode()
    given = [{"name": "f.zip", "data": data, "unpack": True}, {"name": "a.png", "data": own}]
    nodes: dict[str, Any] = {"1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}}}
    materialize(job_inputs(folder), list(read_files(None, given)), nodes)
    assert (folder / nodes["1"]["inputs"]["image"]).read_bytes() == PNG + b"own"


def test_a_bad_archive_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = tmp_path / "input"
    folder.mkdir()
    data = base64.b64encode(packed(("1.png", PNG), ("../2.png", PNG))).decode()
    files = list(read_files(None, [{"name": "f.zip", "data": data, "unpack": True}]))
    with pytest.raises(JobError):
        materialize(job_inputs(folder), files, {})
    assert list(folder.rglob("*")) == []
