"""Where the volume, ComfyUI and the models are, in the ways people lay them out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bootstrap.comfyui.launch import flags_of
from bootstrap.config import Settings
from bootstrap.doctor import check_layout
from bootstrap.volume.args_file import local_folders, paths_file
from bootstrap.volume.locate import Layout, folders_known_to, locate


def make(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")


@pytest.fixture
def roots(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "runpod-volume", tmp_path / "workspace"


def find(roots: tuple[Path, Path], **settings: Path) -> Layout:
    return locate(Settings(**settings), roots)  # type: ignore[arg-type]


def test_the_usual_layout_is_found_at_the_serverless_mount(roots: tuple[Path, Path]) -> None:
    make(roots[0] / "ComfyUI/main.py", roots[0] / "models/loras/a.pt")
    found = find(roots)
    assert found == Layout(roots[0], True, roots[0] / "ComfyUI", (roots[0] / "models",))
    assert found.comfyui_on_volume
    assert found.output == roots[0] / "ComfyUI/output"
    assert found.input == roots[0] / "ComfyUI/input"
    assert [f.code for f in check_layout(found)] == ["volume.found"]


def test_the_pods_mount_is_taken_when_the_serverless_one_is_an_empty_folder(
    roots: tuple[Path, Path],
) -> None:
    roots[0].mkdir()
    make(roots[1] / "models/loras/a.pt")
    assert find(roots).root == roots[1]


def test_the_serverless_mount_comes_first_when_both_are_furnished(
    roots: tuple[Path, Path],
) -> None:
    for root in roots:
        make(root / "ComfyUI/main.py")
    assert find(roots).root == roots[0]


def test_an_existing_root_is_better_than_none(roots: tuple[Path, Path]) -> None:
    roots[1].mkdir()
    found = find(roots)
    assert (found.root, found.root_exists) == (roots[1], True)


def test_volume_path_is_taken_even_if_it_is_not_there(
    roots: tuple[Path, Path], tmp_path: Path
) -> None:
    make(roots[0] / "ComfyUI/main.py")
    found = find(roots, volume_path=tmp_path / "mine")
    assert (found.root, found.root_exists, found.comfyui) == (tmp_path / "mine", False, None)
    (finding,) = check_layout(found)
    assert finding.code == "volume.not_found" and str(tmp_path / "mine") in finding.message


def test_a_comfyui_without_main_py_does_not_count(roots: tuple[Path, Path]) -> None:
    make(roots[0] / "ComfyUI/models/loras/a.pt")
    found = find(roots)
    assert found.comfyui is None
    assert [f.code for f in check_layout(found)] == ["comfyui.not_found"]


def test_the_images_comfyui_runs_when_the_volume_has_none(
    roots: tuple[Path, Path], tmp_path: Path
) -> None:
    image = tmp_path / "image"
    make(image / "main.py", roots[0] / "models/a/x", roots[0] / "ComfyUI/models/b/y")
    found = find(roots, comfyui_dir=image)
    assert found.comfyui == image and not found.comfyui_on_volume
    assert found.model_roots == (roots[0] / "models", roots[0] / "ComfyUI/models")


def test_the_volumes_comfyui_goes_before_the_images(
    roots: tuple[Path, Path], tmp_path: Path
) -> None:
    make(roots[0] / "ComfyUI/main.py", tmp_path / "image/main.py")
    assert find(roots, comfyui_dir=tmp_path / "image").comfyui == roots[0] / "ComfyUI"


def test_an_image_with_comfyui_needs_no_volume(roots: tuple[Path, Path], tmp_path: Path) -> None:
    make(tmp_path / "image/main.py")
    found = find(roots, comfyui_dir=tmp_path / "image")
    assert [f.code for f in check_layout(found)] == ["volume.found"]


def test_models_that_are_comfyuis_own_by_a_link_are_not_a_further_root(
    roots: tuple[Path, Path],
) -> None:
    make(roots[0] / "ComfyUI/main.py", roots[0] / "models/a/x")
    (roots[0] / "ComfyUI/models").symlink_to("../models")
    assert find(roots).model_roots == ()


def test_one_folder_by_two_names_is_one_root(roots: tuple[Path, Path], tmp_path: Path) -> None:
    make(tmp_path / "image/main.py", roots[0] / "models/a/x", roots[0] / "ComfyUI/README")
    (roots[0] / "ComfyUI/models").symlink_to("../models")
    assert find(roots, comfyui_dir=tmp_path / "image").model_roots == (roots[0] / "models",)


def test_a_path_that_cannot_be_looked_at_counts_as_missing(roots: tuple[Path, Path]) -> None:
    too_long = roots[0] / ("x" * 300)
    found = find(roots, volume_path=too_long)
    assert not found.root_exists and found.comfyui is None


def test_folders_are_read_from_the_text_of_folder_paths(tmp_path: Path) -> None:
    (tmp_path / "folder_paths.py").write_text(
        'folder_names_and_paths["text_encoders"] = ([os.path.join(models_dir, "text_encoders"), '
        'os.path.join(models_dir, "clip")], x)\n'
        "folder_names_and_paths['vae'] = ([os.path.join(models_dir,\n    'vae')], x)\n"
        'folder_names_and_paths["custom_nodes"] = ([os.path.join(base_path, "custom_nodes")], x)\n'
    )
    assert folders_known_to(tmp_path) == {"text_encoders", "clip", "vae"}


def test_an_unreadable_folder_paths_gives_nothing(tmp_path: Path) -> None:
    assert folders_known_to(tmp_path) == frozenset()
    (tmp_path / "folder_paths.py").write_bytes(b'\xff\xfe os.path.join(models_dir, "clip")')
    assert folders_known_to(tmp_path) == {"clip"}


@pytest.mark.timeout(10)
def test_a_pipe_in_place_of_code_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "comfy").mkdir()
    (tmp_path / "extra_paths.yaml").touch()
    for name in ("main.py", "folder_paths.py", "comfy/cli_args.py"):
        os.mkfifo(tmp_path / name)
    assert folders_known_to(tmp_path) == flags_of(tmp_path, ())
    assert paths_file(tmp_path) == tmp_path / "extra_model_paths.yaml"
    assert local_folders(tmp_path) == {}
