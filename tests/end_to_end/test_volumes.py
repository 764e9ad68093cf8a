"""Volumes as Pod templates leave them, booted unchanged to a job: docs/volumes.md."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bootstrap.core.findings import Outcome
from bootstrap.environment import python_choice
from bootstrap.volume.find_comfyui import USUAL_ROOTS
from demo.volume import DemoVolume
from tests.conftest import BootedWorker, environment
from tests.end_to_end.test_worker import plain
from tests.support.templates import PACK, TEMPLATES, Template, comfyui, lora, venv
from tests.support.waiting import wait_until

Boots = Callable[[Mapping[str, str]], BootedWorker]
LOOK = {"3": {"class_type": "TemplateLook", "inputs": {}}}
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def image_python(demo: DemoVolume, monkeypatch: pytest.MonkeyPatch) -> None:
    """The image's Python for ComfyUI, in its usual place."""
    monkeypatch.setattr(python_choice, "IMAGE_PYTHON", demo.python)


@pytest.fixture(scope="module")
def image(demo: DemoVolume, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image's ComfyUI."""
    return comfyui(demo, tmp_path_factory.mktemp("image") / "x")


@contextmanager
def the_mount_points() -> Iterator[None]:
    """/workspace and /runpod-volume for one test of this machine; skips where they are not free."""
    with open("/tmp/comfyui-volume-worker-mounts.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.access("/", os.W_OK) or any(map(os.path.lexists, USUAL_ROOTS)):
            pytest.skip("/workspace or /runpod-volume is taken, or / cannot be written")
        yield
        assert not any(map(os.path.lexists, USUAL_ROOTS))


def codes(booted: BootedWorker) -> set[str]:
    return {finding.code for finding in booted.report.findings}


def look(booted: BootedWorker) -> tuple[dict[str, Any], str]:
    """What the template's node tells, and where the picture beside it was kept."""
    assert booted.report.outcome is Outcome.READY, booted.report.findings
    results = booted.ask({"workflow": {**plain(), **LOOK}})["results"]
    (text,) = [r["text"] for r in results if r["kind"] == "text"]
    (path,) = [r["path"] for r in results if r["kind"] == "image"]
    return json.loads(text), path


def snapshot(volume: Path) -> dict[Path, tuple[int, int]]:
    """Files of the volume but for bytecode, results and links: size and time of change."""
    walked = (Path(folder) / name for folder, _, names in os.walk(volume) for name in names)
    kept = (p for p in walked if "__pycache__" not in p.parts and not p.is_symlink())
    return {
        p: (p.stat().st_size, p.stat().st_mtime_ns)
        for p in kept
        if not {"output", ".comfyui-worker"} & set(p.relative_to(volume).parts)
    }


def boot_template(
    template: Template, demo: DemoVolume, image: Path, tmp_path: Path, boot_worker: Boots
) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    template.make(demo, volume)
    before = snapshot(volume)
    env = environment(demo, volume, tmp_path / "work") | {"COMFYUI_PYTHON": ""}
    if "comfyui.args_file" in template.codes:
        env["COMFYUI_ARGS"] = ""  # --cpu comes from the template's file
    if template.mounts:
        env["LINK_OTHER_MOUNT"] = "true"
    if template.data_only:
        env["COMFYUI_DIR"] = str(image)
    booted = boot_worker(env)
    reported, path = look(booted)
    assert codes(booted) >= template.codes
    assert Path(path).is_relative_to(Path(template.home) / "output")
    assert (volume / path).is_file()
    assert set(template.loras) <= set(reported["loras"])
    assert reported["beside main.py"]
    if template.venv is not None:
        assert reported["own package"]
        assert Path(reported["prefix"]).is_relative_to(tmp_path / "work"), "its twin on local disk"
    else:
        assert os.path.realpath(reported["prefix"]) == os.path.realpath(demo.python.parent.parent)
    booted.boot.stop()
    assert snapshot(volume) == before
    if template.venv is None:
        env["COMFYUI_PYTHON"] = str(demo.python)  # the checker looks for the image's in its place
    checked = check(env, volume)
    assert not any(f["severity"] == "error" for f in checked), checked
    assert template.codes <= {f["code"] for f in checked}


def check(env: Mapping[str, str], volume: Path) -> list[dict[str, Any]]:
    """Findings of the checker, as a person runs it, about volume and ComfyUI."""
    command = [sys.executable, "scripts/check_volume.py", str(volume), "--json"]
    done = subprocess.run(command, cwd=ROOT, env=dict(env), capture_output=True, check=False)
    sections = ("volume.", "comfyui.", "links.", "python.", "nodes.")
    found = json.loads(done.stdout)["findings"]
    return [f for f in found if f["code"].startswith(sections)]


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template.name)
def test_a_templates_volume_starts_as_it_is(
    template: Template, demo: DemoVolume, image: Path, tmp_path: Path, boot_worker: Boots
) -> None:
    if not template.mounts:
        boot_template(template, demo, image, tmp_path, boot_worker)
        return
    with the_mount_points():
        boot_template(template, demo, image, tmp_path, boot_worker)


def test_the_second_worker_on_a_venv_takes_what_the_first_one_has_recorded(
    demo: DemoVolume, tmp_path: Path, boot_worker: Boots
) -> None:
    volume = tmp_path / "volume"
    home = comfyui(demo, volume)
    venv(demo, home / "venv", full=True)
    env = environment(demo, volume, tmp_path / "work") | {"COMFYUI_PYTHON": ""}
    notes = []
    for _ in range(2):
        booted = boot_worker(env)
        reported, _ = look(booted)
        assert reported["own package"] and Path(reported["prefix"]).is_relative_to(
            tmp_path / "work"
        )
        notes += [s.note for s in booted.report.timeline if s.name == "copy Python"]
        wait_until(lambda: any(volume.glob(".comfyui-worker/python/*.venv")), 120)
        booted.boot.stop()
    first, second = notes
    assert "without an archive" in first and "from the archive" in second


def test_a_venv_runs_from_the_volume_where_that_is_asked_for(
    demo: DemoVolume, tmp_path: Path, boot_worker: Boots
) -> None:
    volume = tmp_path / "volume"
    kept = venv(demo, comfyui(demo, volume) / "venv")
    env = environment(demo, volume, tmp_path / "work")
    reported, _ = look(boot_worker(env | {"COMFYUI_PYTHON": "", "STAGE_COMFYUI": "false"}))
    assert os.path.realpath(reported["prefix"]) == os.path.realpath(kept)


def test_custom_nodes_of_the_volume_in_the_images_comfyui_keep_what_they_write(
    demo: DemoVolume, image: Path, tmp_path: Path, boot_worker: Boots
) -> None:
    volume = tmp_path / "volume"
    shutil.copytree(PACK, volume / "custom_nodes" / PACK.name)
    beside = "open(os.path.join(os.path.dirname(__file__), 'kept.txt'), 'w').write('x')\n"
    with open(volume / "custom_nodes" / PACK.name / "__init__.py", "a") as file:
        file.write(beside)
    lora(volume / "models/loras/own.safetensors")
    before = sorted(p for p in image.rglob("*") if "__pycache__" not in p.parts)
    env = environment(demo, volume, tmp_path / "work") | {"COMFYUI_DIR": str(image)}
    booted = boot_worker(env)
    reported, _ = look(booted)
    assert "own.safetensors" in reported["loras"] and reported["beside main.py"]
    booted.boot.stop()
    assert (volume / "custom_nodes" / PACK.name / "kept.txt").read_text() == "x"
    assert sorted(os.listdir(volume / "custom_nodes")) == [PACK.name]
    after = (p for p in image.rglob("*") if "__pycache__" not in p.parts and not p.is_symlink())
    assert set(after) <= set(before)


@contextmanager
def read_only(folder: Path, place: Path) -> Iterator[Path]:
    """`folder` at `place`, where nothing can be written; skips where one may not mount."""
    place.mkdir()
    binding = subprocess.run(["mount", "--bind", folder, place], capture_output=True, check=False)
    if binding.returncode != 0:
        pytest.skip("mounting is not permitted here")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", place], check=True)
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=False)


def test_a_volume_that_is_mounted_read_only(
    demo: DemoVolume, tmp_path: Path, boot_worker: Boots
) -> None:
    made = tmp_path / "made"
    made.mkdir()
    comfyui(demo, made)
    lora(made / "models/loras/beside.safetensors")
    with read_only(made, tmp_path / "volume") as volume:
        env = environment(demo, volume, tmp_path / "work")
        booted = boot_worker(env)
        assert booted.report.outcome is Outcome.READY, booted.report.findings
        results = booted.ask({"workflow": {**plain(), **LOOK}})["results"]
        (text,) = [r["text"] for r in results if r["kind"] == "text"]
        assert {"own.safetensors", "beside.safetensors"} <= set(json.loads(text)["loras"])
        assert [r["image"] for r in results if r["kind"] == "image"]
        booted.boot.stop()
    assert not (made / "ComfyUI/models/loras/beside.safetensors").exists()
