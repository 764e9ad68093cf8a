"""A broken volume gives its finding, and the fix, typed as it stands, mends it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bootstrap.core.findings import Severity
from bootstrap.doctor.checks import volume_layout
from tests.support.volume_cases import CASES, HEX, LORA, Case, aged, linked, paths_file
from tests.support.volumes import command_of, follow, grave, healthy, look, model, only

OK, INFO, WARNING, _ = Severity
GB = 1024**3


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return healthy(tmp_path / "volume")


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.code} {case.name}".strip())
def test_following_the_fix_mends_it(case: Case, root: Path) -> None:
    case.spoil(root)
    found = look(root)
    assert [f.code for f in found if f.severity is not OK] == [case.code]
    finding = only(found, case.code)
    assert finding.severity is case.severity
    json.dumps(finding.as_dict(), ensure_ascii=False).encode()
    follow(finding)
    again = look(root)
    assert grave(again) == [], again
    assert case.code not in [f.code for f in again]
    assert (root / case.kept).exists()


def test_an_incomplete_comfyui_gets_its_files_and_keeps_the_rest(
    root: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    shutil.copytree(root / "ComfyUI", source)
    shutil.rmtree(source / "models")
    subprocess.run([*git, "init", "-q", "-b", "master"], cwd=source, check=True)
    subprocess.run([*git, "add", "."], cwd=source, check=True)
    subprocess.run([*git, "commit", "-qm", "x"], cwd=source, check=True)
    redirect = {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{source}.insteadOf",
        "GIT_CONFIG_VALUE_0": volume_layout.SOURCE,
    }
    (root / "ComfyUI/main.py").unlink()
    found = look(root)
    assert grave(found) == ["volume.comfyui_incomplete"]
    follow(only(found, "volume.comfyui_incomplete"), **redirect)
    assert grave(look(root)) == []
    assert (root / "ComfyUI/models/checkpoints/real.safetensors").exists()

    (root / "ComfyUI/main.py").unlink()
    finding = only(look(root), "volume.comfyui_incomplete")
    assert "checkout -- main.py" in command_of(finding)
    follow(finding)
    assert grave(look(root)) == []

    shutil.rmtree(root / "ComfyUI")
    model(root / "models/checkpoints/x.safetensors")
    found = look(root)
    assert grave(found) == ["comfyui.not_found"]
    follow(only(found, "comfyui.not_found"), **redirect)
    assert grave(look(root)) == []


def test_a_comfyui_that_is_the_volumes_root(tmp_path: Path) -> None:
    root = healthy(tmp_path) / "ComfyUI"
    finding = only(look(root), "volume.comfyui_in_root")
    assert finding.fix == f"Set VOLUME_PATH to {tmp_path}."
    assert grave(look(tmp_path)) == []


def test_with_a_comfyui_in_the_image_the_volume_may_have_none(root: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    os.rename(root / "ComfyUI", image)
    model(root / "models/loras/x.safetensors")
    assert grave(look(root, image)) == []
    shutil.copytree(image, root / "comfyui")
    found = look(root, image)
    assert grave(found) == ["volume.comfyui_renamed"]
    assert only(found, "volume.comfyui_renamed").severity is WARNING
    shutil.copytree(image, root / "runpod-slim/ComfyUI")
    shutil.rmtree(root / "comfyui")
    assert only(look(root, image), "volume.comfyui_elsewhere").severity is INFO


def test_a_second_comfyui_is_told(root: Path) -> None:
    shutil.copytree(root / "ComfyUI", root / "ComfyUI-old")
    (root / "comfyui").symlink_to("ComfyUI")
    found = look(root)
    assert grave(found) == []
    assert only(found, "volume.comfyui_spare").details["count"] == 1


def test_names_that_are_taken_are_not_replaced(root: Path) -> None:
    model(root / "loras/mine.safetensors").write_bytes(b"one")
    model(root / LORA).write_bytes(b"other")
    finding = only(look(root), "volume.models_misplaced")
    done = subprocess.run(["bash", "-c", command_of(finding)], capture_output=True, check=False)
    assert done.returncode != 0
    assert (root / "loras/mine.safetensors").read_bytes() == b"one"
    assert (root / LORA).read_bytes() == b"other"


def test_many_broken_links_are_one_finding_mended_in_turns(root: Path) -> None:
    for number in range(30):
        linked(f"ComfyUI/custom_nodes/n{number}", "gone")(root)
    finding = only(look(root), "links.broken")
    assert finding.details["count"] == 30
    follow(finding)
    finding = only(look(root), "links.broken")
    assert finding.details["count"] == 10
    follow(finding)
    assert grave(look(root)) == []


def test_links_on_the_rest_of_the_volume_are_information(root: Path) -> None:
    linked("latest", "gone")(root)
    linked("outside", "/usr")(root)
    linked("photos", ".")(root)
    found = look(root)
    assert [f.code for f in found] == ["volume.found", "links.broken", "links.outward"]
    assert grave(found) == []


def test_a_venv_that_was_moved_is_information(root: Path) -> None:
    made = [sys.executable, "-m", "venv", "--without-pip", str(root / "first")]
    subprocess.run(made, check=True)
    os.rename(root / "first", root / "venv")
    finding = only(look(root), "volume.venv_moved")
    assert finding.severity is INFO
    assert str(root / "venv/bin/python") in finding.fix


def test_a_category_of_the_paths_file_that_nobody_filled_is_information(root: Path) -> None:
    paths_file("mine:\n    base_path: ..\n    is_default: true\n    loras: more/loras\n")(root)
    finding = only(look(root), "volume.paths_missing")
    assert finding.severity is INFO
    follow(finding)
    assert [f.code for f in look(root)] == ["volume.found"]


def test_leftovers_are_swept_when_they_are_old(root: Path) -> None:
    part = f"ComfyUI/output/.{HEX}.part"
    aged(part, hours=0.9)(root)
    assert [f.code for f in look(root)] == ["volume.found"]
    aged(part, hours=1.1)(root)
    finding = only(look(root), "volume.leftovers")
    assert finding.severity is INFO
    follow(finding)
    assert [f.code for f in look(root)] == ["volume.found"]
    (root / part).write_text("")
    os.truncate(root / part, 2 * GB)
    os.utime(root / part, (0, 0))
    assert only(look(root), "volume.leftovers").severity is WARNING
