"""Which folders under `models/` ComfyUI reads, their other names, and which files they accept.

Source: ComfyUI's `folder_paths.py`, 2023 to v0.38. Older versions know fewer categories;
`volume.folders_known_to` reads those of the installed one. Custom nodes add folders, so a folder
that is not listed here is unusual, never wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

# ComfyUI's `supported_pt_extensions`; it compares in lower case.
PT_EXTENSIONS = frozenset(
    {".ckpt", ".pt", ".pt2", ".bin", ".pth", ".safetensors", ".pkl", ".sft"},
)
#: What pickle and torch.load read. torch 2.6 and ComfyUI load plain weights from them without
#: running code; older ones and many custom nodes run any code in the file.
PICKLES = frozenset({".ckpt", ".pt", ".pt2", ".pth", ".bin", ".pkl", ".pickle"})
# Read by the custom node ComfyUI-GGUF, which looks in ComfyUI's own folders.
GGUF = ".gguf"
# ComfyUI has its own; they describe models and are not models.
CONFIGS = "configs"


@dataclass(frozen=True)
class Category:
    """A kind of model as ComfyUI's loaders list it.

    `folders` are its names under `models/`, the current one first. `extensions` are lower case;
    empty accepts every file.
    """

    name: str
    folders: tuple[str, ...]
    extensions: frozenset[str] = PT_EXTENSIONS

    def accepts(self, file_name: str) -> bool:
        """Does ComfyUI, or ComfyUI-GGUF where it reads this category, list such a file?"""
        if not self.extensions:
            return True
        extension = extension_of(file_name)
        return extension in self.extensions or (extension == GGUF and self.name in _READ_BY_GGUF)


def extension_of(file_name: str) -> str:
    """The last suffix in lower case with its dot, or `""`, as in os.path.splitext."""
    stem, dot, suffix = file_name.rpartition(".")
    return dot + suffix.lower() if stem.strip(".") else ""


_READ_BY_GGUF = frozenset({"text_encoders", "diffusion_models"})
# Folder and category have the same name here.
_PLAIN = (
    "checkpoints loras vae clip_vision style_models embeddings vae_approx gligen upscale_models "
    "hypernetworks photomaker "
    "model_patches audio_encoders latent_upscale_models "  # 0.3.52, 0.3.53 and about 0.3.70
    "background_removal frame_interpolation geometry_estimation optical_flow detection"  # 2026
)
_ALL = (
    Category("text_encoders", ("text_encoders", "clip")),
    Category("diffusion_models", ("diffusion_models", "unet")),
    Category("controlnet", ("controlnet", "t2i_adapter")),
    *(Category(name, (name,)) for name in _PLAIN.split()),
    Category(CONFIGS, (CONFIGS,), frozenset({".yaml"})),
    Category("diffusers", ("diffusers",), frozenset()),
    # ComfyUI lists files without an extension here, yet nodes keep weights in it.
    Category("classifiers", ("classifiers",), frozenset()),
)

#: Category by name.
CATEGORIES: Mapping[str, Category] = MappingProxyType({c.name: c for c in _ALL})
#: Folder under `models/` -> the other folders ComfyUI reads for the same category.
ALIASES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        folder: tuple(other for other in category.folders if other != folder)
        for category in _ALL
        for folder in category.folders
        if len(category.folders) > 1
    }
)
# Other tools' names for ComfyUI's folders (AUTOMATIC1111's webui, Forge, Civitai's categories).
OTHER_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "stable-diffusion": "checkpoints",
        "stable_diffusion": "checkpoints",
        "ckpt": "checkpoints",
        "lora": "loras",
        "lycoris": "loras",
        "locon": "loras",
        "esrgan": "upscale_models",
        "realesrgan": "upscale_models",
        "upscalers": "upscale_models",
        "upscale": "upscale_models",
        "textual_inversion": "embeddings",
        "text_encoder": "text_encoders",
        "t5": "text_encoders",
        "control_net": "controlnet",
        "controlnets": "controlnet",
        "vaes": "vae",
        "diffusion_model": "diffusion_models",
        "unets": "diffusion_models",
    }
)
# Folders of widespread custom nodes, in lower case; a shorter list only means more notes.
READ_BY_NODES = frozenset(
    "animatediff_models animatediff_motion_lora aura-sr ben2 birefnet blip brushnet "
    "clip_interrogator clipseg cogvideo depthanything dwpose dynamicrafter_models ella "
    "facedetection facerestore_models florence2 grounding-dino hyperswap inpaint insightface "
    "instantid intrinsic_loras ipadapter ipadapter-flux joy_caption lama layer_model layerstyle "
    "liveportrait llava llm luts mimicmotion mmdets nsfw_detector onnx prompt_generator pulid "
    "reactor rembg rife rmbg sam2 sam3 sams sapiens seedvr2 sonic tts ultralytics vitmatte "
    "wav2vec2 whisper xlabs yolo yolov8".split()
)
_BY_FOLDER = {folder: category for category in _ALL for folder in category.folders}


def category_of(folder: str) -> Category | None:
    """The category of a folder directly under `models/`; None if ComfyUI has none. Case matters, as
    for ComfyUI on Linux.
    """
    return _BY_FOLDER.get(folder)


def known_folders() -> tuple[str, ...]:
    """Every folder name ComfyUI reads, sorted."""
    return tuple(sorted(_BY_FOLDER))
