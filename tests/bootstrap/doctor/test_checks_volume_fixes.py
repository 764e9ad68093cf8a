"""A broken volume gives its finding, and running the fix verbatim fixes it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bootstrap.core.findings import Finding, Severity
from bootstrap.doctor.checks import volume_layout
from bootstrap.doctor.checks.volume import check_layout, check_volume
from bootstrap.doctor.facts.inventory import Inventory, gather_models
from bootstrap.doctor.facts.volume_probe import gather_volume
from bootstrap.environment import python_choice
from bootstrap.volume import locate
from bootstrap.volume.find_comfyui import MountState, OtherMount
from tests.support.volume_cases import (
    CASES,
    HEX,
    LORA,
    Break,
    Case,
    aged,
    broken_venv,
    into_root,
    linked,
    moved,
    nested,
    paths_file,
    swapped,
)
from tests.support.volumes import (
    command_of,
    facts_of,
    follow,
    grave,
    look,
    model,
    only,
    settings,
)

OK, INFO, WARNING, ERROR = Severity
ELSEWHERE = (
    "comfyui",
    "ComfyUI-master",
    "runpod-slim/ComfyUI",
    "madapps/ComfyUI",
    "workspace/runpod-slim/ComfyUI",
    "Data/Packages/ComfyUI",
    "app",
)
GB = 1024**3


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.code} {case.name}".strip())
def test_following_the_fix_fixes_it(case: Case, root: Path) -> None:
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


@pytest.mark.parametrize(
    "spoil", [nested, into_root, *(moved("ComfyUI", place) for place in ELSEWHERE)]
)
def test_the_only_comfyui_is_used_wherever_it_is(root: Path, spoil: Break) -> None:
    spoil(root)
    found = look(root)
    assert grave(found) == []
    finding = only(found, "volume.comfyui_elsewhere")
    assert finding.severity is INFO
    setting = re.search(r"COMFYUI_PATH=(\S+)", finding.fix)
    assert setting is not None
    asked = replace(settings(root), comfyui_path=setting[1])
    assert locate(asked).comfyui == locate(settings(root)).comfyui == Path(finding.details["path"])


def test_a_comfyui_behind_a_link_that_names_the_pods_mount_is_used(root: Path) -> None:
    swapped("ComfyUI", "/workspace/apps/Comfy", "apps/Comfy")(root)
    found = look(root)
    assert grave(found) == ["links.other_mount"]
    assert locate(settings(root)).comfyui == root / "apps/Comfy"
    follow(only(found, "links.other_mount"))
    assert grave(look(root)) == []


def test_a_venv_whose_python_is_not_here(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken_venv(root)
    assert grave(look(root)) == []  # one of the same version is here, and stands in
    with monkeypatch.context() as patch:
        patch.setattr(python_choice, "interpreter_of", lambda version: None)
        finding = only(look(root), "volume.venv_broken")
        assert finding.severity is WARNING and "PYTHON_VERSION" in finding.fix
        (root / "ComfyUI/requirements.txt").write_text("")
        follow(finding)
        assert grave(look(root)) == [] and (root / "venv.old/pyvenv.cfg").is_file()
        assert (root / "venv/bin/pip").is_file()


def test_links_that_the_workers_link_of_the_other_mount_makes_good_are_reported_as_that(
    root: Path,
) -> None:
    swapped("ComfyUI/models/loras", "/workspace/store/loras", "store/loras")(root)
    text = "pod:\n  base_path: /workspace/store\n  loras: loras\n"
    (root / "ComfyUI/extra_model_paths.yaml").write_text(text)
    (root / "store/loras").mkdir(exist_ok=True)
    given = settings(root)
    facts = gather_volume(locate(given), given)
    free = replace(facts, other_mounts=(OtherMount(Path("/workspace"), MountState.FREE),))
    taken = replace(facts, other_mounts=(OtherMount(Path("/workspace"), MountState.TAKEN),))
    linking = replace(given, link_other_mount=True)
    assert grave(check_volume(free, linking)) == []
    assert only(check_volume(free, linking), "links.held_by_mount").severity is INFO
    for found in (check_volume(free, given), check_volume(taken, linking)):
        assert grave(found) == ["links.other_mount", "volume.paths_other_mount"]


def test_of_several_none_is_used_until_one_is_named(root: Path) -> None:
    shutil.copytree(root / "ComfyUI", root / "runpod-slim/ComfyUI")
    assert grave(look(root)) == []
    os.rename(root / "ComfyUI", root / "old")
    found = look(root)
    assert grave(found) == ["volume.comfyui_several"]
    finding = only(found, "volume.comfyui_several")
    assert finding.details["paths"] == [str(root / "old"), str(root / "runpod-slim/ComfyUI")]
    (same,) = check_layout(locate(settings(root)))
    assert same == finding
    named = replace(settings(root), comfyui_path="runpod-slim/ComfyUI")
    found = check_volume(gather_volume(locate(named), named), named)
    assert [f.code for f in found if f.severity is ERROR] == []
    assert only(found, "volume.comfyui_spare").details["paths"] == [str(root / "old")]


def test_a_path_without_comfyui_is_named_with_those_there_are(root: Path) -> None:
    wrong = replace(settings(root), comfyui_path="comfy")
    found = check_volume(gather_volume(locate(wrong), wrong), wrong)
    finding = only(found, "volume.comfyui_path_wrong")
    assert finding.severity is ERROR and "COMFYUI_PATH=ComfyUI" in finding.fix
    assert [f.code for f in check_layout(locate(wrong))] == ["volume.comfyui_path_wrong"]


def test_with_a_comfyui_in_the_image_the_volume_may_have_none(root: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    os.rename(root / "ComfyUI", image)
    model(root / "models/loras/x.safetensors")
    (root / "custom_nodes/pack").mkdir(parents=True)
    assert grave(look(root, image)) == []
    assert locate(settings(root, image)).nodes == root / "custom_nodes"
    shutil.copytree(image, root / "comfyui")
    found = look(root, image)
    assert locate(settings(root, image)).comfyui == root / "comfyui"
    assert only(found, "volume.comfyui_elsewhere").severity is INFO


def test_a_second_comfyui_is_reported(root: Path) -> None:
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


def test_many_broken_links_are_one_finding_fixed_in_turns(root: Path) -> None:
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


def test_a_category_of_the_paths_file_that_no_one_filled_is_information(root: Path) -> None:
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


def test_tabs_in_the_file_of_model_paths_become_spaces(root: Path) -> None:
    """ComfyUI's YAML parser fails at the first one, before anything else in the file matters."""
    file = root / "ComfyUI/extra_model_paths.yaml"
    file.write_text("a:\n\tbase_path: /workspace\n\t\tloras: x\n\n\t# no fault\n")
    found = only(look(root), "volume.paths_tabs")
    assert "lines 2, 3 are indented with a tab" in found.message
    follow(found)
    assert file.read_text() == "a:\n  base_path: /workspace\n    loras: x\n\n  # no fault\n"
    assert "volume.paths_tabs" not in grave(look(root))


def test_models_in_other_folders_of_the_root_are_named_unless_they_are_read(root: Path) -> None:
    model(root / "downloads/deeper/x.safetensors")
    for name in ("linked", "other mount", "listed"):
        model(root / name / "x.safetensors")
    loras = root / "ComfyUI/models/loras"
    (loras / "here.safetensors").symlink_to("../../../linked/x.safetensors")
    (loras / "there.safetensors").symlink_to("/workspace/other mount/x.safetensors")
    (root / "ComfyUI/extra_model_paths.yaml").write_text("a:\n  base_path: ..\n  loras: listed\n")
    inventory = gather_models([root / "ComfyUI/models"], inside=[root])

    def found(inventory: Inventory | None) -> list[Finding]:
        every = check_volume(facts_of(root), settings(root), inventory)
        return [finding for finding in every if finding.code == "volume.models_unread"]

    (finding,) = found(inventory)
    assert finding.message.endswith("holds models where no loader looks: downloads (1).")
    assert found(replace(inventory, complete=False)) == found(None) == []
    follow(finding)
    assert found(inventory) == []
