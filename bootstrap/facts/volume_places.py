"""Where people put ComfyUI and models on a volume, right or wrong."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from bootstrap.core.concurrency import Together
from bootstrap.core.files import Folder, list_folder
from bootstrap.volume import COMFYUI, MODELS
from bootstrap.volume.categories import GGUF, PT_EXTENSIONS, extension_of, known_folders

_PROPER = {name.casefold(): name for name in known_folders()}
_WEIGHTS = PT_EXTENSIONS | {GGUF}
# Runpod's own templates keep it in `runpod-slim/ComfyUI` or `madapps/ComfyUI`.
_MOST_NEIGHBOURS = 60
_MOST_SUBFOLDERS = 8


class How(str, Enum):
    """In which way a ComfyUI is not where it is looked for."""

    NESTED = "nested"
    RENAMED = "renamed"
    ELSEWHERE = "elsewhere"
    IN_ROOT = "in_root"


@dataclass(frozen=True)
class Place:
    """A ComfyUI (it has a main.py) at `path`, which is not `<volume>/ComfyUI`."""

    path: str
    how: How


@dataclass(frozen=True)
class Stray:
    """A folder of models at `path` that ComfyUI would read if it were at `belongs`."""

    path: str
    belongs: str


def find_comfyuis(top: Folder, expected: Folder, together: Together) -> list[Place]:
    """ComfyUIs on the volume but for the expected one, the likeliest first.

    Raises SilentError, as everything here that is given a `together`.
    """
    places = [Place(p, How.NESTED) for p in expected.paths(_like_comfyui(expected))]
    alike = _like_comfyui(top) - {COMFYUI}
    places += [Place(p, How.RENAMED) for p in top.paths(alike)]
    places += [Place(os.path.join(p, COMFYUI), How.ELSEWHERE) for p in top.paths(alike)]
    others = top.paths(top.folders - alike - {COMFYUI})[:_MOST_NEIGHBOURS]
    places += [Place(os.path.join(p, COMFYUI), How.ELSEWHERE) for p in others]
    if "main.py" in top.files and top.names & {"comfy", "nodes.py", "folder_paths.py"}:
        places.append(Place(top.path, How.IN_ROOT))
    there = together.each(lambda place: has_main(place.path), places)
    return [place for place, found in zip(places, there, strict=True) if found]


def has_main(comfyui: str) -> bool:
    """Is there a `main.py`?"""
    return os.path.isfile(os.path.join(comfyui, "main.py"))


def differing(places: Iterable[Place], used: str, together: Together) -> list[Place]:
    """The places that are not the ComfyUI at `used` under another name."""
    kept = list(places)
    real = together.each(os.path.realpath, [used, *(p.path for p in kept)])
    return [p for p, path in zip(kept, real[1:], strict=True) if path != real[0]]


def find_strays(folders: Iterable[Folder], home: str, together: Together) -> list[Stray]:
    """Category folders with models in them that lie straight in one of `folders`."""
    found = [
        Stray(path, os.path.join(home, _PROPER[os.path.basename(path).casefold()]))
        for folder in folders
        for path in folder.paths(frozenset(n for n in folder.folders if n.casefold() in _PROPER))
    ]
    holds = together.each(lambda stray: _holds_weights(stray.path), found)
    return [stray for stray, models in zip(found, holds, strict=True) if models]


def wrong_case(tops: Iterable[Folder], homes: Iterable[Folder]) -> list[Stray]:
    """`Models` for `models` in `tops`, `Checkpoints` for `checkpoints` in the models folders."""
    found = []
    for folder in tops:
        names = (n for n in folder.folders if n.casefold() == MODELS and n != MODELS)
        found += [_beside(folder, name, MODELS) for name in sorted(names)]
    for folder in homes:
        for name in sorted(folder.folders):
            proper = _PROPER.get(name.casefold())
            if proper is not None and proper != name:
                found.append(_beside(folder, name, proper))
    return found


def _beside(folder: Folder, name: str, proper: str) -> Stray:
    return Stray(os.path.join(folder.path, name), os.path.join(folder.path, proper))


def _like_comfyui(folder: Folder) -> frozenset[str]:
    """`comfyui`, `ComfyUI-master`, `Comfy_UI` …"""
    return frozenset(
        name
        for name in folder.folders | folder.links
        if re.sub(r"[^a-z0-9]", "", name.casefold()).startswith("comfyui")
    )


def _holds_weights(path: str) -> bool:
    """Among its files, or those of its first subfolders. `configs` with somebody's settings in
    it is then not taken for a folder of models."""
    folder = list_folder(path)
    if any(map(_is_weights, folder.files | folder.links)):
        return True
    below = (list_folder(p) for p in folder.paths(folder.folders)[:_MOST_SUBFOLDERS])
    return any(_is_weights(name) for sub in below for name in sub.files | sub.links)


def _is_weights(name: str) -> bool:
    return extension_of(name) in _WEIGHTS
