"""Where the volume, ComfyUI and the models are. Looks only; what it means is for the checks."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from bootstrap.config import Settings

# Serverless mounts the volume at the first, a Pod at the second: the same bytes.
USUAL_ROOTS = (Path("/runpod-volume"), Path("/workspace"))
COMFYUI = "ComfyUI"
MODELS = "models"


@dataclass(frozen=True)
class Layout:
    """What was found. `comfyui` has a `main.py`; `model_roots` exist and hold category folders
    that ComfyUI does not read by itself."""

    root: Path
    root_exists: bool
    comfyui: Path | None
    model_roots: tuple[Path, ...] = ()

    @property
    def comfyui_on_volume(self) -> bool:
        """Is the ComfyUI that will run the one on the volume, not one in the image?"""
        return self.comfyui is not None and self.comfyui.is_relative_to(self.root)

    @property
    def output(self) -> Path:
        """Where results are kept on the volume."""
        return self.root / COMFYUI / "output"

    @property
    def input(self) -> Path:
        """Where people keep input files on the volume."""
        return self.root / COMFYUI / "input"


def locate(settings: Settings, usual_roots: tuple[Path, ...] = USUAL_ROOTS) -> Layout:
    """Find the volume, then ComfyUI on it or in the image, then the models."""
    root = settings.volume_path or _first_furnished(usual_roots)
    comfyui = _first_comfyui(root / COMFYUI, settings.comfyui_dir)
    return Layout(
        root=root,
        root_exists=_is_folder(root),
        comfyui=comfyui,
        model_roots=_model_roots(root, comfyui),
    )


def folders_known_to(comfyui: Path) -> frozenset[str]:
    """Names of model folders that this ComfyUI reads, as its `folder_paths.py` spells them.

    Versions differ: one of 2023 knows `clip` and not `text_encoders`. Read as text, since
    importing it would need ComfyUI's own packages. Empty when the file cannot be read.
    """
    try:
        source = (comfyui / "folder_paths.py").read_text("utf-8", "replace")
    except OSError:
        return frozenset()
    return frozenset(re.findall(r"""models_dir,\s*["']([\w.-]+)["']""", source))


def _first_furnished(roots: tuple[Path, ...]) -> Path:
    """The first root with ComfyUI or models, else the first that exists, else the first."""
    for root in roots:
        if _is_folder(root / COMFYUI) or _is_folder(root / MODELS):
            return root
    return next((root for root in roots if _is_folder(root)), roots[0])


def _first_comfyui(*places: Path | None) -> Path | None:
    return next((p for p in places if p is not None and os.path.isfile(p / "main.py")), None)


def _model_roots(root: Path, comfyui: Path | None) -> tuple[Path, ...]:
    """Model folders beside the running ComfyUI's own: at the volume's root, and, when the
    running ComfyUI is the image's, in a `ComfyUI/` on the volume that cannot run."""
    own = None if comfyui is None else _real(comfyui / MODELS)
    found: dict[Path, Path] = {}
    for path in (root / MODELS, root / COMFYUI / MODELS):
        if _is_folder(path) and _real(path) != own:
            found.setdefault(_real(path), path)
    return tuple(found.values())


def _is_folder(path: Path) -> bool:
    """Unlike `Path.is_dir`, no exception when a mount has gone bad (ESTALE, ENOTCONN, EACCES)."""
    return os.path.isdir(path)


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))
