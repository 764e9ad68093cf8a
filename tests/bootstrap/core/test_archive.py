"""Zip files from elsewhere: unpacked where they are plain, refused where they are anything else."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bootstrap.core import archive as module
from bootstrap.core.archive import ArchiveTooLarge, BadArchive, Limits, unpack

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
    return unpack(place, folder / "out", Limits(most)).names


def refused(folder: Path, content: bytes, kind: type[BadArchive] = BadArchive) -> str:
    with pytest.raises(BadArchive) as caught:
        unpacked(folder, content)
    assert type(caught.value) is kind
    out = [path for path in folder.rglob("*") if path.is_symlink() or path.parent == folder]
    assert set(out) <= {folder / "a.zip", folder / "out"}, "nothing beside its folder"
    return str(caught.value)


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
    "long as a whole": lambda: packed(("/".join(["n" * 190] * 6), PNG)),
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
def test_what_is_not_a_plain_archive_is_refused(tmp_path: Path, name: str) -> None:
    refused(tmp_path, HOSTILE[name]())
    assert not (tmp_path.parent / "evil.png").exists()
    assert not Path("/tmp/evil.png").exists()


def test_a_bomb_is_stopped_by_what_comes_out_whatever_it_says(tmp_path: Path) -> None:
    bomb = packed(("a", b"\0" * 3_000_000))
    assert len(bomb) < 10_000
    refused(tmp_path, bomb, ArchiveTooLarge)
    assert (tmp_path / "out/a").stat().st_size <= MOST
    lying = bytearray(bomb)
    central = bomb.index(b"PK\x01\x02")
    struct.pack_into("<L", lying, central + 24, 10)
    (tmp_path / "lying").mkdir()
    with pytest.raises(BadArchive):
        unpacked(tmp_path / "lying", bytes(lying))
    assert sum(p.stat().st_size for p in (tmp_path / "lying/out").rglob("*")) <= MOST


def test_many_small_ones_count_together(tmp_path: Path) -> None:
    refused(tmp_path, packed(*((str(n), b"\0" * 300_000) for n in range(5))), ArchiveTooLarge)


def test_a_list_of_contents_that_would_fill_the_memory_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LONGEST_LIST", 70_000)
    error = refused(tmp_path, packed(*((f"{n:0100}", b"") for n in range(1000))))
    assert "list of contents" in error


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
    except BadArchive:
        names = []
    found = [p for p in folder.rglob("*") if p.is_file() and p.name != "a.zip"]
    assert len(found) >= len(names)


def test_the_one_folder_that_holds_all_can_be_left_out(tmp_path: Path) -> None:
    place = tmp_path / "a.zip"
    place.write_bytes(packed(("pack-1/", b""), ("pack-1/a.py", b"a"), ("pack-1/b/c.py", b"c")))
    assert unpack(place, tmp_path / "out", Limits(MOST), top=True).names == ["a.py", "b/c.py"]
    assert (tmp_path / "out/b/c.py").read_bytes() == b"c"


@pytest.mark.parametrize("names", [("a/x", "b/y"), ("x",), ()])
def test_one_without_such_a_folder_is_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    place = tmp_path / "a.zip"
    place.write_bytes(packed(*((name, b"") for name in names)))
    with pytest.raises(BadArchive):
        unpack(place, tmp_path / "out", Limits(MOST), top=True)


def test_names_that_differ_in_case_are_two_where_they_may(tmp_path: Path) -> None:
    place = tmp_path / "a.zip"
    place.write_bytes(packed(("README.md", b"A"), ("readme.md", b"a")))
    assert len(unpack(place, tmp_path / "out", Limits(MOST, fold=False)).names) == 2


def test_its_comment_is_read_where_it_has_one(tmp_path: Path) -> None:
    place = tmp_path / "a.zip"
    place.write_bytes(packed(("a", b"")))
    assert unpack(place, tmp_path / "plain", Limits(MOST)).comment == ""
    with zipfile.ZipFile(place, "w") as made:
        made.writestr("a", b"")
        made.comment = b"0123456789abcdef"
    assert unpack(place, tmp_path / "out", Limits(MOST)).comment == "0123456789abcdef"
