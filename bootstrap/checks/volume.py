"""Is the volume there, and ComfyUI on it?"""

from __future__ import annotations

from bootstrap.findings import Finding, error, ok
from bootstrap.volume import COMFYUI, Layout

CODES = {
    "volume.found": "Volume and ComfyUI are where they should be",
    "volume.not_found": "There is no volume where one was looked for",
    "comfyui.not_found": "There is no ComfyUI on the volume or in the image",
}


def check_layout(layout: Layout) -> list[Finding]:
    """The volume's root and ComfyUI's `main.py`."""
    if not layout.root_exists and layout.comfyui is None:
        return [_no_volume(layout)]
    if layout.comfyui is None:
        return [_no_comfyui(layout)]
    models = ", ".join(map(str, layout.model_roots)) or "none beside ComfyUI's own"
    return [
        ok("volume.found", f"ComfyUI at {layout.comfyui}, volume {layout.root}, models {models}.")
    ]


def _no_volume(layout: Layout) -> Finding:
    return error(
        "volume.not_found",
        f"There is no volume at {layout.root}.",
        "Attach the network volume to the endpoint (Edit Endpoint → Advanced → Network Volume); "
        "it must be in the endpoint's datacenter. If it is mounted elsewhere, set VOLUME_PATH.",
        root=str(layout.root),
    )


def _no_comfyui(layout: Layout) -> Finding:
    place = layout.root / COMFYUI
    return error(
        "comfyui.not_found",
        f"There is no ComfyUI at {place} (main.py is missing), and none in the image.",
        f"On a Pod with this volume, put ComfyUI there: cd {layout.root} && "
        "git clone https://github.com/comfyanonymous/ComfyUI (ComfyUI must lie straight in the "
        "volume's root under exactly this name); or set COMFYUI_DIR to one in the image.",
        looked_at=str(place),
    )
