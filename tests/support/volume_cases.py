"""Broken volumes: what is done to a healthy one, what is found, and what must survive the fix."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bootstrap.core.findings import Severity
from tests.support.volumes import model

_, _, WARNING, ERROR = Severity
HEX = "0123456789abcdef" * 2
Break = Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    """`spoil` breaks a healthy volume, which then has `code` as its only warning or error; after
    the fix there is none, and `kept` is there."""

    code: str
    severity: Severity
    spoil: Break
    kept: str = "ComfyUI/models/checkpoints/real.safetensors"
    name: str = ""


def moved(source: str, target: str) -> Break:
    def spoil(root: Path) -> None:
        (root / target).parent.mkdir(parents=True, exist_ok=True)
        os.rename(root / source, root / target)

    return spoil


def both(*spoils: Break) -> Break:
    return lambda root: [spoil(root) for spoil in spoils]


def nested(root: Path) -> None:
    os.rename(root / "ComfyUI", root / "inner")
    (root / "ComfyUI").mkdir()
    os.rename(root / "inner", root / "ComfyUI/ComfyUI")


def nested_with_models_outside(root: Path) -> None:
    nested(root)
    model(root / "ComfyUI/models/loras/mine.safetensors")


def into_root(root: Path) -> None:
    for entry in list((root / "ComfyUI").iterdir()):
        os.rename(entry, root / entry.name)
    (root / "ComfyUI").rmdir()


def pack(root: Path) -> None:
    (root / "ComfyUI/custom_nodes/pack").mkdir()


def without_models(root: Path) -> None:
    shutil.rmtree(root / "ComfyUI/models")


def linked(place: str, text: str) -> Break:
    return lambda root: (root / place).symlink_to(text.format(root=root))


def swapped(place: str, text: str, target: str) -> Break:
    """Move what is at `place` to `target`, and leave a link that reads `text`."""
    return both(moved(place, target), linked(place, text))


def paths_file(text: str) -> Break:
    return lambda root: (root / "ComfyUI/extra_model_paths.yaml").write_text(text.format(root=root))


def broken_venv(root: Path) -> None:
    made = [sys.executable, "-m", "venv", "--without-pip", str(root / "venv")]
    subprocess.run(made, check=True)
    for link in (root / "venv/bin").glob("python*"):
        link.unlink()
    (root / "venv/bin/python").symlink_to("/nowhere/bin/python3")
    (root / "venv/bin/python3").symlink_to("python")


def aged(place: str, hours: float = 2, text: str = "") -> Break:
    def spoil(root: Path) -> None:
        path = root / place
        path.write_text(text)
        before = path.stat().st_mtime - hours * 3600
        os.utime(path, (before, before))

    return spoil


def ours_broken(root: Path) -> None:
    model(root / "models/sams/x.pth")
    (root / "ComfyUI/models/sams").symlink_to("../../models/sams")
    shutil.rmtree(root / "models")


LORA = "ComfyUI/models/loras/mine.safetensors"
CASES = [
    Case(
        "volume.nodes_misplaced", WARNING, both(pack, moved("ComfyUI/custom_nodes", "custom_nodes"))
    ),
    Case(
        "volume.nodes_misplaced",
        WARNING,
        lambda r: (r / "stuff/custom_nodes/pack").mkdir(parents=True),
        name="deeper",
    ),
    Case("volume.models_missing", WARNING, without_models, "models/checkpoints"),
    Case("volume.models_misplaced", WARNING, lambda r: model(r / "loras/mine.safetensors"), LORA),
    Case(
        "volume.models_misplaced",
        WARNING,
        lambda r: model(r / "ComfyUI/Loras/deep/mine.safetensors"),
        "ComfyUI/models/loras/deep/mine.safetensors",
        "in ComfyUI, below",
    ),
    Case(
        "volume.models_misplaced",
        WARNING,
        both(
            without_models,
            lambda r: model(r / "my 'own' models/loras/x.pt"),
            lambda r: os.rename(r / "my 'own' models/loras", r / "LoRAs"),
            lambda r: os.mkdir(r / "models"),
        ),
        "models/loras/x.pt",
        "nothing else",
    ),
    Case(
        "volume.models_loose",
        WARNING,
        lambda r: model(r / "my model.safetensors"),
        "ComfyUI/models/checkpoints/my model.safetensors",
    ),
    Case(
        "volume.models_loose",
        WARNING,
        lambda r: model(r / "ComfyUI/x.gguf"),
        "ComfyUI/models/checkpoints/x.gguf",
        "in ComfyUI",
    ),
    Case(
        "volume.wrong_case",
        WARNING,
        moved("ComfyUI/models", "Models"),
        "models/checkpoints/real.safetensors",
    ),
    Case(
        "volume.wrong_case",
        WARNING,
        moved("ComfyUI/models/loras", "ComfyUI/models/LoRAs"),
        "ComfyUI/models/loras",
        "category",
    ),
    Case(
        "links.other_mount",
        WARNING,
        swapped("ComfyUI/models/loras", "/workspace/store/loras", "store/loras"),
    ),
    Case(
        "links.other_mount",
        WARNING,
        swapped("ComfyUI/models", "/workspace/models", "models"),
        name="models",
    ),
    Case("links.absolute", WARNING, swapped("ComfyUI/models", "{root}/models", "models")),
    Case(
        "links.absolute",
        WARNING,
        swapped("ComfyUI/models/checkpoints/real.safetensors", "{root}/real", "real"),
        name="model",
    ),
    Case("links.broken", WARNING, linked("ComfyUI/models/LLM", "../../gone")),
    Case(
        "links.broken",
        WARNING,
        linked("ComfyUI/custom_nodes/a b\n'\udcff", "/workspace/gone"),
        name="odd name",
    ),
    Case("links.ours_broken", WARNING, ours_broken),
    Case("links.endless", WARNING, linked("ComfyUI/models/sams", "sams")),
    Case("links.endless", WARNING, linked("ComfyUI/models/sams", ".."), name="up"),
    Case(
        "links.outward",
        WARNING,
        swapped("ComfyUI/models/vae", "{root}/../elsewhere", "../elsewhere"),
    ),
    Case(
        "volume.paths_other_mount",
        WARNING,
        both(
            lambda r: (r / "store/loras").mkdir(parents=True),
            paths_file("mine:\n    base_path: /workspace/store/\n    loras: loras\n"),
        ),
    ),
    Case(
        "volume.paths_absolute",
        WARNING,
        both(
            lambda r: (r / "store/loras").mkdir(parents=True),
            paths_file("mine:\n    loras: |\n        {root}/store/loras\n"),
        ),
    ),
    Case(
        "volume.paths_missing",
        WARNING,
        paths_file(
            "a111:\n    base_path: /home/me/webui\n    loras: |\n        models/Lora\n"
            "        models/LyCORIS\n    vae: models/VAE\n"
        ),
    ),
    Case(
        "volume.put_aside",
        WARNING,
        aged(f"ComfyUI/models/loras/.{HEX}.unlinking", text="a model"),
        "ComfyUI/models/loras/put-aside-01234567",
    ),
]
