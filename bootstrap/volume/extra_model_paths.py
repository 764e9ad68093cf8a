"""ComfyUI's file of further models folders, and one on this worker's own disk that it is told of.

The platform's cache is this host's own: a link to it on the volume would lead nowhere elsewhere.
ComfyUI is told of the folder by `--extra-model-paths-config` and reads it after its own ones.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from bootstrap.volume.categories import CATEGORIES
from bootstrap.volume.layout import folders_known_to

FLAG = "--extra-model-paths-config"
OLD_FILE, NEW_FILE = "extra_model_paths.yaml", "extra_paths.yaml"


def paths_file(comfyui: Path) -> Path:
    """The file that this ComfyUI reads by itself: versions of late 2026 read extra_paths.yaml
    instead of the other, where it is there."""
    new = comfyui / NEW_FILE
    try:
        if new.is_file() and NEW_FILE in (comfyui / "main.py").read_text("utf-8", "replace"):
            return new
    except OSError:
        pass
    return comfyui / OLD_FILE


def local_folders(comfyui: Path | None) -> Mapping[str, str]:
    """ComfyUI's name of a category -> its folder in a local models folder; empty when this ComfyUI
    cannot be told of further folders.

    Only categories that ComfyUI itself knows: a custom node that finds its own one taken before
    it was loaded leaves out its folder under ComfyUI/models.
    """
    if comfyui is None or not _can_be_told(comfyui):
        return {}
    known = folders_known_to(comfyui)
    return {
        # One of 2023 says `clip` for `text_encoders`.
        next(name for name in (category.name, *category.folders) if name in known): folders[0]
        for category in CATEGORIES.values()
        if known.intersection(folders := category.folders)
    }


def describe_local_models(
    comfyui: Path, models: Path, config: Path, nodes: Path | None = None
) -> Path | None:
    """Write `config`, which tells ComfyUI of the folder `models`, and of the custom nodes at
    `nodes`; None where it cannot be told."""
    folders = dict(local_folders(comfyui))
    if not folders:
        return None
    if nodes is not None:
        folders["custom_nodes"] = str(nodes)
    # JSON is YAML, and quotes whatever a path may hold.
    text = json.dumps({"comfyui_volume_worker": {"base_path": str(models), **folders}}, indent=1)
    try:
        models.mkdir(exist_ok=True)
        config.write_text(text + "\n", "utf-8")
    except OSError:
        return None
    return config


def _can_be_told(comfyui: Path) -> bool:
    try:
        return FLAG in (comfyui / "comfy" / "cli_args.py").read_text("utf-8", "replace")
    except OSError:
        return False
