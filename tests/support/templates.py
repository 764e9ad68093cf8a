"""Volumes as Pod templates leave them, made from the demo's ComfyUI: docs/volumes.md has the table.

Each says which template's sources it follows. Virtual environments are real; packages come from the
demo's environment, by a `.pth` where a template has them in its image (thin), or by links in
site-packages where it has them in the venv (full).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from demo.volume import DemoVolume
from tests.conftest import furnished

PACK = Path(__file__).parent / "template_pack"
# Where uv keeps what it fetches: in the template's image, not on the volume.
UV_HOME = Path("/root/.local/share/uv/python/cpython-0.0.0-linux-x86_64-gnu/bin")


@dataclass(frozen=True)
class Template:
    """A template: `make` fills the empty folder of a volume. ComfyUI runs at `home` with the
    environment `venv` (None: the image's), and finds `loras`. `mounts`: the volume refers to
    /workspace, which must be a link to it. `data_only`: the image's ComfyUI runs."""

    name: str
    make: Callable[[DemoVolume, Path], None]
    home: str = "ComfyUI"
    venv: str | None = None
    codes: frozenset[str] = frozenset()
    loras: tuple[str, ...] = ("own.safetensors",)
    mounts: bool = False
    data_only: bool = False
    stand_in: bool = False


def comfyui(demo: DemoVolume, volume: Path, home: str = "ComfyUI") -> Path:
    """The demo's ComfyUI at `home`, with the template's node and LoRA."""
    made = furnished(demo, volume.with_name("furnished"))
    place = volume / home
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(made / "ComfyUI", place)
    shutil.rmtree(made)
    shutil.copytree(PACK, place / "custom_nodes" / PACK.name)
    lora(place / "models/loras/own.safetensors")
    return place


def lora(path: Path) -> Path:
    """A file that ComfyUI lists."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    return path


def venv(demo: DemoVolume, place: Path, full: bool = False) -> Path:
    """A real venv, made by the demo's Python."""
    kind = [] if full else ["--system-site-packages"]
    command = [str(demo.python), "-m", "venv", "--without-pip", *kind, str(place)]
    subprocess.run(command, check=True)
    (site,) = place.glob("lib/python3*/site-packages")
    (packages,) = demo.python.parent.parent.glob("lib/python3*/site-packages")
    if full:
        for name in os.listdir(packages):
            (site / name).symlink_to(packages / name)
    else:
        (site / "image.pth").write_text(f"{packages}\n")
    (site / "template_only.py").write_text("")
    return place


def runpod_slim(demo: DemoVolume, volume: Path) -> None:
    """comfyui-base from 2026-03: start.sh copies a baked ComfyUI, makes a thin .venv-cu128."""
    home = comfyui(demo, volume, "runpod-slim/ComfyUI")
    venv(demo, home / ".venv-cu128")
    (volume / "runpod-slim/comfyui_args.txt").write_text("# one a line\n--cpu\n--listen 0.0.0.0\n")
    (volume / "runpod-slim/.runpod-bundle-version").write_text("1.4.4")


def runpod_slim_2025(demo: DemoVolume, volume: Path) -> None:
    """comfyui-base of 2025: torch in .venv; a later image has put it aside once more."""
    home = comfyui(demo, volume, "runpod-slim/ComfyUI")
    venv(demo, home / ".venv", full=True)
    shutil.copytree(home / ".venv", home / ".venv.bak", symlinks=True)
    (volume / "runpod-slim/comfyui_args.txt").write_text("--cpu\n")


def ashley(demo: DemoVolume, volume: Path) -> None:
    """ashleykleynhans/comfyui-docker: a thin ComfyUI/venv; install_comfyui.sh, pre_start.sh."""
    home = comfyui(demo, volume)
    venv(demo, home / "venv")
    (home / "template.json").write_text('{"template_name": "comfyui", "template_version": "1"}')
    (home / "venv_path").write_text("/workspace/ComfyUI/venv")
    (volume / "logs").mkdir()


def ashley_webui(demo: DemoVolume, volume: Path) -> None:
    """ashleykleynhans/stable-diffusion-docker: AUTOMATIC1111's models by extra_model_paths.yaml."""
    ashley(demo, volume)
    text = "a111:\n  base_path: /workspace/stable-diffusion-webui/\n  loras: models/Lora\n"
    (volume / "ComfyUI/extra_model_paths.yaml").write_text(text)
    lora(volume / "stable-diffusion-webui/models/Lora/webui.safetensors")
    other = volume / "venvs/a1111"
    subprocess.run([str(demo.python), "-m", "venv", "--without-pip", str(other)], check=True)


def ai_dock(demo: DemoVolume, volume: Path) -> None:
    """ai-dock/comfyui: ComfyUI moved, models are absolute links into /workspace/storage."""
    home = comfyui(demo, volume)
    lora(volume / "storage/stable_diffusion/models/lora/stored.safetensors")
    text = "/workspace/storage/stable_diffusion/models/lora/stored.safetensors"
    (home / "models/loras/stored.safetensors").symlink_to(text)
    (volume / ".move_complete").write_text("")


def vast(demo: DemoVolume, volume: Path) -> None:
    """vastai/comfy: ComfyUI copied, its packages in the image, a link to the image's models."""
    home = comfyui(demo, volume)
    (home / "models/checkpoints/v1-5.safetensors").symlink_to("/opt/model_store/v1-5.safetensors")
    (volume / ".sync_ComfyUI.lock").write_text("")


def hearmeman(demo: DemoVolume, volume: Path) -> None:
    """Hearmeman24 until 2026-05: ComfyUI moved, packages in the image's /opt/venv."""
    comfyui(demo, volume)
    (volume / "additional_params.sh").write_text("#!/bin/sh\n")
    (volume / "comfyui_abc_nohup.log").write_text("")


def hearmeman_data(demo: DemoVolume, volume: Path) -> None:
    """Hearmeman24 since 2026-05: only data on the volume, its image has ComfyUI."""
    whole = comfyui(demo, volume.with_name("whole"))
    for name in ("models", "custom_nodes", "input", "output", "user"):
        (volume / "ComfyUI").mkdir(parents=True, exist_ok=True)
        if (whole / name).is_dir():
            shutil.move(whole / name, volume / "ComfyUI" / name)


def models_only(demo: DemoVolume, volume: Path) -> None:
    """runpod/stable-diffusion:comfy-ui-6.0.0: /workspace/comfyui/models, ComfyUI in the image."""
    lora(volume / "comfyui/models/loras/own.safetensors")


def valyrian(demo: DemoVolume, volume: Path) -> None:
    """ValyrianTech/ComfyUI_with_Flux after make_venv.sh: torch in /workspace/venv."""
    comfyui(demo, volume)
    venv(demo, volume / "venv", full=True)
    (volume / "start_user.sh").write_text("python main.py --listen --port 8188\n")


def madiator(demo: DemoVolume, volume: Path) -> None:
    """madiator better-comfyui: torch in runpod-venvs/, links to the image's models."""
    home = comfyui(demo, volume)
    venv(demo, volume / "runpod-venvs/better-comfyui", full=True)
    (home / "models/checkpoints/flux.safetensors").symlink_to("/comfy-models/flux.safetensors")


def madapps(demo: DemoVolume, volume: Path) -> None:
    """madapps slim: madapps/ComfyUI with a full .venv and a file of flags."""
    home = comfyui(demo, volume, "madapps/ComfyUI")
    venv(demo, home / ".venv", full=True)
    (volume / "madapps/comfyui_args.txt").write_text("--cpu\n--preview-method none\n")


def sombi(demo: DemoVolume, volume: Path) -> None:
    """somb1/ComfyUI-Docker: uv's Python is not on the volume, /workspace/venv is."""
    comfyui(demo, volume)
    made = venv(demo, volume / "venv", full=True)
    for link in (made / "bin").glob("python*"):
        link.unlink()
        link.symlink_to(UV_HOME / link.name)
    lines = (made / "pyvenv.cfg").read_text().splitlines()
    (version,) = [line.partition("=")[2] for line in lines if line.startswith("version")]
    text = f"home = {UV_HOME}\nimplementation = CPython\nuv = 0.8.4\nversion_info ={version}\n"
    (made / "pyvenv.cfg").write_text(f"{text}include-system-site-packages = false\n")


def wolfgrimmm(demo: DemoVolume, volume: Path) -> None:
    """wolfgrimmm's installer: models, input and output are links to the volume's root."""
    home = comfyui(demo, volume)
    venv(demo, volume / "venv", full=True)
    for name in ("models", "input", "output"):
        shutil.move(home / name, volume / name)
        (home / name).symlink_to(f"/workspace/{name}")


ELSEWHERE = frozenset({"volume.comfyui_elsewhere"})
ARGS = frozenset({"comfyui.args_file"})
TEMPLATES = (
    Template(
        "runpod-slim",
        runpod_slim,
        "runpod-slim/ComfyUI",
        "runpod-slim/ComfyUI/.venv-cu128",
        ELSEWHERE | ARGS | {"comfyui.args_file_left_out"},
    ),
    Template(
        "runpod-slim-2025",
        runpod_slim_2025,
        "runpod-slim/ComfyUI",
        "runpod-slim/ComfyUI/.venv",
        ELSEWHERE | ARGS,
    ),
    Template("ashleykza-comfyui", ashley, venv="ComfyUI/venv"),
    Template(
        "ashleykza-webui",
        ashley_webui,
        venv="ComfyUI/venv",
        loras=("own.safetensors", "webui.safetensors"),
        mounts=True,
    ),
    Template("ai-dock", ai_dock, loras=("own.safetensors", "stored.safetensors"), mounts=True),
    Template("vastai", vast),
    Template("hearmeman", hearmeman),
    Template("hearmeman-data", hearmeman_data, data_only=True),
    Template("models-only", models_only, "comfyui", data_only=True),
    Template("valyriantech", valyrian, venv="venv"),
    Template("madiator", madiator, venv="runpod-venvs/better-comfyui"),
    Template("madapps", madapps, "madapps/ComfyUI", "madapps/ComfyUI/.venv", ELSEWHERE | ARGS),
    Template("sombi", sombi, venv="venv", codes=frozenset({"python.stand_in"}), stand_in=True),
    Template("wolfgrimmm", wolfgrimmm, venv="venv", mounts=True),
)
