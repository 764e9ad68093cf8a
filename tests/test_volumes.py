"""Volumes as Pod templates leave them, booted unchanged to a job: docs/volumes.md."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bootstrap.core.findings import Outcome
from demo.volume import DemoVolume
from tests.conftest import BootedWorker, environment, furnished
from tests.test_worker import plain

Boots = Callable[[Mapping[str, str]], BootedWorker]


def codes(booted: BootedWorker) -> set[str]:
    return {finding.code for finding in booted.report.findings}


def runs(booted: BootedWorker, volume: Path, home: str = "ComfyUI") -> dict[str, Any]:
    """The result of a job, kept in the output folder of the ComfyUI at `home`."""
    assert booted.report.outcome is Outcome.READY, booted.report.findings
    (result,) = booted.ask({"workflow": plain()})["results"]
    assert Path(result["path"]).is_relative_to(Path(home) / "output")
    assert (volume / result["path"]).is_file()
    return dict(result)


def test_runpod_slim(demo: DemoVolume, tmp_path: Path, boot_worker: Boots) -> None:
    """runpod/comfyui: ComfyUI and its flags in runpod-slim/."""
    volume = furnished(demo, tmp_path / "volume")
    (volume / "runpod-slim").mkdir()
    shutil.move(volume / "ComfyUI", volume / "runpod-slim/ComfyUI")
    flags = "# of the template\n--cpu\n--listen 0.0.0.0\n--preview-method none\n--gone-since 1\n"
    (volume / "runpod-slim/comfyui_args.txt").write_text(flags)
    env = environment(demo, volume, tmp_path / "work") | {"COMFYUI_ARGS": ""}
    booted = boot_worker(env)
    runs(booted, volume, "runpod-slim/ComfyUI")
    assert codes(booted) >= {
        "volume.comfyui_elsewhere",
        "comfyui.args_file",
        "comfyui.args_file_left_out",
        "comfyui.flag_unknown",
    }
