"""Pure: which inputs of a workflow name files in ComfyUI's input folder, and how to rename them."""

from __future__ import annotations

import posixpath
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

from handler.request_files import is_url
from handler.workflow import Workflow, is_link

_FILE_INPUTS = frozenset("image images mask audio video file model_file latent".split())
# ComfyUI's own loaders and the most used ones beside them: they read the input folder and nothing
# else. Of others nobody knows what a name stands for.
_CORE_LOADERS = frozenset(
    "LoadImage LoadImageMask LoadAudio LoadVideo LoadLatent Load3D VHS_LoadVideo "
    "VHS_LoadAudioUpload".split()
)
_SUFFIXES = (" [input]", "[input]")
_ELSEWHERE = ("[output]", "[temp]")


def urls_to_load(workflow: Workflow) -> list[str]:
    """Addresses that stand where a loader wants a file name, each once, in order.

    A node that says it loads URLs is left to do so, and texts elsewhere are texts.
    """
    found: dict[str, None] = {}
    for node in workflow.values():
        for name, value in node["inputs"].items():
            if _takes_a_file(node["class_type"], name) and isinstance(value, str) and is_url(value):
                found[value] = None
    return list(found)


def use_fetched(workflow: Workflow, names: Mapping[str, str]) -> None:
    """Put file names where `urls_to_load` found addresses."""
    for node in workflow.values():
        for name, value in node["inputs"].items():
            if _takes_a_file(node["class_type"], name) and isinstance(value, str):
                node["inputs"][name] = names.get(value, value)


def rename_files(workflow: Workflow, names: Mapping[str, str]) -> None:
    """Let the workflow use new names (`subfolder/name` → `subfolder/other`) wherever it has the
    old ones, also deep in lists, with ComfyUI's ` [input]` behind them, or with a backslash."""
    for node in workflow.values():
        for name, value in node["inputs"].items():
            if not is_link(value):
                node["inputs"][name] = _renamed(value, names)


def wanted_files(workflow: Workflow) -> Iterator[tuple[str, str, str]]:
    """(node id, input, relative path) of every file that a loader we know wants."""
    for node_id, node in workflow.items():
        if node["class_type"] not in _CORE_LOADERS:
            continue
        for name, value in node["inputs"].items():
            named = name in _FILE_INPUTS and isinstance(value, str) and value.strip()
            if named and not value.endswith(_ELSEWHERE) and not is_url(value):
                yield node_id, name, reference_in(value)[0]


def reference_in(value: str) -> tuple[str, str]:
    """(`subfolder/name`, the suffix behind it) of a value that names a file."""
    text = unicodedata.normalize("NFC", value)
    suffix = next((s for s in _SUFFIXES if text.endswith(s)), "")
    path = text[: len(text) - len(suffix)].replace("\\", "/")
    return posixpath.normpath(path) if path else "", suffix


def _takes_a_file(class_type: str, name: str) -> bool:
    lowered = class_type.lower()
    return "load" in lowered and "url" not in lowered and name in _FILE_INPUTS


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        reference, suffix = reference_in(value)
        return names[reference] + suffix if reference in names else value
    if isinstance(value, list):
        return [_renamed(item, names) for item in value]
    if isinstance(value, Mapping):
        return {key: _renamed(item, names) for key, item in value.items()}
    return value
