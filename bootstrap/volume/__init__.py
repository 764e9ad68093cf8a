"""Where things lie on a volume, and the links that make its models visible to ComfyUI."""

from bootstrap.volume.find_comfyui import CUSTOM_NODES, MODELS
from bootstrap.volume.locate import COMFYUI, Layout, locate, volume_root

__all__ = [
    "COMFYUI",
    "CUSTOM_NODES",
    "MODELS",
    "Layout",
    "args_file",
    "categories",
    "find_comfyui",
    "link_plan",
    "links",
    "locate",
    "volume_root",
]
