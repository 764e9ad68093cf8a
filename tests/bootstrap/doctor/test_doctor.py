"""Examinations of real and broken volumes; the same checker on all its occasions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from bootstrap.config import Settings
from bootstrap.core.findings import Severity
from bootstrap.doctor import facts as gather
from bootstrap.doctor.checks import ALL_CHECKS, Check, run_checks
from bootstrap.doctor.facts import Facts, Scope
from bootstrap.doctor.report import Report, examine
from demo.volume import DemoVolume

ROOT = Path(__file__).parents[3]
SCHEMA = json.loads((ROOT / "docs" / "report.schema.json").read_text())


def examined(env: dict[str, str], **scope: Any) -> Report:
    """An examination under `env`."""
    settings, _ = Settings.from_env(env)
    return examine(settings, env, Scope(**scope))


@pytest.fixture
def clean_env(demo: DemoVolume, volume: Path) -> dict[str, str]:
    """Only what matters: the volume, a CPU ComfyUI, the recommended settings."""
    return {
        "VOLUME_PATH": str(volume),
        "COMFYUI_PYTHON": str(demo.python),
        "COMFYUI_ARGS": "--cpu",
        "PACKAGES": "report",
        "MALLOC_ARENA_MAX": "2",
    }


def test_a_healthy_volume_gives_no_warning(clean_env: dict[str, str]) -> None:
    report = examined(clean_env)
    bad = [f for f in report.findings if f.severity.rank >= Severity.WARNING.rank]
    # The demo's ComfyUI lacks packages on purpose, and a temp folder is no mounted volume.
    expected = {"volume.not_mounted", "comfyui.requirement_wanted", "machine.open_files_low"}
    assert {f.code for f in bad} <= expected, bad


def test_a_check_that_crashes_is_a_finding_and_the_rest_still_run() -> None:
    def crash(_: Facts, __: Settings) -> Any:
        raise RuntimeError("deliberate")

    last = Check("last", lambda *_: [gather._failed("x", ValueError("seen"))])
    found = run_checks(Facts({}), Settings(), [Check("first", crash), last])
    assert [f.code for f in found] == ["doctor.check_crashed", "doctor.part_failed"]
    assert "deliberate" in found[0].message


def test_a_part_that_crashes_is_a_finding_and_the_rest_still_run(
    clean_env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: Any, **__: Any) -> Any:
        raise RuntimeError("deliberate")

    monkeypatch.setattr(gather, "gather_volume", crash)
    report = examined(clean_env)
    assert "doctor.part_failed" in {f.code for f in report.findings}
    assert report.facts.models is not None


def test_a_part_that_hangs_is_left_behind(
    clean_env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gather, "LIGHT_SECONDS", 1.0)
    monkeypatch.setattr(gather, "gather_models", lambda *_, **__: time.sleep(60))
    start = time.monotonic()
    report = examined(clean_env)
    assert time.monotonic() - start < 30
    assert "doctor.part_slow" in {f.code for f in report.findings}


def test_sections_are_respected(clean_env: dict[str, str]) -> None:
    report = examined(clean_env, sections=frozenset({"machine"}))
    assert set(report.facts.as_dict()) == {"machine"}


def test_the_registry_names_each_check_once() -> None:
    names = [check.name for check in ALL_CHECKS]
    assert len(names) == len(set(names))


# scripts/check_volume.py, in an environment with nothing installed.


@pytest.fixture(scope="session")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python without a single package."""
    venv = tmp_path_factory.mktemp("bare") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    return venv / "bin" / "python"


def check_volume(
    python: Path, env: dict[str, str], *arguments: str
) -> subprocess.CompletedProcess[str]:
    """Run the checker as a person would."""
    return subprocess.run(
        [str(python), str(ROOT / "scripts" / "check_volume.py"), *arguments],
        env={"PATH": "/usr/bin:/bin", **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_it_runs_with_nothing_installed(
    bare_python: Path, clean_env: dict[str, str], volume: Path
) -> None:
    done = check_volume(bare_python, clean_env, str(volume))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Models" in done.stdout
    assert "\033[" not in done.stdout, "no colour off a terminal"
    assert done.stderr == ""


def test_json_fits_its_schema(bare_python: Path, clean_env: dict[str, str]) -> None:
    done = check_volume(bare_python, clean_env, "--json")
    jsonschema.validate(json.loads(done.stdout), SCHEMA)


def test_errors_give_exit_code_1_and_quiet_shows_only_them(
    bare_python: Path, clean_env: dict[str, str], volume: Path
) -> None:
    (volume / "ComfyUI" / "main.py").unlink()
    done = check_volume(bare_python, clean_env, "--quiet")
    assert done.returncode == 1
    assert "fix:" in done.stdout
    assert "\nok " not in done.stdout


def test_wrong_use_gives_exit_code_2(bare_python: Path, clean_env: dict[str, str]) -> None:
    for path, said in (("/no/such/folder", "does not exist"), (__file__, "is a file")):
        done = check_volume(bare_python, clean_env, path)
        assert done.returncode == 2
        assert said in done.stderr and "/workspace" in done.stderr
    assert check_volume(bare_python, clean_env, "--no-such-option").returncode == 2


def test_the_page_is_written(bare_python: Path, clean_env: dict[str, str], tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    done = check_volume(bare_python, clean_env, "--html", str(page))
    assert done.returncode == 0
    assert page.read_text().startswith("<!DOCTYPE html>")


def test_a_reader_that_has_seen_enough_is_no_fault(
    bare_python: Path, clean_env: dict[str, str], tmp_path: Path
) -> None:
    """As with `| head`, when its first line was all it wanted."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [str(bare_python), str(ROOT / "scripts" / "check_volume.py"), "--html", "report.html"],
        env={"PATH": "/usr/bin:/bin", **clean_env},
        cwd=tmp_path,
        stdout=writer,
        stderr=subprocess.PIPE,
        timeout=120,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "report.html").exists()


def test_fix_shows_its_plan_repairs_and_finds_nothing_more(
    bare_python: Path, clean_env: dict[str, str], volume: Path
) -> None:
    link = volume / "ComfyUI" / "models" / "vae" / "gone.safetensors"
    link.symlink_to("../../../models/vae/gone.safetensors")
    done = check_volume(bare_python, clean_env, "--fix")
    assert "will " in done.stderr
    assert not link.is_symlink()
    again = check_volume(bare_python, clean_env, "--fix")
    assert "Nothing can be repaired" in again.stderr
