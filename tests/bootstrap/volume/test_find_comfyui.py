"""Finding ComfyUI on a volume: what counts as one, and what is skipped."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from bootstrap.config import Settings
from bootstrap.volume import find_comfyui as searching
from bootstrap.volume import locate
from bootstrap.volume.find_comfyui import SearchResult, search


def comfyui(place: Path) -> Path:
    (place / "comfy").mkdir(parents=True)
    (place / "main.py").write_text("")
    return place


@pytest.mark.parametrize("place", ["app", "a/b", "workspace/runpod-slim/ComfyUI", "."])
def test_it_is_known_by_its_files_three_folders_deep(tmp_path: Path, place: str) -> None:
    made = comfyui(tmp_path / place)
    assert search(tmp_path).comfyuis == (made,)


@pytest.mark.parametrize(
    "place", ["a/b/c/ComfyUI", "models/ComfyUI", ".hidden/ComfyUI", "x/custom_nodes/ComfyUI"]
)
def test_it_is_not_looked_for_deeper_or_among_models_and_nodes(tmp_path: Path, place: str) -> None:
    comfyui(tmp_path / place)
    assert search(tmp_path).comfyuis == ()


def test_any_program_with_a_main_py_is_not_one_and_a_venv_is_not_entered(tmp_path: Path) -> None:
    (tmp_path / "kohya").mkdir()
    (tmp_path / "kohya/main.py").write_text("")
    comfyui(tmp_path / "env/share/x")
    (tmp_path / "env/pyvenv.cfg").write_text("")
    assert search(tmp_path) == SearchResult()


def test_links_to_one_are_followed_and_counted_once(tmp_path: Path) -> None:
    made = comfyui(tmp_path / "deep/inside/it")
    (tmp_path / "comfyui").symlink_to("deep/inside/it")
    (tmp_path / "round").symlink_to(".")
    assert search(tmp_path).comfyuis == (tmp_path / "comfyui",)
    (tmp_path / "comfyui").unlink()
    assert search(tmp_path).comfyuis == (made,)


def test_a_link_that_vanishes_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker, or a person on a Pod, has removed it."""
    made = comfyui(tmp_path / "app")
    (tmp_path / "ComfyUI").symlink_to("gone")

    def vanished(path: object) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setattr(os, "readlink", vanished)
    assert locate(Settings(volume_path=tmp_path)).comfyui == made


def test_data_and_nodes_beside_it(tmp_path: Path) -> None:
    comfyui(tmp_path / "ComfyUI")
    for path in ("ComfyUI/custom_nodes", "comfyui-data/models", "x/models", "x/custom_nodes"):
        (tmp_path / path).mkdir(parents=True)
    (tmp_path / "custom_nodes").mkdir()
    (tmp_path / "models").mkdir()
    found = search(tmp_path)
    assert found.data == (tmp_path / "comfyui-data", tmp_path / "x")
    assert found.custom_nodes == (tmp_path / "custom_nodes",)


def test_a_volume_of_very_many_folders_is_reported_from_its_likely_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching, "_MOST_FOLDERS", 20)
    for number in range(50):
        (tmp_path / f"{number:02}").mkdir()
    made = comfyui(tmp_path / "my-ComfyUI-old")
    renamed = made.rename(tmp_path / "ComfyUI-old")
    found = search(tmp_path)
    assert found.comfyuis == (renamed,) and not found.complete


def test_a_volume_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    let_go = threading.Event()
    monkeypatch.setattr(searching, "list_folder", lambda path: let_go.wait(30))
    start = time.monotonic()
    assert search(tmp_path, 0.3) == SearchResult(complete=False)
    assert time.monotonic() - start < 5
    let_go.set()


def test_a_volume_that_is_not_there(tmp_path: Path) -> None:
    assert search(tmp_path / "none") == SearchResult()
    assert not os.path.exists(tmp_path / "none")
