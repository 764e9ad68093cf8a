"""Boots on a real ComfyUI whose code runs from local disk: what is used, kept, read and warmed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks.simulated_volume import SimulatedVolume, mounted, why_not
from bootstrap.boot import Boot, Stage
from bootstrap.config import Settings
from bootstrap.core.findings import Outcome
from handler.jobs.warmup import WarmUp
from tests.bootstrap.models.test_prefetch import forget
from tests.conftest import BootedWorker
from tests.end_to_end.test_worker import plain
from tests.support import volumes

Boots = Callable[[Mapping[str, str]], BootedWorker]


@pytest.fixture
def boot(worker_env: dict[str, str]) -> Iterator[Boots]:
    """Boots a worker as `python -m handler` does, warm-up included, on `volume`."""
    booted: list[Boot] = []

    def begin(more: Mapping[str, str]) -> BootedWorker:
        env = {**worker_env, **more}
        settings, problems = Settings.from_env(env)
        warm_up = WarmUp(settings.warmup_workflow) if settings.warmup_workflow else None
        booted.append(Boot(settings, problems, env, warm_up))
        return BootedWorker(booted[-1])

    yield begin
    for each in booted:
        each.stop()


def stage_of(worker: BootedWorker, name: str) -> Stage:
    """One stage of the boot's timeline."""
    (stage,) = [s for s in worker.report.timeline if s.name == name]
    return stage


def codes(worker: BootedWorker) -> list[str]:
    """Codes of what decided the boot's outcome."""
    return [finding.code for finding in worker.report.findings]


def eventually(condition: Callable[[], bool], seconds: float = 20) -> bool:
    """Does it come true within `seconds`?"""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def beside(text: str) -> dict[str, Any]:
    """A workflow whose node writes `text` into files beside itself."""
    return {"1": {"class_type": "TestWriteBeside", "inputs": {"text": text}}}


def test_code_runs_from_local_disk_and_the_log_names_the_volume(
    boot: Boots, volume: Path, tmp_path: Path
) -> None:
    worker = boot({})
    assert worker.report.outcome is Outcome.READY, worker.report.findings
    reply = worker.ask({"workflow": beside("settings")})
    place = reply["results"][0]["text"]
    assert place.startswith(str(tmp_path / "work")), place
    assert stage_of(worker, "copy code").bytes > 20_000_000
    log = "\n".join(worker.runtime.node_log)
    assert str(volume / "ComfyUI/custom_nodes/faulty_nodes") in log
    assert "/stage/" not in log


def test_what_a_node_writes_beside_itself_is_kept(boot: Boots, volume: Path) -> None:
    pack = volume / "ComfyUI/custom_nodes/faulty_nodes"
    (pack / "settings.json").write_text("old")
    worker = boot({})
    assert worker.ask({"workflow": beside("new")})["status"] == "completed"
    assert eventually((pack / "ckpts/downloaded.bin").is_file)
    worker.boot.stop()
    assert (pack / "ckpts/downloaded.bin").read_text() == "new"
    assert (pack / "settings.json").read_text() == "new"


def test_bytecode_is_compiled_once_for_all_cold_starts(boot: Boots, volume: Path) -> None:
    shutil.rmtree(volume / "ComfyUI/custom_nodes/faulty_nodes/__pycache__", ignore_errors=True)
    first = boot({})
    first.boot.stop()
    compiled = [p for p in (volume / "ComfyUI").rglob("*.pyc") if "comfy" in p.parts]
    assert len(compiled) > 20
    second = boot({})
    assert [path for path in second.serving.write_back.now() if path.endswith(".pyc")] == []


def test_it_can_be_turned_off(boot: Boots, volume: Path) -> None:
    worker = boot({"STAGE_COMFYUI": "false"})
    reply = worker.ask({"workflow": beside("x")})
    assert reply["results"][0]["text"].startswith(str(volume))
    assert stage_of(worker, "copy code").note == "not needed"


def test_without_room_it_runs_from_the_volume_and_says_so(
    boot: Boots, volume: Path, tmp_path: Path
) -> None:
    with open(volume / "ComfyUI/custom_nodes/faulty_nodes/weights.bin", "wb") as file:
        file.truncate(4 << 30)
    with volumes.mounted(tmp_path / "small", "-o", "size=3g") as disk:
        worker = boot({"WORK_DIR": str(disk), "STAGE_PACK_MB": "10000"})
        assert worker.report.outcome is Outcome.READY, worker.report.findings
        assert "comfyui.not_staged" in codes(worker)
        assert worker.ask({"workflow": plain()})["status"] == "completed"
        worker.boot.stop()


def test_people_s_settings_are_read_and_kept(boot: Boots, volume: Path) -> None:
    mine = volume / "ComfyUI/user/default/workflows/mine.json"
    mine.parent.mkdir(parents=True)
    mine.write_text("{}")
    worker = boot({})
    user = worker.serving.work.user
    assert (user / "default/workflows/mine.json").read_text() == "{}"
    (user / "default/manager.ini").write_text("[default]")
    worker.boot.stop()
    assert (mine.parent.parent / "manager.ini").read_text() == "[default]"


def test_the_models_of_the_last_job_are_read_ahead_at_the_next_boot(
    boot: Boots, volume: Path
) -> None:
    encode = {
        **plain(),
        "3": {"class_type": "VAELoader", "inputs": {"vae_name": "pixel_space"}},
        "4": {"class_type": "VAELoader", "inputs": {"vae_name": "real.safetensors"}},
    }
    weights = volume / "models/vae/real.safetensors"
    weights.parent.mkdir(parents=True)
    shutil.copy(volume / "models/vae_approx/taesd_decoder.safetensors", weights)
    first = boot({})
    assert first.ask({"workflow": encode})["status"] == "completed"
    record = volume / ".comfyui-worker/recent/default.json"
    assert eventually(record.is_file)
    assert json.loads(record.read_text())["models"] == ["vae/real.safetensors"]
    first.boot.stop()
    forget(weights)
    second = boot({})
    assert stage_of(second, "read ahead").bytes == weights.stat().st_size


def test_named_models_are_read_ahead(boot: Boots, volume: Path) -> None:
    weights = volume / "models/vae_approx/taesd_encoder.safetensors"
    forget(weights)
    worker = boot({"PREFETCH_MODELS": "vae_approx/taesd_encoder.safetensors, vae/gone.safetensors"})
    stage = stage_of(worker, "read ahead")
    assert stage.bytes == weights.stat().st_size
    assert "gone.safetensors" in stage.note


def test_a_warm_up_runs_before_jobs_and_leaves_nothing(boot: Boots, volume: Path) -> None:
    (volume / "warm.json").write_text(json.dumps(plain()))
    worker = boot({"WARMUP_WORKFLOW": "warm.json"})
    assert "warmup.done" in codes(worker)
    comfyui = worker.serving.comfyui
    assert comfyui is not None
    # Reported by its history before its log has the line.
    assert eventually(lambda: "Prompt executed" in "\n".join(comfyui.log_tail(50)))
    reply = worker.ask({"workflow": plain(width=24)})
    assert "also_kept" not in reply
    kept = list((volume / "ComfyUI/output").glob("*.png"))
    assert len(kept) == 1, "the job's picture, none of the warm-up's"


@pytest.mark.parametrize(
    ("workflow", "said"),
    [
        ("nothing/there.json", "there.json cannot be read"),
        ('{"1": {"class_type": "NoSuchNode", "inputs": {}}}', "NoSuchNode"),
        ('{"nodes": [], "links": []}', "editor's own format"),
    ],
)
def test_a_warm_up_that_fails_is_reported_and_jobs_run(
    boot: Boots, workflow: str, said: str
) -> None:
    worker = boot({"WARMUP_WORKFLOW": workflow})
    assert worker.report.outcome is Outcome.READY
    (finding,) = [f for f in worker.report.findings if f.code == "warmup.failed"]
    assert said in finding.message
    assert worker.ask({"workflow": plain()})["status"] == "completed"


def test_the_last_workflow_is_the_next_warm_up_made_small(boot: Boots, volume: Path) -> None:
    first = boot({"WARMUP_WORKFLOW": "last"})
    assert "warmup.none" in codes(first)
    large = {
        "1": {
            "class_type": "EmptyLatentImage",
            "inputs": {"width": 1024, "height": 1024, "batch_size": 4},
        },
        "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
    }
    assert first.ask({"workflow": large})["status"] == "completed"
    assert eventually((volume / ".comfyui-worker/recent/default.json").is_file)
    first.boot.stop()
    second = boot({"WARMUP_WORKFLOW": "last"})
    assert "warmup.done" in codes(second), second.report.findings


@pytest.fixture
def network_volume(volume: Path, tmp_path: Path) -> Iterator[SimulatedVolume]:
    """The volume behind a simulated network."""
    if reason := why_not():
        pytest.skip(reason)
    with mounted(volume, tmp_path / "network") as simulated:
        yield simulated


def test_a_volume_that_hangs_is_reported_in_time(
    boot: Boots, network_volume: SimulatedVolume
) -> None:
    server = network_volume.pid
    os.kill(server, signal.SIGSTOP)
    try:
        worker = boot({"VOLUME_PATH": str(network_volume.mountpoint), "VOLUME_TIMEOUT": "1"})
        assert worker.report.outcome is Outcome.DEGRADED
        assert "boot.stage_late" in codes(worker)
        reply = worker.ask({"workflow": plain()})
        assert reply["error_code"] in ("boot.stage_late", "volume.silent"), reply
    finally:
        os.kill(server, signal.SIGCONT)
