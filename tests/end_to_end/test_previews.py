"""Previews of a real sampler: ComfyUI's own latent2rgb, through the worker to the caller."""

from __future__ import annotations

import base64
import io
import subprocess
from pathlib import Path
from typing import Any

from PIL import Image

from demo.volume import DemoVolume
from tests.conftest import environment, furnished
from tests.support.control_plane import ControlPlane
from tests.support.sources import ROOT
from tests.support.worker_process import WorkerProcess

# A UNet that ComfyUI takes for one of SD 1.5, with a single block: 30 MB instead of 1.7 GB.
WRITE_UNET = """
import sys
from pathlib import Path
folder, place = sys.argv[1:]
sys.argv[1:] = ["--cpu"]
sys.path.insert(0, folder)
import checkpoint_writer as writer
import comfy.options
comfy.options.enable_args_parsing()
import comfy.ops, torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
small = {"num_res_blocks": [1], "channel_mult": [1], "transformer_depth": [1]}
small |= {"transformer_depth_output": [1, 1], "transformer_depth_middle": 1}
unet = UNetModel(
    **writer._UNET, **{**writer.UNETS["sd15"], **small},
    device=torch.device("meta"), dtype=torch.float16, operations=comfy.ops.disable_weight_init,
)
writer.write(Path(place), {name: tuple(t.shape) for name, t in unet.state_dict().items()})
"""


def sampling(steps: int, side: int) -> dict[str, Any]:
    sampler = {"seed": 1, "steps": steps, "cfg": 1, "sampler_name": "euler", "scheduler": "normal"}
    links = {
        "model": ["1", 0],
        "positive": ["2", 0],
        "negative": ["2", 0],
        "latent_image": ["3", 0],
    }
    return {
        "1": {
            "class_type": "UNETLoader",
            "inputs": {"unet_name": "small.safetensors", "weight_dtype": "default"},
        },
        "2": {"class_type": "TestConditioning", "inputs": {"width": 768}},
        "3": {
            "class_type": "EmptyLatentImage",
            "inputs": {"width": side, "height": side, "batch_size": 1},
        },
        "4": {"class_type": "KSampler", "inputs": {**sampler, **links, "denoise": 1}},
        "5": {"class_type": "SaveLatent", "inputs": {"samples": ["4", 0], "filename_prefix": "l"}},
    }


def previews_in(updates: list[dict[str, Any]]) -> set[str]:
    return {update["preview"] for update in updates if "preview" in update}


def test_a_samplers_own_previews_reach_the_caller(demo: DemoVolume, tmp_path: Path) -> None:
    volume = furnished(demo, tmp_path / "volume")
    place = volume / "models/diffusion_models/small.safetensors"
    place.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [demo.python, "-c", WRITE_UNET, str(ROOT / "benchmarks"), str(place)],
        cwd=volume / "ComfyUI",
        check=True,
        timeout=60,
    )
    with ControlPlane() as plane:
        env = environment(demo, volume, tmp_path / "work") | plane.worker_env()
        env["COMFYUI_ARGS"] += " --preview-method auto"
        with WorkerProcess.module("handler", env=env) as worker:
            plane.wait_for("ready", timeout=90)
            updates: list[dict[str, Any]] = []
            for count in (8, 50, 400):  # more on a fast machine
                if len(previews_in(updates)) < 2:
                    given = {"previews": True, "preview_size": 64}
                    job = plane.submit({"workflow": sampling(count, 128), "progress": given})
                    reply = plane.result(job, 90)["output"]
                    assert reply["status"] == "completed", (reply, worker.log)
                    updates = [event.body["output"] for event in plane.select("progress", job)]
    previews = previews_in(updates)
    assert len(previews) >= 2, "the picture changes from step to step"
    for preview in previews:
        head, _, content = preview.partition(",")
        picture = Image.open(io.BytesIO(base64.b64decode(content)))
        assert head == "data:image/jpeg;base64" and picture.format == "JPEG"
        assert picture.size == (64, 64) and len(picture.getcolors(4096) or ()) > 16
    steps = [update["step"] for update in updates if "step" in update]
    assert steps == sorted(steps) and len(steps) >= 2
