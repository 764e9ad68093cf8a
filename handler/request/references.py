"""Pure: what a workflow's inputs refer to: input files, models, random seeds."""

from __future__ import annotations

import posixpath
import re
import secrets
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from bootstrap.models.sources import looks_like_link
from bootstrap.volume.categories import CATEGORIES, GGUF, PT_EXTENSIONS, extension_of
from handler.request.workflow import NodeInput, Workflow, is_link

_FILE_INPUTS = frozenset("image images mask audio video file model_file latent".split())
_FOLDER_INPUTS = frozenset(("folder", "directory"))
# ComfyUI's own upload loaders and the most used others: they read only the input folder or, if the
# name says so, the one for results or previews. What a name means in other nodes is unknown.
_UPLOAD_LOADERS = frozenset(
    "LoadImage LoadImageMask LoadImageOutput LoadImageSetNode LoadImageSetFromFolderNode "
    "LoadImageTextSetFromFolderNode LoadImageDataSetFromFolder LoadImageTextDataSetFromFolder "
    "LoadAudio LoadVideo LoadLatent Load3D Load3DAnimation WebcamCapture GeminiInputFiles "
    "OpenAIInputFiles VHS_LoadVideo VHS_LoadVideoFFmpeg VHS_LoadAudioUpload VHS_LoadImages".split()
)
_SUFFIXES = (" [input]", "[input]")
# The suffix of a name, as ComfyUI's folder_paths.annotated_filepath reads it.
_ANNOTATION = re.compile(r"(?P<path>.*?) ?\[(?P<folder>input|output|temp)\]", re.DOTALL)
# In other nodes: a name with a common extension, or the value of an input with such a name.
_USUAL_NAME = re.compile(r".+\.[A-Za-z0-9]{2,5}")
_NAMES_FILES = frozenset(
    "image images mask masks audio video videos file files filename latent latents folder folders "
    "directory directories dir path paths input inputs subfolder sequence".split()
)
_NAMES_FOLDERS = frozenset("folder folders directory directories dir path paths subfolder".split())
_LONGEST_PATH = 1024
_LONGEST = 1024  # longer is a text that happens to end in `.bin`
# Input names of ComfyUI's own loaders and similar ones, without a trailing number.
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
# Node classes that say more than the input's name.
_BY_CLASS_AND_INPUT: Mapping[tuple[str, str], str] = MappingProxyType(
    {
        ("CLIPVisionLoader", "clip_name"): "clip_vision",
        ("UpscaleModelLoader", "model_name"): "upscale_models",
        ("LatentUpscaleModelLoader", "model_name"): "latent_upscale_models",
        ("ModelPatchLoader", "name"): "model_patches",
    }
)
_LOADER_INPUTS = _FILE_INPUTS | _FOLDER_INPUTS
RANDOM = "random"
# Accepted by every node: many use 32-bit seeds, and JavaScript is exact up to 53 bits.
_BITS = 32


def is_url(text: str) -> bool:
    """Is it meant as a web or bucket address, whether or not it may be fetched?"""
    return text[:8].lower().startswith(("http://", "https://", "s3://"))


def urls_to_load(workflow: Workflow) -> list[str]:
    """Addresses in place of a loader's file name, each once, in order. Nodes that load URLs
    themselves, and other text, are left alone.
    """
    found: dict[str, None] = {}
    for node in workflow.values():
        for name, value in node["inputs"].items():
            if _takes_a_file(node["class_type"], name) and isinstance(value, str) and is_url(value):
                found[value] = None
    return list(found)


def substitute_urls(workflow: Workflow, names: Mapping[str, str]) -> None:
    """Replace addresses that `urls_to_load` found by file names."""
    _change(workflow, lambda text: names.get(text, text), _takes_a_file)


def rename_files(workflow: Workflow, names: Mapping[str, str]) -> None:
    """Make the workflow use new names (`subfolder/name` → `subfolder/other`) in place of the old
    ones, also in nested lists, with ComfyUI's ` [input]` suffix, or with a backslash."""
    _change(workflow, _renaming(names))


def rename_named_files(workflow: Workflow, names: Mapping[str, str]) -> None:
    """`rename_files` for names that may also be words or models: only in inputs where `named_files`
    finds a file in the input folder."""
    for named in list(named_files(workflow)):
        reference = reference_in(named.text)[0]
        if named.folder == "input" and reference in names:
            inputs = workflow[named.node_id]["inputs"]
            name = next(n for n in inputs if named.input == n or named.input.startswith(f"{n}."))
            inputs[name] = _mapped(inputs[name], _renaming({reference: names[reference]}))


def rename_folders(workflow: Workflow, names: Mapping[str, str]) -> None:
    """`rename_files` for folders, whose names may be ordinary words: only in inputs whose name says
    folder or path."""
    _change(workflow, _renaming(names), lambda _, name: bool(_words(name) & _NAMES_FOLDERS))


def wanted_files(workflow: Workflow) -> Iterator[NamedFile]:
    """Every file or folder in the input folder that a known loader reads."""
    for named in named_files(workflow):
        if named.by_loader and named.folder == "input" and named.input in _LOADER_INPUTS:
            yield named


def is_folder_input(name: str) -> bool:
    """Does a loader's input of this name take a folder?"""
    return name.rpartition(".")[2] in _FOLDER_INPUTS


@dataclass(frozen=True)
class NamedFile(NodeInput):
    """A workflow's value that may name a file or folder. `path` is the name with slashes, without
    ComfyUI's suffix for the `folder`: input, output or temp. `by_loader`: in an upload loader,
    which reads only these folders."""

    text: str
    path: str
    folder: str
    by_loader: bool

    @property
    def outside(self) -> bool:
        """Does it lead out of the folder, by its text alone?"""
        return self.path.startswith("/") or self.path == ".." or self.path.startswith("../")


def named_files(workflow: Workflow) -> Iterator[NamedFile]:
    """Every value that may name a file or folder that ComfyUI reads."""
    for node_id, node in workflow.items():
        class_type = node["class_type"]
        for name, text in _texts(node["inputs"]):
            last = name.rpartition(".")[2]
            by_loader = class_type in _UPLOAD_LOADERS and (
                name.partition(".")[0] in _LOADER_INPUTS or last in _LOADER_INPUTS
            )
            if _may_name_a_file(text) and not is_url(text):
                match = _ANNOTATION.fullmatch(text)
                if by_loader or match or _says_file(class_type, last, text):
                    path = (match["path"] if match else text).replace("\\", "/")
                    folder = match["folder"] if match else "input"
                    yield NamedFile(
                        node_id,
                        class_type,
                        name,
                        text,
                        posixpath.normpath(path) if path else "",
                        folder,
                        by_loader,
                    )


def replace_texts(workflow: Workflow, texts: Mapping[str, str]) -> None:
    """Replace texts wherever an input equals one of them."""
    _change(workflow, lambda text: texts.get(text, text))


def replace_in_node(workflow: Workflow, node_id: str, texts: Mapping[str, str]) -> None:
    """`replace_texts` for one node."""
    replace_texts({node_id: workflow[node_id]}, texts)


def _change(
    workflow: Workflow,
    change: Callable[[str], str],
    wanted: Callable[[str, str], bool] = lambda class_type, name: True,
) -> None:
    """Change every text in the inputs that are `wanted`, also deep in lists and objects."""
    for node in workflow.values():
        for name, value in node["inputs"].items():
            if not is_link(value) and wanted(node["class_type"], name):
                node["inputs"][name] = _mapped(value, change)


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_mapped(item, change) for item in value]
    if isinstance(value, Mapping):
        return {key: _mapped(item, change) for key, item in value.items()}
    return value


def _renaming(names: Mapping[str, str]) -> Callable[[str], str]:
    """What gives a text that names one of these files the file's new name."""

    def renamed(text: str) -> str:
        reference, suffix = reference_in(text)
        return names[reference] + suffix if reference in names else text

    return renamed


def _words(name: str) -> set[str]:
    return set(re.split(r"[^a-z]+", name.lower()))


def _may_name_a_file(text: str) -> bool:
    """No file name contains a NUL, and none that we can open a lone surrogate."""
    return 0 < len(text.strip()) <= len(text) <= _LONGEST_PATH and not any(
        character in "\0\n" or unicodedata.category(character) == "Cs" for character in text
    )


def _says_file(class_type: str, name: str, text: str) -> bool:
    if names_a_model(text) and name not in _FILE_INPUTS:
        return False
    words = _words(name)
    return (
        _USUAL_NAME.fullmatch(text) is not None
        or ("load" in class_type.lower() and name in _FILE_INPUTS)
        or (bool(words & _NAMES_FILES) and not words & {"prefix", "output"})
    )


def reference_in(value: str) -> tuple[str, str]:
    """(`subfolder/name`, suffix) of a value that names a file."""
    text = unicodedata.normalize("NFC", value)
    suffix = next((s for s in _SUFFIXES if text.endswith(s)), "")
    path = text[: len(text) - len(suffix)].replace("\\", "/")
    return posixpath.normpath(path) if path else "", suffix


def _takes_a_file(class_type: str, name: str) -> bool:
    lowered = class_type.lower()
    return "load" in lowered and "url" not in lowered and name in _FILE_INPUTS


@dataclass(frozen=True)
class NamedModel(NodeInput):
    """A model file that a workflow names: `name` is relative to its category's folder, in the
    workflow's spelling. `input` of a nested value is for example `lora_1.lora`. `category` is from
    `CATEGORIES` in bootstrap/volume/categories.py, None if unknown."""

    name: str
    category: str | None

    @property
    def path(self) -> str:
        """The name with slashes."""
        return self.name.replace("\\", "/")

    @property
    def folders(self) -> tuple[str, ...]:
        """The category's folders under models/, the first for new files."""
        return CATEGORIES[self.category].folders if self.category else ()


def named_models(workflow: Workflow) -> tuple[NamedModel, ...]:
    """Every model file that the nodes' inputs name, by extension, in the workflow's order, with
    repeats. Not URLs, absolute paths or paths with `..`.
    """
    return tuple(model for model in _all_texts(workflow) if names_a_model(model.name))


def model_addresses(workflow: Workflow) -> tuple[NamedModel, ...]:
    """Every model loader's input with an address (`name`) in place of a file name, if the input
    shows the folder. Nodes that load URLs themselves are left alone.
    """
    return tuple(
        model
        for model in _all_texts(workflow)
        if model.category is not None
        and looks_like_link(model.name)
        and "url" not in model.class_type.lower()
    )


def _all_texts(workflow: Workflow) -> Iterator[NamedModel]:
    """Every text in the nodes' inputs, as if it named a model."""
    for node_id, node in workflow.items():
        class_type = node["class_type"]
        for name, value in _texts(node["inputs"]):
            yield NamedModel(node_id, class_type, name, value, _category(class_type, name))


def used_nodes(workflow: Workflow) -> frozenset[str]:
    """Nodes that others link to: ComfyUI does not run a loader whose result is unused."""
    values = (value for node in workflow.values() for value in node["inputs"].values())
    return frozenset(str(value[0]) for value in values if is_link(value))


def names_a_model(value: str) -> bool:
    """Does a text look like a model's file name?"""
    if extension_of(value) not in PT_EXTENSIONS | {GGUF} or len(value) > _LONGEST:
        return False
    pieces = value.replace("\\", "/").split("/")
    return not any(piece in ("", ".", "..") for piece in pieces) and not (
        ":" in value or any(ord(character) < 32 for character in value)
    )


def _texts(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(input, text) of all texts, including those in an input's object (some loaders have `{"on":
    true, "lora": "x.safetensors"}`), unless it is switched off."""
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


def draw_seeds(workflow: Workflow) -> tuple[Workflow, dict[str, int]]:
    """The workflow with a number for each `seed` or `…_seed` input that is "random"; the numbers by
    `NODE.INPUT`."""
    drawn: dict[str, int] = {}
    changed = dict(workflow)
    for node_id, node in workflow.items():
        inputs = node["inputs"]
        numbers = {
            n: secrets.randbits(_BITS) for n in inputs if _is_seed(n) and inputs[n] == RANDOM
        }
        if numbers:
            changed[node_id] = {**node, "inputs": {**inputs, **numbers}}
            drawn |= {f"{node_id}.{name}": number for name, number in numbers.items()}
    return changed, drawn


def _is_seed(name: str) -> bool:
    return name == "seed" or name.endswith("_seed")
