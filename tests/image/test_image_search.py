"""The search through an image's layers: what it finds, and how it names the place."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.image import search
from tests.image.search import places

CLUE = "/someone/checkout"
NOTES = "usr/share/doc/thing/notes.txt"
SUMS = "var/lib/dpkg/info/thing.md5sums"


def layer(folder: Path, files: Mapping[str, str]) -> Path:
    """An archive with these files; `a -> b` is a link."""
    path = folder / "layer.tar"
    with tarfile.open(path, "w") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(name.partition(" -> ")[0])
            if " -> " in name:
                member.type, member.linkname = tarfile.SYMTYPE, name.partition(" -> ")[2]
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return path


def test_nothing_is_found_in_a_layer_without_the_clues(tmp_path: Path) -> None:
    assert places(layer(tmp_path, {"one": "nothing"}), [CLUE, "secret"]) == []


def test_content_name_and_target_are_reported_by_file_each_once(tmp_path: Path) -> None:
    files = {
        "first": "nothing",
        "opt/second": f"a {CLUE} and {CLUE} again, secret",
        f"at{CLUE}/third": "",
        f"fourth -> {CLUE}": "",
    }
    assert places(layer(tmp_path, files), [CLUE, "secret", "absent"]) == [
        f"{CLUE} in at{CLUE}/third",
        f"{CLUE} in fourth",
        f"{CLUE} in opt/second",
        "secret in opt/second",
    ]


def test_a_name_too_long_for_its_header_is_found_too(tmp_path: Path) -> None:
    name = f"{'long/' * 60}{CLUE[1:]}"
    assert places(layer(tmp_path, {"first": "", name: ""}), [CLUE]) == [f"{CLUE} in {name}"]


@pytest.mark.parametrize("piece", [1, 2, 7, 512])
def test_a_clue_across_two_blocks_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr(search, "_PIECE", piece)
    tar = layer(tmp_path, {"one": "x" * 500 + CLUE + "y" * 5 + CLUE})
    assert places(tar, [CLUE]) == [f"{CLUE} in one"]


def test_a_file_identical_to_its_debian_packages_is_skipped(tmp_path: Path) -> None:
    text = f"paths such as ~{CLUE}"
    md5 = hashlib.md5(text.encode()).hexdigest()
    sums = {SUMS: f"{md5}  {NOTES}\n"}
    assert places(layer(tmp_path, {NOTES: text, **sums}), [CLUE]) == []
    assert places(layer(tmp_path, {NOTES: f"{text}, changed", **sums}), [CLUE]) == [
        f"{CLUE} in {NOTES}"
    ]
    assert places(layer(tmp_path, {"etc/other": text, **sums}), [CLUE]) == [f"{CLUE} in etc/other"]


def test_a_clue_between_files_is_found(tmp_path: Path) -> None:
    tar = layer(tmp_path, {"one": "1"})
    with tar.open("ab") as file:
        file.write(CLUE.encode())
    assert places(tar, [CLUE]) == [f"{CLUE} in the space between files"]
