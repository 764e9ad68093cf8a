"""The contenders: how each is started, and on which volume."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cold_start.loads import Load
from benchmarks.cold_start.scene import Scene
from demo.environment import REPOSITORY
from demo.run import free_port
from demo.volume import DemoVolume
from tests.support.worker_process import WorkerProcess

PEERS = Path(__file__).with_name("peers")
OURS = "ours, volume"
LOCAL = "ours, all local"
ON_FIRST_JOB = "ComfyUI run from the volume by the first job"
IMAGE_FIRST = "worker-comfyui's sequence"

Start = Callable[[Scene, Load, Path, Mapping[str, str]], WorkerProcess]


@dataclass(frozen=True)
class Contender:
    """A way to start. `start` creates the process, not yet running, from the scene, the load, the
    mounted volume and the control plane's environment. `ours`: it answers diagnostics.
    """

    key: str
    name: str
    load: Load
    start: Start
    through_network: bool = True
    ours: bool = False


def ours(
    scene: Scene, load: Load, volume: Path, plane: Mapping[str, str], **more: str
) -> WorkerProcess:
    """This project's worker, with `more` in its environment."""
    own = own_environment(volume, scene.demo, scene.work, *load.arguments)
    return WorkerProcess.module("handler", env={**plane, **own, **more}, cwd=REPOSITORY)


def own_environment(volume: Path, demo: DemoVolume, work: Path, *arguments: str) -> dict[str, str]:
    """Variables for this project's worker on `volume` with the demo's Python; `arguments` are
    ComfyUI's."""
    return {
        **demo.worker_environment,
        "VOLUME_PATH": str(volume),
        # Log its whole start at ComfyUI's default level: the marks are read from it.
        "COMFYUI_ARGS": " ".join(("--cpu", "--verbose", "INFO", *arguments)),
        "COMFY_LOG_LEVEL": "debug",
        "COMFYUI_PORT": "0",
        "WORK_DIR": str(work),
    }


def all_local(scene: Scene, load: Load, volume: Path, plane: Mapping[str, str]) -> WorkerProcess:
    """Ours, without copying the code, which would gain nothing here."""
    return ours(scene, load, volume, plane, STAGE_COMFYUI="false")


def on_first_job(scene: Scene, load: Load, volume: Path, plane: Mapping[str, str]) -> WorkerProcess:
    """ComfyUI on the volume, run in place."""
    env = {**plane, **_peer(scene, load, volume / "ComfyUI")}
    name = "benchmarks.cold_start.peers.on_first_job"
    return WorkerProcess.module(name, env=env, cwd=REPOSITORY)


def image_first(scene: Scene, load: Load, volume: Path, plane: Mapping[str, str]) -> WorkerProcess:
    """ComfyUI in the image, models on the volume."""
    yaml = f"volume:\n  base_path: {volume}\n  checkpoints: models/checkpoints/\n"
    yaml += "  vae_approx: models/vae_approx/\n"
    (scene.image / "extra_model_paths.yaml").write_text(yaml, encoding="utf-8")
    env = {**plane, **_peer(scene, load, scene.image)}
    return WorkerProcess(["sh", PEERS / "image_first.sh"], env=env, cwd=REPOSITORY)


def _peer(scene: Scene, load: Load, comfyui: Path) -> dict[str, str]:
    return peer_environment(scene.demo.python, comfyui, scene.folder, *load.arguments)


def peer_environment(python: Path, comfyui: Path, folder: Path, *arguments: str) -> dict[str, str]:
    """Variables with which a peer starts and finds ComfyUI, on a port that is free now. ComfyUI's
    front end is not installed here: an empty page in `folder` takes its place."""
    front_end = folder / "front-end"
    front_end.mkdir(exist_ok=True)
    (front_end / "index.html").write_text("<!doctype html><title>none</title>")
    port = free_port()
    flags = ["--cpu", *arguments, "--port", str(port), "--disable-auto-launch"]
    flags += ["--front-end-root", str(front_end)]
    return {
        "PEER_COMFYUI": str(comfyui),
        "PEER_PYTHON": str(python),
        "PEER_FLAGS": " ".join(flags),
        "PEER_URL": f"http://127.0.0.1:{port}",
        "PEER_WORKER_PYTHON": sys.executable,
        "PEER_HANDLER": "benchmarks.cold_start.peers.image_first",
    }


def four(load: Load) -> list[Contender]:
    """All contenders for one load."""
    return [
        Contender(f"ours-{load.key}", OURS, load, ours, ours=True),
        Contender(f"local-{load.key}", LOCAL, load, all_local, through_network=False, ours=True),
        Contender(f"first-job-{load.key}", ON_FIRST_JOB, load, on_first_job),
        Contender(f"image-{load.key}", IMAGE_FIRST, load, image_first),
    ]
