"""Pure: which of a Civitai version's files is meant, and which folder it belongs in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from bootstrap.net.errors import DownloadError

# The file's type decides first, then the model's. Keys are lower case without blanks.
_BY_FILE = {
    "vae": "vae",
    "textencoder": "text_encoders",
    "unet": "diffusion_models",
    "diffusionmodel": "diffusion_models",
    "clipvision": "clip_vision",
    "controlnet": "controlnet",
    "upscaler": "upscale_models",
}
_BY_MODEL = {
    "checkpoint": "checkpoints",
    "lora": "loras",
    "locon": "loras",
    "dora": "loras",
    "textualinversion": "embeddings",
    "hypernetwork": "hypernetworks",
    "controlnet": "controlnet",
    "upscaler": "upscale_models",
    "vae": "vae",
    "motionmodule": "animatediff_models",
    "textencoder": "text_encoders",
    "clip": "text_encoders",
    "unet": "diffusion_models",
}
_NO_MODELS = ("trainingdata", "archive", "workflow", "workflows", "config", "negative")


def choose_file(version: Mapping[str, Any], choice: Mapping[str, str]) -> Mapping[str, Any]:
    """The file that the link's fields pick, else the primary, else the first that is a model.

    Raises DownloadError when the version holds no model at all.
    """
    listed = version.get("files")
    files = [f for f in listed if isinstance(f, Mapping)] if isinstance(listed, list) else []
    models = [f for f in files if _plain(f.get("type")) not in _NO_MODELS]
    wanted = [f for f in files if _matches(f, choice)] if choice else []
    chosen = wanted or [f for f in models if f.get("primary")] or models
    if not chosen or _plain(chosen[0].get("type")) in _NO_MODELS:
        kind = chosen[0].get("type") if chosen else "nothing"
        raise DownloadError(
            "download.wrong_type",
            f"the Civitai version holds {kind}, which is no model.",
            "Use the link of a version with a model file.",
        )
    return chosen[0]


def folder_for(version: Mapping[str, Any], file: Mapping[str, Any]) -> str | None:
    """The folder under `models/`; None when it must be given by hand."""
    by_file = _BY_FILE.get(_plain(file.get("type")))
    model = version.get("model")
    kind = model.get("type") if isinstance(model, Mapping) else None
    if _plain(kind) in _NO_MODELS:
        return None
    return by_file or _BY_MODEL.get(_plain(kind))


def sha256_of(file: Mapping[str, Any]) -> str | None:
    """The file's SHA-256 in lower case."""
    hashes = file.get("hashes")
    value = hashes.get("SHA256") if isinstance(hashes, Mapping) else None
    if isinstance(value, str) and re.fullmatch(r"[0-9a-fA-F]{64}", value):
        return value.lower()
    return None


def size_of(file: Mapping[str, Any]) -> int | None:
    """Bytes, when `sizeKB` (KiB, with a fraction) stands for a whole number of them."""
    kib = file.get("sizeKB")
    if not isinstance(kib, (int, float)) or isinstance(kib, bool) or kib <= 0:
        return None
    size = kib * 1024
    return round(size) if abs(size - round(size)) < 0.01 else None


def _matches(file: Mapping[str, Any], choice: Mapping[str, str]) -> bool:
    metadata = file.get("metadata")
    metadata = metadata if isinstance(metadata, Mapping) else {}
    if "fileId" in choice:
        return str(file.get("id")) == choice["fileId"]
    for key, value in choice.items():
        actual = file.get("type") if key == "type" else metadata.get(key)
        if _plain(actual) != _plain(value):
            return False
    return True


def _plain(value: Any) -> str:
    return re.sub(r"[\s_-]", "", value).lower() if isinstance(value, str) else ""
