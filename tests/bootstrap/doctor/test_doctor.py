"""Examinations of real and broken volumes, by every way to run the checker."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from bootstrap.config import Settings
from bootstrap.core.findings import Severity, ok
from bootstrap.doctor import checks
from bootstrap.doctor import facts as gather
from bootstrap.doctor.checks import ALL_CHECKS, Check, run_checks
from bootstrap.doctor.facts import Facts, Scope
from bootstrap.doctor.report import Report, examine
from demo.volume import DemoVolume
from tests.support.model_folders import safetensors

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
    # The demo's ComfyUI lacks packages on purpose, and a temp folder is not a mounted volume.
    expected = {"volume.not_mounted", "comfyui.requirement_wanted", "machine.open_files_low"}
    assert {f.code for f in bad} <= expected, bad


def test_a_check_that_crashes_is_a_finding_and_the_rest_still_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def crash(_: Facts, __: Settings) -> Any:
        raise RuntimeError("deliberate")

    last = Check("last", lambda *_: [ok("volume.found", "seen")])
    monkeypatch.setattr(checks, "ALL_CHECKS", [Check("first", crash), last])
    found = run_checks(Facts({}), Settings())
    assert [f.code for f in found] == ["doctor.check_crashed", "volume.found"]
    assert found[0].severity is Severity.ERROR and "deliberate" in found[0].message


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


def test_what_was_just_judged_is_not_judged_again(
    clean_env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    judgement = examined(clean_env).facts.judgement
    assert judgement is not None and judgement.verdicts

    def refuse(*_: Any, **__: Any) -> Any:
        raise RuntimeError("judged a second time")

    monkeypatch.setattr(gather, "judge", refuse)
    assert "doctor.part_failed" in {f.code for f in examined(clean_env).findings}
    report = examined(clean_env, judgement=judgement)
    assert report.facts.judgement is judgement
    assert "comfyui.requirement_wanted" in {f.code for f in report.findings}
    assert "doctor.part_failed" not in {f.code for f in report.findings}


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
    assert re.search(r"ComfyUI [\d.]+ in ComfyUI; \d+ models", done.stdout)
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
    assert done.stdout.startswith("x ") and "git init" in done.stdout
    assert "\n+ " not in done.stdout and "\n- " not in done.stdout


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


def test_a_closed_pipe_is_not_a_fault(
    bare_python: Path, clean_env: dict[str, str], tmp_path: Path
) -> None:
    """As with `| head`."""
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
    assert (done.returncode, done.stderr) == (0, b"Wrote report.html.\n")
    assert (tmp_path / "report.html").exists()


def test_fix_shows_its_plan_repairs_and_finds_nothing_more(
    bare_python: Path, clean_env: dict[str, str], volume: Path
) -> None:
    link = volume / "ComfyUI" / "models" / "vae" / "gone.safetensors"
    link.symlink_to("../../../models/vae/gone.safetensors")
    seen = check_volume(bare_python, clean_env)
    assert "[links.ours_broken]" in seen.stdout and "--fix repairs this." in seen.stdout
    done = check_volume(bare_python, clean_env, "--fix")
    assert "Will remove 1 link" in done.stderr
    assert not link.is_symlink()
    again = check_volume(bare_python, clean_env, "--fix")
    assert "Nothing can be repaired" in again.stderr


def test_a_dry_run_changes_nothing_and_a_repair_says_what_it_was_for(
    bare_python: Path, clean_env: dict[str, str], volume: Path
) -> None:
    stray = safetensors(volume / "loras" / "a.safetensors")
    link = volume / "models" / "vae" / "b.safetensors"
    link.parent.mkdir(exist_ok=True)
    link.symlink_to("/workspace/loras/a.safetensors")
    seen = check_volume(bare_python, clean_env, "--dry-run")
    plan = "Would move 1 file or folder to where ComfyUI reads them:\n  loras/ → models/loras/\n"
    assert plan in seen.stderr and stray.exists()
    assert "[volume.models_misplaced]" in seen.stdout
    assert re.search(r"--fix repairs this\.\n", seen.stdout)
    assert "Run with --fix to repair" in seen.stdout.splitlines()[-1]
    done = check_volume(bare_python, clean_env, "--fix", "--yes")
    assert (volume / "models" / "loras" / "a.safetensors").exists() and not stray.parent.exists()
    assert "Moved 1 file or folder" in done.stderr
    assert "\n  loras/a.safetensors → models/loras/\n" in done.stderr


def test_elsewhere_than_in_a_worker_the_volume_alone_is_judged(
    bare_python: Path, clean_env: dict[str, str], volume: Path
) -> None:
    """Without torch and GPU here, a fit volume is still fit."""
    env = {k: v for k, v in clean_env.items() if k not in ("COMFYUI_PYTHON", "COMFYUI_ARGS")}
    plain = check_volume(bare_python, env, str(volume))
    assert plain.returncode == 0, plain.stdout
    assert "COMFYUI_ARGS" not in plain.stdout and "This machine" not in plain.stdout
    all_of_it = check_volume(bare_python, env, str(volume), "-v")
    assert "This machine (does not concern the volume)" in all_of_it.stdout
    assert "[comfyui.python_missing]" in all_of_it.stdout
    data = json.loads(check_volume(bare_python, env, str(volume), "--json").stdout)
    assert data["status"] == "ok"
    in_worker = check_volume(bare_python, {**env, "RUNPOD_WEBHOOK_GET_JOB": "x"}, str(volume))
    assert in_worker.returncode == 1 and "[comfyui.python_missing]" in in_worker.stdout


def test_the_checker_in_one_file_runs_as_a_file_and_from_a_pipe(
    bare_python: Path, clean_env: dict[str, str], volume: Path, tmp_path: Path
) -> None:
    one = tmp_path / "check_volume.py"
    subprocess.run([sys.executable, "-m", "scripts.one_file", str(one)], cwd=ROOT, check=True)
    env = {"PATH": "/usr/bin:/bin", **clean_env}
    (volume / "ComfyUI" / "main.py").unlink()
    for command, given in (
        ([str(bare_python), str(one), str(volume)], b""),
        ([str(bare_python), "-", str(volume)], one.read_bytes()),
    ):
        done = subprocess.run(
            command, input=given, env=env, cwd=tmp_path, capture_output=True, check=False
        )
        said = (done.stdout + done.stderr).decode()
        assert done.returncode == 1 and "[volume.comfyui_incomplete]" in said, said
        assert "doctor." not in said
    helped = subprocess.run(
        [str(bare_python), "-", "--help"], input=one.read_bytes(), capture_output=True, check=True
    )
    assert b"usage: check_volume.py" in helped.stdout
    assert b"/check_volume.py | python3 - /workspace\n" in helped.stdout, "it was piped"
