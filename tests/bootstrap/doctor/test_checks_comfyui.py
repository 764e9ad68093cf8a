"""ComfyUI's tree, interpreter and node folders: real folders, and each fix applied."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bootstrap.core.findings import Finding, Severity
from bootstrap.doctor.checks.comfyui import check_comfyui
from bootstrap.doctor.facts.comfyui import gather_comfyui
from bootstrap.environment import PackagesFacts
from tests.bootstrap.environment.venvs import gather_packages


def bad(comfyui: Path, packages: PackagesFacts | None = None) -> dict[str, Finding]:
    """Warnings and errors by code, from newly gathered facts."""
    found = check_comfyui(gather_comfyui(comfyui), packages)
    return {f.code: f for f in found if f.severity.rank >= Severity.WARNING.rank}


def follow(finding: Finding) -> None:
    """Run a fix's command in bash."""
    command = re.search(r"`([^`]+)`", finding.fix)
    assert command is not None, finding.fix
    subprocess.run(["bash", "-c", command[1]], check=True, capture_output=True)


def git(folder: Path, *arguments: str) -> None:
    """Git, with an identity of its own."""
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=m"]
    subprocess.run(
        ["git", *identity, "-C", str(folder), *arguments], check=True, capture_output=True
    )


def test_a_real_comfyui_is_found_good_with_its_version(volume: Path) -> None:
    found = check_comfyui(gather_comfyui(volume / "ComfyUI"), None)
    assert [f.code for f in found] == ["comfyui.version"]
    assert "0.3.75" in found[0].message


def test_missing_files_are_restored_by_git(volume: Path) -> None:
    comfyui = volume / "ComfyUI"
    git(comfyui, "init")
    git(comfyui, "add", "nodes.py", "server.py", "execution.py")
    git(comfyui, "commit", "-m", "all")
    (comfyui / "nodes.py").unlink()
    found = bad(comfyui)
    assert list(found) == ["comfyui.incomplete"]
    assert found["comfyui.incomplete"].details["missing"] == ["nodes.py"]
    follow(found["comfyui.incomplete"])
    assert bad(comfyui) == {}


def test_missing_files_without_git_get_another_fix(volume: Path) -> None:
    (volume / "ComfyUI" / "server.py").unlink()
    assert "clone ComfyUI again" in bad(volume / "ComfyUI")["comfyui.incomplete"].fix


def test_an_empty_pack_is_cloned_again(volume: Path, tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    origin.mkdir()
    git(origin, "init")
    (origin / "__init__.py").write_text("")
    git(origin, "add", ".")
    git(origin, "commit", "-m", "a pack")
    pack = volume / "ComfyUI" / "custom_nodes" / "a pack"
    subprocess.run(["git", "clone", "-q", str(origin), str(pack)], check=True)
    (pack / "__init__.py").unlink()
    found = bad(volume / "ComfyUI")
    assert list(found) == ["nodes.pack_empty"]
    follow(found["nodes.pack_empty"])
    assert bad(volume / "ComfyUI") == {}


def test_a_pack_unpacked_too_deep_is_moved_up(volume: Path) -> None:
    inner = volume / "ComfyUI" / "custom_nodes" / "pack" / "pack-main"
    inner.mkdir(parents=True)
    (inner / "__init__.py").write_text("")
    found = bad(volume / "ComfyUI")
    assert list(found) == ["nodes.pack_empty"]
    follow(found["nodes.pack_empty"])
    assert bad(volume / "ComfyUI") == {}


def test_two_copies_of_a_pack_are_reported_and_one_disabled(volume: Path) -> None:
    for name in ("Some-Pack", "some-pack-main"):
        pack = volume / "ComfyUI" / "custom_nodes" / name
        pack.mkdir()
        (pack / "__init__.py").write_text("")
    found = bad(volume / "ComfyUI")
    assert list(found) == ["nodes.pack_twice"]
    follow(found["nodes.pack_twice"])
    assert bad(volume / "ComfyUI") == {}


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """A virtual environment, as people keep one on the volume."""
    folder = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    return folder


def test_a_dangling_interpreter_is_reported(volume: Path, venv: Path) -> None:
    for name in ("python", "python3"):
        (venv / "bin" / name).unlink(missing_ok=True)
    (venv / "bin" / "python").symlink_to("/usr/bin/python3.99")
    packages = gather_packages(venv / "bin" / "python")
    assert list(bad(volume / "ComfyUI", packages)) == ["python.unusable"]


def test_a_venv_of_another_python_version_is_reported(volume: Path, venv: Path) -> None:
    (own,) = (venv / "lib").iterdir()
    own.rename(venv / "lib" / "python3.9")
    (venv / "lib" / "python3.9" / "site-packages" / "package.py").write_text("")
    config = venv / "pyvenv.cfg"
    config.write_text(re.sub(r"version = .*", "version = 3.9.1", config.read_text()))
    packages = gather_packages(venv / "bin" / "python")
    assert list(bad(volume / "ComfyUI", packages)) == ["python.other_version"]


def test_a_good_interpreter_gives_no_finding(volume: Path, venv: Path) -> None:
    assert bad(volume / "ComfyUI", gather_packages(venv / "bin" / "python")) == {}


def test_packages_on_a_network_volume_and_moved_scripts_are_worth_a_word(volume: Path) -> None:
    packages = PackagesFacts("/v/venv/bin/python", network="fuse", scripts_python="/w/bin/python")
    found = check_comfyui(gather_comfyui(volume / "ComfyUI"), packages)
    assert [f.code for f in found][1:] == ["python.on_network", "python.scripts_moved"]


def test_silence_and_an_unknown_version_are_reported(volume: Path) -> None:
    facts = gather_comfyui(volume / "ComfyUI")
    silent = check_comfyui(replace(facts, silent_after=5.0), None)
    assert [f.code for f in silent] == ["comfyui.silent"]
    unknown = check_comfyui(replace(facts, version=None), None)
    assert [f.code for f in unknown] == ["comfyui.version_unknown"]
