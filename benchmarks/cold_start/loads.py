"""What the jobs load: a checkpoint of 2 or 7 GB, or a tiny VAE to test only the harness."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.checkpoint import checkpoint
from demo.volume import DemoVolume

Workflow = dict[str, Any]


@dataclass(frozen=True)
class Load:
    """A model and the job that needs it.

    `file` is the checkpoint to put on the volume, None for a model of the demo volume.
    `arguments` go to every contender's ComfyUI.
    """

    key: str
    label: str
    file: Path | None
    workflow: Callable[[str, int], Workflow]
    arguments: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The model's file name in `models/checkpoints`; empty without `file`."""
        return self.file.name if self.file else ""

    def job(self, seed: int, name: str | None = None) -> dict[str, Any]:
        """A job's input: this load's workflow with a seed, on a copy of the model called `name`."""
        return {"workflow": self.workflow(name or self.name, seed)}


def sd15(demo: DemoVolume) -> Load:
    """Stable Diffusion 1.5's shape, 2.1 GB."""
    return Load("sd15", "2 GB", checkpoint("sd15", demo), picture)


def sdxl(demo: DemoVolume) -> Load:
    """Stable Diffusion XL's shape, 6.9 GB; its weights stay float16 as on a GPU: a float32 copy for
    the CPU and the page cache together would exceed 24 GB of memory."""
    return Load("sdxl", "7 GB", checkpoint("sdxl", demo), picture, ("--fp16-unet",))


def tiny() -> Load:
    """The demo volume's TAESD, 10 MB: to test the harness."""
    return Load("tiny", "10 MB", None, through_taesd)


def picture(name: str, seed: int) -> Workflow:
    """Checkpoint → prompt → one step at 64×64 → decoded → saved."""
    text = {"clip": ["4", 1]}
    sampling = {"steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal"}
    inputs = {"model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0]}
    return {
        "4": _node("CheckpointLoaderSimple", ckpt_name=name),
        "5": _node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "6": _node("CLIPTextEncode", text="a lighthouse at dusk", **text),
        "7": _node("CLIPTextEncode", text="", **text),
        "3": _node("KSampler", seed=seed, denoise=1.0, latent_image=["5", 0], **sampling, **inputs),
        "8": _node("VAEDecode", samples=["3", 0], vae=["4", 2]),
        "9": _node("SaveImage", images=["8", 0], filename_prefix="bench"),
    }


def through_taesd(name: str, seed: int) -> Workflow:
    """A plain picture through the tiny VAE and back."""
    return {
        "1": _node("EmptyImage", width=64, height=64, batch_size=1, color=seed % 0xFFFFFF),
        "2": _node("VAELoader", vae_name="taesd"),
        "3": _node("VAEEncode", pixels=["1", 0], vae=["2", 0]),
        "4": _node("VAEDecode", samples=["3", 0], vae=["2", 0]),
        "5": _node("SaveImage", images=["4", 0], filename_prefix="bench"),
    }


def plain(seed: int) -> dict[str, Any]:
    """A job that costs next to nothing and needs no model."""
    image = _node("EmptyImage", width=64, height=64, batch_size=1, color=seed % 0xFFFFFF)
    saved = _node("SaveImage", images=["1", 0], filename_prefix="plain")
    return {"workflow": {"1": image, "2": saved}}


def _node(kind: str, **inputs: Any) -> Workflow:
    return {"class_type": kind, "inputs": inputs}
