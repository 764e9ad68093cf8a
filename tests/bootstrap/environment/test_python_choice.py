"""Which Python runs ComfyUI: real virtual environments, as templates make them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from bootstrap.config import Settings
from bootstrap.core.findings import Finding
from bootstrap.environment import python_choice
from bootstrap.environment.python_choice import Choice, choose_python, venvs_of
from bootstrap.volume import locate

VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture(autouse=True)
def own_temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(python_choice, "IMAGE_PYTHON", tmp_path / "image/bin/python")
    monkeypatch.setattr(python_choice, "which", lambda name: None)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "volume/ComfyUI").mkdir(parents=True)
    (tmp_path / "volume/ComfyUI/main.py").write_text("")
    return tmp_path / "volume"


def make_venv(place: Path, torch: str | None = "2.10.0+cu128", comfyui: bool = True) -> Path:
    """A real one, with files of torch in it that can be found and read, but not imported."""
    command = [sys.executable, "-m", "venv", "--without-pip", str(place)]
    subprocess.run(command, check=True)
    site = place / f"lib/python{VERSION}/site-packages"
    if torch is not None:
        (site / "torch").mkdir()
        (site / "torch/__init__.py").write_text("raise RuntimeError('not to be imported')")
        cuda = f"{torch[-3:-1]}.{torch[-1]}" if "+cu" in torch else None
        (site / "torch/version.py").write_text(f"__version__ = {torch!r}\ncuda = {cuda!r}\n")
    if comfyui:
        (site / "comfyui_frontend_package").mkdir()
    return place


def chosen(root: Path, nvidia: Path = Path("/nowhere")) -> Choice:
    found = choose(root, nvidia)
    assert isinstance(found, Choice), found
    return found


def choose(root: Path, nvidia: Path = Path("/nowhere")) -> Choice | Finding:
    settings = Settings(volume_path=root)
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(python_choice, "NVIDIA", nvidia)
        return choose_python(settings, locate(settings))


def codes(found: Choice) -> list[str]:
    return [finding.code for finding in found.findings]


@pytest.mark.parametrize(
    "place",
    [
        "ComfyUI/.venv-cu128",
        "ComfyUI/env",
        "venv",
        "bcomfy",
        "runpod-venvs/better-comfyui",
        "environments/python/comfyui",
    ],
)
def test_any_folder_with_a_pyvenv_cfg_in_the_known_places(root: Path, place: str) -> None:
    made = make_venv(root / place)
    found = chosen(root)
    assert found.python == made / "bin/python" and found.venv is not None
    assert found.venv.full and found.venv.for_comfyui and codes(found) == []


def test_another_programs_venv_is_not_taken_outside_of_comfyuis_folder(root: Path) -> None:
    make_venv(root / "kohya", comfyui=False)
    found = choose(root)
    assert isinstance(found, Finding) and "kohya" not in found.message
    (root / "kohya").rename(root / "ComfyUI/kohya")
    assert chosen(root).python == root / "ComfyUI/kohya/bin/python"


def test_a_thin_one_is_reported_by_its_packages(root: Path) -> None:
    made = make_venv(root / "ComfyUI/venv", torch=None)
    outside = make_venv(root.parent / "image")
    library = f"lib/python{VERSION}/site-packages"
    (made / library / "image.pth").write_text(str(outside / library))
    found = chosen(root)
    assert found.venv is not None and not found.venv.full
    assert found.python == made / "bin/python"


def test_of_several_comfyuis_own_and_newest_goes_first_and_a_backup_last(root: Path) -> None:
    for age, name in enumerate([".venv.bak", ".venv-cu128", ".venv"]):
        made = make_venv(root / "ComfyUI" / name)
        os.utime(made / "pyvenv.cfg", (10_000 - age, 10_000 - age))
    make_venv(root / "ComfyUI/training", comfyui=False)
    order = [Path(v.path).name for v in venvs_of(locate(Settings(volume_path=root)))]
    assert order == [".venv-cu128", ".venv", ".venv.bak", "training"]


def without_its_python(venv: Path) -> Path:
    """As on a machine where its interpreter was never installed (uv's, below /root)."""
    away = "/root/.local/share/uv/python/cpython-0.0.0/bin"
    for link in (venv / "bin").glob("python*"):
        link.unlink()
        link.symlink_to(f"{away}/python{VERSION}")
    text = (venv / "pyvenv.cfg").read_text()
    lines = [x for x in text.splitlines() if not x.startswith(("home", "executable", "command"))]
    (venv / "pyvenv.cfg").write_text("\n".join([f"home = {away}", *lines]))
    return venv


def test_where_its_python_is_not_here_one_of_the_same_version_stands_in(root: Path) -> None:
    venv = without_its_python(make_venv(root / "venv"))
    before = {p: os.lstat(p).st_mtime_ns for p in root.rglob("*")}
    found = chosen(root)
    assert codes(found) == ["python.stand_in"]
    assert found.venv is not None and found.venv.path == str(venv)
    assert found.interpreter is not None and found.python.is_relative_to(tempfile.gettempdir())
    asked = "import sys, importlib.util as u; print(sys.prefix); print(u.find_spec('torch').origin)"
    run = subprocess.run(
        [str(found.python), "-c", asked], check=True, capture_output=True, text=True
    )
    prefix, torch = run.stdout.split()
    assert Path(prefix) == found.python.parent.parent
    assert os.path.realpath(torch).startswith(str(venv))
    assert {p: os.lstat(p).st_mtime_ns for p in root.rglob("*")} == before
    assert chosen(root).python == found.python  # made once
    assert len(os.listdir(tempfile.gettempdir())) == 1


def test_a_link_to_a_python_of_another_version_is_not_taken_for_its_own(root: Path) -> None:
    venv = make_venv(root / "venv")
    other = f"3.{sys.version_info.minor + 40}"
    (venv / f"lib/python{VERSION}").rename(venv / f"lib/python{other}")
    found = choose(root)
    assert isinstance(found, Finding) and found.code == "comfyui.python_missing"
    assert f"is {VERSION} here" in found.message and f"no Python {other}" in found.message


def test_a_venv_that_cannot_run_is_named_with_the_build_argument(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_its_python(make_venv(root / "venv"))
    make_venv(python_choice.IMAGE_PYTHON.parent.parent)
    with monkeypatch.context() as patch:
        patch.setattr(python_choice, "interpreter_of", lambda version: None)
        found = chosen(root)
    assert found.python == python_choice.IMAGE_PYTHON
    (finding,) = found.findings
    assert finding.code == "python.venv_unused"
    assert f"PYTHON_VERSION={VERSION}" in finding.fix
    assert codes(chosen(root)) == ["python.stand_in"]  # an image with that version


DRIVER = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  {}  Thu Oct 10 2024\nGCC version: 12\n"


def test_a_torch_for_a_newer_driver_is_passed_by_for_one_that_runs(root: Path) -> None:
    nvidia = root.parent / "version"
    make_venv(root / "ComfyUI/venv", "2.10.0+cu130")
    make_venv(python_choice.IMAGE_PYTHON.parent.parent, "2.10.0+cu128")
    nvidia.write_text(DRIVER.format("560.35.03"))
    found = chosen(root, nvidia)
    assert found.python == python_choice.IMAGE_PYTHON and codes(found) == ["python.venv_unused"]
    assert "CUDA 13.0" in found.findings[0].message and "560.35.03" in found.findings[0].message
    nvidia.write_text(DRIVER.format("580.65.06"))
    assert chosen(root, nvidia).python == root / "ComfyUI/venv/bin/python"
    nvidia.write_text(DRIVER.format("560.35.03"))
    shutil.rmtree(python_choice.IMAGE_PYTHON.parent.parent)
    assert chosen(root, nvidia).python == root / "ComfyUI/venv/bin/python"


def test_the_setting_is_the_only_candidate(root: Path, tmp_path: Path) -> None:
    make_venv(root / "venv")
    settings = Settings(volume_path=root, comfyui_python=tmp_path / "none")
    found = choose_python(settings, locate(settings))
    assert isinstance(found, Finding) and found.details["tried"] == [f"{tmp_path}/none (not there)"]
    mine = make_venv(tmp_path / "mine") / "bin/python"
    taken = choose_python(replace(settings, comfyui_python=mine), locate(settings))
    assert isinstance(taken, Choice) and taken.python == mine
    assert taken.venv is not None and taken.venv.path == str(tmp_path / "mine")
    assert taken.venv_on(root) is None
