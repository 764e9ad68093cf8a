"""Pure: which model files a workflow names, where, and the folder each is likely read from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from bootstrap.volume.categories import CATEGORIES, GGUF, PT_EXTENSIONS, extension_of
from handler.workflow import Workflow, is_link

_LONGEST = 1024  # more is a text that happens to end in `.bin`
# Input names of ComfyUI's own loaders and of those that imitate them, without a number at the end.
_BY_INPUT: Mapping[str, str] = MappingProxyType(
    {
        "ckpt_name": "checkpoints",
        "checkpoint": "checkpoints",
        "checkpoint_name": "checkpoints",
        "base_ckpt_name": "checkpoints",
        "refiner_ckpt_name": "checkpoints",
        "lora": "loras",
        "lora_name": "loras",
        "existing_lora": "loras",
        "vae": "vae",
        "vae_name": "vae",
        "unet_name": "diffusion_models",
        "diffusion_model": "diffusion_models",
        "clip_name": "text_encoders",
        "text_encoder": "text_encoders",
        "text_encoder_name": "text_encoders",
        "clip_vision": "clip_vision",
        "clip_vision_name": "clip_vision",
        "control_net": "controlnet",
        "control_net_name": "controlnet",
        "controlnet_name": "controlnet",
        "upscale_model": "upscale_models",
        "upscale_model_name": "upscale_models",
        "style_model_name": "style_models",
        "gligen_name": "gligen",
        "hypernetwork_name": "hypernetworks",
        "photomaker_model_name": "photomaker",
        "audio_encoder_name": "audio_encoders",
    }
)
# Where the class says more than the input's name.
_BY_CLASS_AND_INPUT: Mapping[tuple[str, str], str] = MappingProxyType(
    {
        ("CLIPVisionLoader", "clip_name"): "clip_vision",
        ("UpscaleModelLoader", "model_name"): "upscale_models",
        ("LatentUpscaleModelLoader", "model_name"): "latent_upscale_models",
        ("ModelPatchLoader", "name"): "model_patches",
    }
)


@dataclass(frozen=True)
class NamedModel:
    """A model file as a workflow names it: `name` is relative to the folder of its category, as
    the workflow spells it. `input` of a value inside another is `lora_1.lora`. `category` is a
    name of `CATEGORIES` in bootstrap/volume/categories.py as its loaders have it, None when it is
    not known."""

    name: str
    node_id: str
    class_type: str
    input: str
    category: str | None

    @property
    def folders(self) -> tuple[str, ...]:
        """Folders under models/ that the category is read from, the first for new files."""
        return CATEGORIES[self.category].folders if self.category else ()


def named_models(workflow: Workflow) -> tuple[NamedModel, ...]:
    """Every model file that the nodes' inputs name, in the workflow's order, repeats included.

    A model file is known by its extension. URLs, absolute paths and paths that climb are none.
    """
    return tuple(
        NamedModel(value, node_id, node["class_type"], name, _category(node["class_type"], name))
        for node_id, node in workflow.items()
        for name, value in _texts(node["inputs"])
        if names_a_model(value)
    )


def names_a_model(value: str) -> bool:
    """Does a text look like the name of a model file below one of ComfyUI's folders?"""
    if extension_of(value) not in PT_EXTENSIONS | {GGUF} or len(value) > _LONGEST:
        return False
    pieces = value.replace("\\", "/").split("/")
    return not any(piece in ("", ".", "..") for piece in pieces) and not (
        ":" in value or any(ord(character) < 32 for character in value)
    )


def _texts(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(input, text) of all texts, those inside an input's object included (some loaders keep
    `{"on": true, "lora": "x.safetensors"}`), unless it is switched off."""
    pending = list(values.items())[::-1]
    while pending:
        name, value = pending.pop()
        if isinstance(value, str):
            yield name, value
        elif isinstance(value, Mapping) and value.get("on") is not False:
            pending += [(f"{name}.{key}", inner) for key, inner in list(value.items())[::-1]]
        elif isinstance(value, list) and not is_link(value):
            pending += [(name, inner) for inner in value[::-1]]


def _category(class_type: str, name: str) -> str | None:
    last = name.rpartition(".")[2]
    bare = last.rstrip("0123456789").rstrip("_")
    return _BY_CLASS_AND_INPUT.get((class_type, last)) or _BY_INPUT.get(bare)
