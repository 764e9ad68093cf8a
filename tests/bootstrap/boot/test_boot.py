"""The boot on real and broken volumes: what it reports and leaves behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from bootstrap.boot.boot import Boot
from bootstrap.boot.report import BootReport
from bootstrap.boot.runtime import Serving
from bootstrap.comfyui import ComfyUI
from bootstrap.config import Settings
from bootstrap.core.findings import Outcome, errors_in
from bootstrap.environment import choose_python
from bootstrap.volume import Layout
from tests.conftest import BootedWorker
from tests.end_to_end.test_worker import plain
from tests.support import fake_comfyui
from tests.support.waiting import wait_until


def booted(env: dict[str, str]) -> tuple[BootReport, float]:
    """The report of a boot that is stopped at once, and how long it took in seconds."""
    settings, problems = Settings.from_env(env)
    boot = Boot(settings, problems, env)
    start = time.monotonic()
    try:
        boot.begin()
        return boot.finish().report, time.monotonic() - start
    finally:
        boot.stop()


def codes(report: BootReport) -> list[str]:
    """Codes of a report's errors."""
    return [finding.code for finding in errors_in(report.findings)]


def processes_with(text: str) -> list[psutil.Process]:
    """Living processes with `text` in their command line."""
    return [
        process
        for process in psutil.process_iter(["cmdline", "status"])
        if text in " ".join(process.info["cmdline"] or []) and process.info["status"] != "zombie"
    ]


def test_several_that_hang_are_given_up_together(tmp_path: Path) -> None:
    """One after another they would take longer than Runpod waits for a worker; here ten minutes,
    which began for both when they were started."""
    boot = Boot(Settings(boot_timeout=600.0), (), {})
    both = [fake_comfyui.write(tmp_path / n / "ComfyUI", tmp_path / n, "hang") for n in "ab"]
    try:
        for comfyui in both:
            comfyui.start()
            comfyui._started -= 600.0
        found, _ = boot._wait_for(tuple(serving(comfyui) for comfyui in both))
        assert [finding.code for finding in found] == ["comfyui.start_timeout"]
    finally:
        for comfyui in both:
            comfyui.stop()


def serving(comfyui: ComfyUI) -> Serving:
    nothing: Any = None
    return Serving(Settings(), nothing, comfyui, nothing, nothing, nothing, nothing)


def test_python_m_bootstrap_boots_reports_and_leaves_nothing(
    worker_env: dict[str, str], tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bootstrap", "--json"],
        env=worker_env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)
    assert report["outcome"] == "ready"
    assert {"find volume", "link models", "start ComfyUI", "ComfyUI ready"} <= {
        stage["name"] for stage in report["timeline"]
    }
    assert processes_with(str(tmp_path)) == []
    assert list((tmp_path / "work").iterdir()) == []


def test_nothing_is_written_on_the_volume_but_links(
    worker_env: dict[str, str], volume: Path
) -> None:
    def files() -> set[Path]:
        return {p for p in volume.rglob("*") if "__pycache__" not in p.parts and not p.is_symlink()}

    before = files()
    report, _ = booted(worker_env)
    assert report.outcome is Outcome.READY
    assert files() == before


def test_no_volume_is_reported(worker_env: dict[str, str], tmp_path: Path) -> None:
    report, _ = booted(worker_env | {"VOLUME_PATH": str(tmp_path / "nowhere")})
    assert codes(report) == ["volume.not_found"]
    assert report.outcome is Outcome.DEGRADED


def test_no_comfyui_is_reported(worker_env: dict[str, str], volume: Path) -> None:
    shutil.rmtree(volume / "ComfyUI")
    report, _ = booted(worker_env)
    assert codes(report) == ["comfyui.not_found"]
    assert "git clone" in errors_in(report.findings)[0].fix


def test_of_two_comfyuis_away_from_the_root_the_setting_is_named_once(
    worker_env: dict[str, str], volume: Path
) -> None:
    (volume / "ComfyUI").rename(volume / "old")
    shutil.copytree(volume / "old", volume / "new")
    report, _ = booted(worker_env)
    assert codes(report) == ["volume.comfyui_several"]


@pytest.mark.parametrize("way", ["link", "extra_model_paths.yaml"])
def test_an_end_of_comfyui_that_the_check_foresaw_has_its_words_and_fix(
    worker_env: dict[str, str], volume: Path, way: str
) -> None:
    """custom_nodes by the path of a Pod's mount point: ComfyUI lists that folder, and ends."""
    nodes = volume / "ComfyUI/custom_nodes"
    if way == "link":
        nodes.rename(volume / "nodes")
        nodes.symlink_to("/workspace/nodes")
    else:
        (volume / "nodes").mkdir()
        text = "pod:\n  base_path: /workspace\n  custom_nodes: nodes/\n"
        (volume / "ComfyUI/extra_model_paths.yaml").write_text(text)
    report, _ = booted(worker_env)
    (finding,) = errors_in(report.findings)
    assert finding.code == "comfyui.path_unusable", finding
    causes = {f.code: f for f in report.noticed}
    cause = causes["links.other_mount" if way == "link" else "volume.paths_other_mount"]
    assert finding.fix == cause.fix and "On a Pod with this volume: `" in finding.fix
    assert cause.message in finding.message
    assert report.outcome is Outcome.DEGRADED


def test_a_python_in_a_folder_that_may_not_be_entered_is_a_finding(
    worker_env: dict[str, str], tmp_path: Path
) -> None:
    """As a user without root privileges, in its own process."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    python = tmp_path / "closed/bin/python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    (tmp_path / "closed").chmod(0o700)
    settings, _ = Settings.from_env({"COMFYUI_PYTHON": str(python)})
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setuid(65534)
            found = choose_python(settings, Layout(tmp_path, True, None))
            os.write(writing, repr(found).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    reported = os.read(reading, 65536).decode()
    assert "comfyui.python_missing" in reported and "may not be entered by user 65534" in reported


def test_a_file_in_place_of_the_volume_is_reported_once(
    worker_env: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    report, _ = booted(worker_env | {"VOLUME_PATH": str(tmp_path / "file")})
    reported = (*report.findings, *report.noticed)
    assert [f.code for f in reported if f.code.startswith(("volume.", "models."))] == [
        "volume.not_a_folder"
    ]


def test_wrong_settings_are_all_reported_and_nothing_is_started(worker_env: dict[str, str]) -> None:
    report, _ = booted(worker_env | {"MAX_WAIT": "soon", "COMFYUI_PORT": "-1"})
    assert codes(report) == ["settings.invalid", "settings.invalid"]


def test_python_without_torch_is_reported(worker_env: dict[str, str]) -> None:
    report, _ = booted(worker_env | {"COMFYUI_PYTHON": sys.executable})
    assert codes(report) == ["comfyui.python_missing"]
    assert "torch" in report.findings[-1].message


def test_a_missing_package_is_reported_by_name_long_before_the_timeout(
    worker_env: dict[str, str], volume: Path
) -> None:
    module = volume / "ComfyUI" / "latent_preview.py"
    module.write_text("import surely_not_installed\n" + module.read_text())
    report, seconds = booted(worker_env)
    assert codes(report) == ["comfyui.module_missing"]
    assert "surely_not_installed" in report.findings[-1].fix
    assert seconds < 60


def test_a_flag_with_a_wrong_value_is_reported(worker_env: dict[str, str]) -> None:
    report, _ = booted(worker_env | {"COMFYUI_ARGS": "--cpu --preview-method sideways"})
    assert codes(report) == ["comfyui.bad_flag"]
    assert "sideways" in report.findings[-1].message


def test_a_broken_model_paths_file_is_reported(worker_env: dict[str, str], volume: Path) -> None:
    (volume / "ComfyUI" / "extra_model_paths.yaml").write_text("a: [1, 2\n")
    report, _ = booted(worker_env)
    assert codes(report) == ["comfyui.model_paths_bad"]


def test_a_start_that_takes_too_long_is_reported(worker_env: dict[str, str]) -> None:
    report, _ = booted(worker_env | {"BOOT_TIMEOUT": "1"})
    assert codes(report) == ["comfyui.start_timeout"]


def test_an_unusable_local_disk_makes_the_worker_unfit(
    worker_env: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a folder")
    report, _ = booted(worker_env | {"WORK_DIR": str(tmp_path / "file" / "below")})
    assert report.outcome is Outcome.UNFIT


def test_comfyui_in_the_image_with_models_on_the_volume(
    worker_env: dict[str, str], volume: Path, tmp_path: Path
) -> None:
    image = tmp_path / "image" / "ComfyUI"
    shutil.move(volume / "ComfyUI", image)
    settings, problems = Settings.from_env(worker_env | {"COMFYUI_DIR": str(image)})
    worker = BootedWorker(Boot(settings, problems, worker_env))
    try:
        assert worker.report.outcome is Outcome.READY, worker.report.findings
        assert (image / "models" / "vae_approx" / "taesd_decoder.safetensors").is_file()
        (result,) = worker.ask({"workflow": plain()})["results"]
        assert (volume / result["path"]).is_file()
    finally:
        worker.boot.stop()


def test_a_port_in_use_is_passed_by(worker: BootedWorker, worker_env: dict[str, str]) -> None:
    taken = worker.serving.comfyui.port
    settings, problems = Settings.from_env(worker_env | {"COMFYUI_PORT": str(taken)})
    boot = Boot(settings, problems, worker_env)
    try:
        boot.begin()
        runtime = boot.finish()
        assert runtime.report.outcome is Outcome.READY
        assert runtime.serving is not None and runtime.serving.comfyui.port != taken
    finally:
        boot.stop()


@pytest.mark.parametrize("moment", ["starting", "ready"])
def test_comfyui_dies_with_a_worker_that_is_killed(
    worker_env: dict[str, str], tmp_path: Path, moment: str
) -> None:
    code = "import os, time\nfrom bootstrap.boot import Boot\n"
    code += "from bootstrap.config import read_settings\n"
    code += "b = Boot(*read_settings(), os.environ); b.begin()\n"
    code += "b.finish()\n" if moment == "ready" else ""
    code += "print('here', flush=True); time.sleep(600)"
    worker = subprocess.Popen(
        [sys.executable, "-c", code],
        env=worker_env,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=os.getcwd(),
    )
    assert worker.stdout is not None
    assert worker.stdout.readline() == b"here\n"
    assert processes_with(str(tmp_path))
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    wait_until(lambda: processes_with(str(tmp_path)) == [])
