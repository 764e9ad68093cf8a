"""Files beside ComfyUI with its flags and further model folders.

`comfyui_args.txt` has the flags that Runpod's own template starts it with, one or more per line, as
in a shell; text after `#` is ignored, as in the template.

`extra_model_paths.yaml` names further model folders. The worker adds one on its own disk for models
in the platform's cache: that cache belongs to this host, and a link to it on the volume would be
broken elsewhere. It is passed by `--extra-model-paths-config`, which ComfyUI reads after its own
file.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bootstrap.config import Settings, is_ours
from bootstrap.core.files import read_regular
from bootstrap.core.findings import Finding, info, warning
from bootstrap.core.text import printable, summarize_list
from bootstrap.volume.categories import CATEGORIES
from bootstrap.volume.locate import CLI_ARGS, Layout, folders_known_to, source_of

CODES = {
    "comfyui.args_file": "The flags in `comfyui_args.txt` on the volume are used",
    "comfyui.args_file_left_out": "Flags in `comfyui_args.txt` that a worker sets are skipped",
    "comfyui.args_file_unreadable": "`comfyui_args.txt` on the volume cannot be read",
}
NAME = "comfyui_args.txt"
_MOST_TEXT = 64 << 10
_ATTENTION = (
    "use-split-cross-attention use-quad-cross-attention use-pytorch-cross-attention "
    "use-sage-attention use-flash-attention use-ck-attention"
)
# ComfyUI accepts one of each; source: comfy/cli_args.py, 2023 to v0.38.
_EXCLUSIVE = tuple(
    frozenset(f"--{name}" for name in names.split())
    for names in (
        "gpu-only highvram normalvram lowvram novram cpu",
        "cuda-malloc disable-cuda-malloc",
        "force-fp32 force-fp16",
        "fp32-unet fp64-unet bf16-unet fp16-unet fp8_e4m3fn-unet fp8_e5m2-unet fp8_e8m0fnu-unet",
        "fp16-vae fp32-vae bf16-vae",
        "fp8_e4m3fn-text-enc fp8_e5m2-text-enc fp16-text-enc fp32-text-enc bf16-text-enc",
        "force-upcast-attention dont-upcast-attention",
        _ATTENTION,
        "cache-classic cache-lru cache-none cache-ram high-ram",
        "disable-manager-ui enable-manager-legacy-ui",
        "enable-dynamic-vram disable-dynamic-vram",
        "enable-assets disable-assets",
    )
)


@dataclass(frozen=True)
class ArgsFile:
    """The file at `path`: the flags to use, each with its values, and those that the worker sets
    itself; `problem` is why it could not be parsed."""

    path: Path
    groups: tuple[tuple[str, ...], ...] = ()
    own: tuple[str, ...] = ()
    problem: str | None = None

    @property
    def flags(self) -> tuple[str, ...]:
        """All of them, as on a command line."""
        return tuple(part for group in self.groups for part in group)


def read_args_file(layout: Layout) -> ArgsFile | None:
    """The file of the volume's ComfyUI; None if there is none."""
    if not layout.comfyui_on_volume or layout.comfyui is None:
        return None
    for folder in dict.fromkeys((layout.comfyui.parent, layout.comfyui)):
        path = folder / NAME
        try:
            text = read_regular(path, _MOST_TEXT).decode("utf-8", "replace")
        except FileNotFoundError:
            continue
        except OSError as problem:
            return ArgsFile(path, problem=problem.strerror or str(problem))
        return _parsed(path, text)
    return None


def with_args_file(settings: Settings, file: ArgsFile | None) -> Settings:
    """The settings with the file's flags added to those of COMFYUI_ARGS. COMFYUI_ARGS takes
    precedence, also over a contrary flag (`--lowvram` over the file's `--highvram`)."""
    if file is None or not file.groups:
        return settings
    decided = {flag.partition("=")[0] for flag in settings.comfyui_args if flag.startswith("--")}
    decided = decided.union(*(group for group in _EXCLUSIVE if group & decided))
    kept = [group for group in file.groups if group[0].partition("=")[0] not in decided]
    flags = tuple(part for group in kept for part in group)
    return replace(settings, comfyui_args=(*flags, *settings.comfyui_args))


def check_args_file(file: ArgsFile | None) -> list[Finding]:
    """Which flags of the file are used, and which are not."""
    if file is None:
        return []
    place = printable(str(file.path))
    found = []
    if file.problem is not None:
        return [
            warning(
                "comfyui.args_file_unreadable",
                f"{place} is not used: {file.problem}.",
                "Write one flag a line, as in `--preview-method auto`; `#` begins a comment.",
                path=str(file.path),
            )
        ]
    if file.groups:
        found.append(
            info(
                "comfyui.args_file",
                f"ComfyUI is started with the flags in {place}: {' '.join(file.flags)}.",
                "Nothing to do. Where COMFYUI_ARGS says otherwise, it takes precedence.",
                path=str(file.path),
            )
        )
    if file.own:
        found.append(
            info(
                "comfyui.args_file_left_out",
                f"{summarize_list(file.own)} in {place} is left out: a worker sets that itself.",
                "Nothing to do.",
                path=str(file.path),
                flags=list(file.own),
            )
        )
    return found


def flag_names(arguments: Iterable[str]) -> frozenset[str]:
    """The flags among them, without values after an equals sign."""
    return frozenset(arg.partition("=")[0] for arg in arguments if arg.startswith("--"))


def group_flags(arguments: Sequence[str]) -> list[list[str]]:
    """Each flag with the values that follow it."""
    groups: list[list[str]] = []
    for part in arguments:
        if part.startswith("--") or not groups:
            groups.append([part])
        else:
            groups[-1].append(part)
    return groups


def _parsed(path: Path, text: str) -> ArgsFile:
    try:
        words = [word for line in text.splitlines() for word in shlex.split(line, comments=True)]
    except ValueError as problem:
        return ArgsFile(path, problem=f"{problem}")
    if words and not words[0].startswith("-"):
        return ArgsFile(path, problem=f"it begins with {words[0]!r}, which is not a flag")
    groups = group_flags(words)
    own = tuple(group[0] for group in groups if is_ours(group[0]))
    return ArgsFile(path, tuple(tuple(g) for g in groups if not is_ours(g[0])), own)


FLAG = "--extra-model-paths-config"
OLD_FILE, NEW_FILE = "extra_model_paths.yaml", "extra_paths.yaml"


def paths_file(comfyui: Path) -> Path:
    """The file that this ComfyUI reads by itself: versions of late 2026 prefer extra_paths.yaml if
    it exists."""
    new = comfyui / NEW_FILE
    is_read = os.path.isfile(new) and NEW_FILE in source_of(comfyui, "main.py")
    return new if is_read else comfyui / OLD_FILE


def local_folders(comfyui: Path | None) -> Mapping[str, str]:
    """ComfyUI's name of a category -> its folder in a local models folder; empty if this ComfyUI
    takes no further folders.

    Only categories that ComfyUI itself knows: a custom node whose category already exists when it
    is loaded would skip its folder under ComfyUI/models.
    """
    if comfyui is None or FLAG not in source_of(comfyui, CLI_ARGS):
        return {}
    known = folders_known_to(comfyui)
    return {
        # In 2023 `text_encoders` was `clip`.
        next(name for name in (category.name, *category.folders) if name in known): folders[0]
        for category in CATEGORIES.values()
        if known.intersection(folders := category.folders)
    }


def describe_local_models(
    comfyui: Path, models: Path, config: Path, nodes: Path | None = None
) -> Path | None:
    """Write `config` with the folder `models` and the custom nodes at `nodes`; None if this ComfyUI
    has no such flag."""
    folders = dict(local_folders(comfyui))
    if not folders:
        return None
    if nodes is not None:
        folders["custom_nodes"] = str(nodes)
    # JSON is valid YAML, and quotes any path.
    text = json.dumps({"comfyui_volume_worker": {"base_path": str(models), **folders}}, indent=1)
    try:
        models.mkdir(exist_ok=True)
        config.write_text(text + "\n", "utf-8")
    except OSError:
        return None
    return config
