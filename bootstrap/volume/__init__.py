"""Where things lie on a volume, and the links that make its models visible to ComfyUI."""

from bootstrap.volume.layout import COMFYUI, Layout, locate, volume_root
from bootstrap.volume.search import CUSTOM_NODES, MODELS

__all__ = [
    "COMFYUI",
    "CUSTOM_NODES",
    "MODELS",
    "Layout",
    "args_file",
    "categories",
    "layout",
    "link_plan",
    "links",
    "locate",
    "search",
    "volume_root",
]
