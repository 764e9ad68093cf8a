"""What a prompt's history says it produced, for the shapes that nodes report."""

from __future__ import annotations

from typing import Any

import pytest

from handler.outputs import ProducedFile, ProducedText, produced


def file(name: str, type: str = "output", subfolder: str = "") -> dict[str, Any]:
    return {"filename": name, "subfolder": subfolder, "type": type}


def test_every_image_of_a_batch_counts_in_order() -> None:
    names = [f"a_0000{n}_.png" for n in (1, 2, 3)]
    found, warnings = produced({"9": {"images": [file(name) for name in names]}})
    assert found == [ProducedFile("9", name, "", "output") for name in names]
    assert warnings == []


@pytest.mark.parametrize(
    ("outputs", "names"),
    [
        ({"9": {"images": [file("a.mp4")], "animated": [True]}}, ["a.mp4"]),
        ({"9": {"gifs": [{**file("a.webm"), "fullpath": "/x"}]}}, ["a.webm"]),
        ({"9": {"audio": [file("a.flac")], "latents": [file("a.latent")]}}, ["a.flac", "a.latent"]),
        ({"9": {"3d": [file("a.glb")], "result": ["a.glb", {}, None]}}, ["a.glb"]),
        ({"9": {"video": file("a.mp4")}}, ["a.mp4"]),
        ({"9": {"images": [file("a.png"), file("a.png")], "copy": [file("a.png")]}}, ["a.png"]),
        ({"9": {"images": [{"filename": 7}, {"filename": None}, "x"]}, "8": None, "7": []}, []),
    ],
)  # fmt: skip
def test_anything_with_a_file_name_is_a_file(outputs: dict[str, Any], names: list[str]) -> None:
    assert [f.filename for f in produced(outputs)[0] if isinstance(f, ProducedFile)] == names


def test_texts_count_and_stay_in_order_with_files() -> None:
    found, _ = produced({"1": {"text": ["one", "two"]}, "2": {"text": "three"}})
    assert found == [ProducedText("1", "one"), ProducedText("1", "two"), ProducedText("2", "three")]


def test_missing_fields_of_a_file_have_defaults() -> None:
    found, _ = produced({"9": {"files": [{"filename": "a.bin", "subfolder": None}]}})
    assert found == [ProducedFile("9", "a.bin", "", "output")]


def test_previews_are_left_out_when_there_is_something_else() -> None:
    found, warnings = produced({"1": {"images": [file("p.png", "temp")]}, "2": {"text": ["x"]}})
    assert found == [ProducedText("2", "x")] and warnings == []


def test_previews_alone_count_with_a_warning() -> None:
    found, (warning,) = produced({"1": {"images": [file("p.png", "temp")]}})
    assert found == [ProducedFile("1", "p.png", "", "temp")]
    assert "SaveImage" in warning


def test_nothing_at_all_is_a_warning() -> None:
    assert produced({}) == ([], ["the workflow ran, but its nodes reported no output"])


@pytest.mark.parametrize(
    ("name", "mime_type", "kind"),
    [
        ("a.png", "image/png", "image"),
        ("a.WEBP", "image/webp", "image"),
        ("a.jpg", "image/jpeg", "image"),
        ("a.mp4", "video/mp4", "video"),
        ("a.webm", "video/webm", "video"),
        ("a.mkv", "video/x-matroska", "video"),
        ("a.flac", "audio/flac", "audio"),
        ("a.mp3", "audio/mpeg", "audio"),
        ("a.glb", "model/gltf-binary", "model"),
        ("a.latent", "application/octet-stream", "file"),
        ("a.txt", "text/plain", "file"),
        ("png", "application/octet-stream", "file"),
        ("a.b.unheard-of", "application/octet-stream", "file"),
    ],
)
def test_the_kind_is_told_by_the_extension(name: str, mime_type: str, kind: str) -> None:
    produced_file = ProducedFile("9", name, "", "output")
    assert (produced_file.mime_type, produced_file.kind) == (mime_type, kind)
