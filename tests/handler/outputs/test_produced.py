"""A prompt's outputs by its history, for the shapes that nodes report."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler.outputs.produced import ProducedFile, ProducedText, produced


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
        ({"9": {"ui": {"deep": {"files": [[file("a.zip")]]}}}}, ["a.zip"]),
        ({"9": {"model_file": "3d/a.glb"}}, ["a.glb"]),
        ({"9": {"result": ["mesh\\\\a.obj", "", 7, "two\nlines"]}}, ["a.obj"]),
        ({"9": {"audio": ["a.wav"], "mesh": {"path": "a.bin"}}}, ["a.wav", "a.bin"]),
        ({"9": {"anything": "noext", "long": "x" * 2000}}, ["noext"]),
        ({"9": {"images": [file("a.png")]}, "8": {"again": [file("a.png")]}}, ["a.png", "a.png"]),
        ({"9": {"images": [{"filename": 7}, {"filename": None}]}, "8": None, "7": []}, []),
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


def test_a_text_that_may_be_a_file_does_not_displace_previews() -> None:
    found, (warning,) = produced({"1": {"images": [file("p.png", "temp")], "format": ["webp"]}})
    assert [item.guessed for item in found if isinstance(item, ProducedFile)] == [False, True]
    assert "SaveImage" in warning


def test_texts_without_number_cost_no_more_than_a_thousand_looks() -> None:
    found, _ = produced({"1": {"names": [f"n{n}" for n in range(100_000)]}})
    assert len(found) == 1000


def test_nothing_at_all_is_a_warning() -> None:
    assert produced({}) == ([], ["the workflow ran, but its nodes reported no output"])


def test_equal_texts_of_a_batch_all_count_and_numbers_are_texts_too() -> None:
    found, _ = produced({"1": {"text": ["a", "a", 7, None, ["b"]]}, "2": {"string": {"text": "c"}}})
    texts = [(t.node_id, t.text) for t in found if isinstance(t, ProducedText)]
    assert texts == [("1", "a"), ("1", "a"), ("1", "7"), ("1", "b"), ("2", "c")]


def test_a_text_that_comfyui_split_into_characters_is_joined_again() -> None:
    found, _ = produced({"1": {"text": list("hello"), "model_file": list("3d/a.glb")}})
    text, file = found
    assert text == ProducedText("1", "hello")
    assert isinstance(file, ProducedFile) and (file.subfolder, file.filename) == ("3d", "a.glb")


def test_a_full_path_beside_a_file_is_taken_along_and_a_path_alone_is_a_guess() -> None:
    (reported,), _ = produced({"9": {"gifs": [{**file("a.mp4"), "fullpath": "/out/a.mp4"}]}})
    (guess,), _ = produced({"9": {"result": ["/out/3d/a.glb"]}})
    assert isinstance(reported, ProducedFile) and isinstance(guess, ProducedFile)
    assert (reported.fullpath, reported.guessed) == ("/out/a.mp4", False)
    assert (guess.fullpath, guess.guessed, guess.filename) == ("/out/3d/a.glb", True, "a.glb")


def test_previews_count_when_they_are_asked_for() -> None:
    outputs = {"1": {"images": [file("p.png", "temp")]}, "2": {"images": [file("a.png")]}}
    found, warnings = produced(outputs, include_temp=True)
    assert [f.filename for f in found if isinstance(f, ProducedFile)] == ["p.png", "a.png"]
    assert warnings == []


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["filename", "subfolder", "type", "text", "result", "fullpath"]), inner
        )
    ),
    max_leaves=20,
)


@given(st.dictionaries(st.text(max_size=3), _json, max_size=3))
def test_whatever_nodes_report_is_survived(outputs: dict[str, Any]) -> None:
    found, _ = produced(outputs)
    assert all(isinstance(item, (ProducedFile, ProducedText)) for item in found)
