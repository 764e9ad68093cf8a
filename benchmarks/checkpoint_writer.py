"""Writes a checkpoint with random weights; run by ComfyUI's interpreter in ComfyUI's folder.

    python checkpoint_writer.py sd15|sdxl FILE

Names and shapes come from ComfyUI's own classes, built on torch's meta device, which holds no
data; the weights are made and written in blocks, so that 7 GB need little memory.
"""

from __future__ import annotations

import json
import math
import os
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

sys.path.insert(0, os.getcwd())  # ComfyUI's modules are there

_UNET: dict[str, Any] = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "use_spatial_transformer": True,
    "legacy": False,
}
# As comfy/model_detection.py names them.
UNETS: dict[str, dict[str, Any]] = {
    "sd15": {
        "num_res_blocks": [2, 2, 2, 2],
        "channel_mult": [1, 2, 4, 4],
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_middle": 1,
        "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
        "context_dim": 768,
        "num_heads": 8,
    },
    "sdxl": {
        "num_res_blocks": [2, 2, 2],
        "channel_mult": [1, 2, 4],
        "transformer_depth": [0, 0, 2, 2, 10, 10],
        "transformer_depth_middle": 10,
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
        "context_dim": 2048,
        "num_head_channels": 64,
        "num_classes": "sequential",
        "adm_in_channels": 2816,
        "use_linear_in_transformer": True,
    },
}
_VAE: dict[str, Any] = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 128,
    "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "dropout": 0.0,
}
_PIECE = 16_000_000  # numbers in one write
Shapes = dict[str, tuple[int, ...]]


def shapes(kind: str) -> Shapes:
    """Name and shape of each tensor of a checkpoint of this kind, as ComfyUI itself saves it."""
    import comfy.options

    comfy.options.enable_args_parsing()
    sys.argv[1:] = ["--cpu"]  # else importing ComfyUI's model management needs a GPU
    import comfy.ops
    import comfy.sdxl_clip
    import comfy.supported_models
    import torch
    from comfy.ldm.models.autoencoder import AutoencoderKL
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    meta = torch.device("meta")
    ops = comfy.ops.disable_weight_init
    unet = UNetModel(**_UNET, **UNETS[kind], device=meta, dtype=torch.float16, operations=ops)
    with meta:
        vae = AutoencoderKL(ddconfig=_VAE, embed_dim=4)
        clip: Mapping[str, Any]
        if kind == "sd15":
            clip = _prefixed(_sd15_text_encoder().state_dict(), "cond_stage_model.transformer.")
        else:
            saved = comfy.sdxl_clip.SDXLClipModel(device="meta", dtype=torch.float16).state_dict()
            saved.pop("clip_g.logit_scale", None)
            model = comfy.supported_models.SDXL({})
            clip = model.process_clip_state_dict_for_saving(dict(saved))
    found = {
        **_prefixed(unet.state_dict(), "model.diffusion_model."),
        **_prefixed(vae.state_dict(), "first_stage_model."),
        **clip,
    }
    # Counters and positions are not weights: ComfyUI makes its own. Sorted by name, as the library
    # orders tensors of one dtype: text encoders first, the diffusion model last.
    weights = {n: t for n, t in sorted(found.items()) if t.is_floating_point() and t.dim()}
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}


def _sd15_text_encoder() -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
            projection_dim=768,
        )
    )


def _prefixed(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {prefix + name: tensor for name, tensor in state.items()}


def write(path: Path, tensors: Shapes) -> None:
    """A float16 safetensors file: header length, JSON header, little-endian data."""
    header: dict[str, Any] = {"__metadata__": {"made_by": "comfyui-volume-worker, random weights"}}
    end = 0
    for name, shape in tensors.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for name, shape in tensors.items():
            _write_numbers(file, math.prod(shape), _constant(name, shape))
        file.flush()
        os.fsync(file.fileno())  # dirty pages cannot be dropped from the page cache


def _constant(name: str, shape: tuple[int, ...]) -> float | None:
    """Normalisation layers are the identity, biases are zero; None: the rest is random."""
    if len(shape) > 1:
        return None
    return 0.0 if name.endswith("bias") else 1.0


def _write_numbers(file: BinaryIO, count: int, constant: float | None) -> None:
    import numpy as np

    if constant is not None:
        file.write(np.full(count, constant, "<f2").tobytes())
        return
    source = np.random.default_rng(count)
    for begin in range(0, count, _PIECE):
        bits = source.integers(0, 1 << 16, min(_PIECE, count - begin), dtype=np.uint16)
        # Random sign and mantissa; the exponent is that of 0.016 to 0.031.
        file.write(((bits & 0x83FF) | 0x2400).astype("<u2").tobytes())


if __name__ == "__main__":
    kind_asked, place = sys.argv[1], Path(sys.argv[2])
    write(place, shapes(kind_asked))
