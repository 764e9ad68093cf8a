"""Model folders for tests: real files with real headers, a few hundred bytes each."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path

HTML = b"<!DOCTYPE html><html><head><title>Log in</title></head></html>"
REFUSAL = b'{"error":"Unauthorized","message":"The creator of this asset requires you to log in"}'


def safetensors(
    path: Path, size: int = 64, dtype: str = "F16", fill: bytes = b"\1", note: str = ""
) -> Path:
    """A complete safetensors file with one tensor of `size` bytes."""
    tensor = {"dtype": dtype, "shape": [size], "data_offsets": [0, size]}
    header = json.dumps({"__metadata__": {"note": note}, "weight": tensor}).encode()
    return write(path, struct.pack("<Q", len(header)) + header + (fill * size)[:size])


def pickle(path: Path) -> Path:
    """A zip archive as torch.save writes one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
    return path


def write(path: Path, data: bytes) -> Path:
    """Write a file and its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def link(path: Path, text: str | Path) -> Path:
    """Create a symbolic link and its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(text)
    return path


def healthy(models: Path) -> Path:
    """What a real volume holds, none of it broken."""
    safetensors(models / "checkpoints" / "sd_xl_base.safetensors", 4096)
    safetensors(models / "loras" / "style" / "ink.safetensors", 128)
    safetensors(models / "vae" / "vae.safetensors", 256, "F32")
    pickle(models / "upscale_models" / "4x-UltraSharp.pth")
    write(models / "unet" / "flux.gguf", b"GGUF" + bytes(range(1, 200)))
    write(models / "insightface" / "det.onnx", b"\x08\x07" + bytes(range(1, 100)))
    write(models / "loras" / "style" / "ink.preview.png", b"\x89PNG")
    write(models / "checkpoints" / "put_checkpoints_here", b"")
    (models / "controlnet").mkdir()
    return models
