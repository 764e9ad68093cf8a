"""Where things lie on a volume, and the links that make its models visible to ComfyUI."""

from bootstrap.volume.layout import COMFYUI, MODELS, Layout, locate

__all__ = [
    "COMFYUI",
    "MODELS",
    "Layout",
    "categories",
    "extra_model_paths",
    "layout",
    "link_plan",
    "links",
    "locate",
]
