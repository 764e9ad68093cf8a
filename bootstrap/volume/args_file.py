"""`comfyui_args.txt` beside ComfyUI: the flags that Runpod's own template starts it with.

One or more flags a line, as in a shell; what follows a `#` is left out, as the template does.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bootstrap.config import Settings, is_ours
from bootstrap.core.findings import Finding, info, warning
from bootstrap.core.text import named, shown
from bootstrap.volume.layout import Layout

CODES = {
    "comfyui.args_file": "Flags of comfyui_args.txt on the volume are used.",
    "comfyui.args_file_left_out": "Flags of comfyui_args.txt that a worker cannot use.",
    "comfyui.args_file_unreadable": "comfyui_args.txt on the volume cannot be understood.",
}
NAME = "comfyui_args.txt"
_MOST_TEXT = 64 << 10
_ATTENTION = (
    "use-split-cross-attention use-quad-cross-attention use-pytorch-cross-attention "
    "use-sage-attention use-flash-attention use-ck-attention"
)
# ComfyUI takes one of each; source: comfy/cli_args.py, 2023 to v0.38.
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
        "cache-classic cache-lru cache-none cache-ram",
        "enable-dynamic-vram disable-dynamic-vram",
        "enable-assets disable-assets",
    )
)


@dataclass(frozen=True)
class ArgsFile:
    """The file at `path`: the flags to use, each with its values, and those that are the
    worker's own to set; `problem` is why it was not understood."""

    path: Path
    groups: tuple[tuple[str, ...], ...] = ()
    own: tuple[str, ...] = ()
    problem: str | None = None

    @property
    def flags(self) -> tuple[str, ...]:
        """All of them, as on a command line."""
        return tuple(part for group in self.groups for part in group)


def read_args_file(layout: Layout) -> ArgsFile | None:
    """The file that belongs to the volume's ComfyUI; None where there is none."""
    if not layout.comfyui_on_volume or layout.comfyui is None:
        return None
    for folder in dict.fromkeys((layout.comfyui.parent, layout.comfyui)):
        path = folder / NAME
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                text = file.read(_MOST_TEXT)
        except FileNotFoundError:
            continue
        except OSError as problem:
            return ArgsFile(path, problem=problem.strerror or str(problem))
        return _parsed(path, text)
    return None


def with_args_file(settings: Settings, file: ArgsFile | None) -> Settings:
    """The settings with the file's flags added to those of COMFYUI_ARGS. What COMFYUI_ARGS sets,
    or decides otherwise (`--lowvram` where the file has `--highvram`), is left out of the file."""
    if file is None or not file.groups:
        return settings
    decided = {flag.partition("=")[0] for flag in settings.comfyui_args if flag.startswith("--")}
    decided = decided.union(*(group for group in _EXCLUSIVE if group & decided))
    kept = [group for group in file.groups if group[0].partition("=")[0] not in decided]
    flags = tuple(part for group in kept for part in group)
    return replace(settings, comfyui_args=(*flags, *settings.comfyui_args))


def check_args_file(file: ArgsFile | None) -> list[Finding]:
    """What was taken from the file, and what not."""
    if file is None:
        return []
    place = shown(str(file.path))
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
                "Nothing to do; COMFYUI_ARGS goes before them.",
                path=str(file.path),
            )
        )
    if file.own:
        found.append(
            info(
                "comfyui.args_file_left_out",
                f"{named(file.own)} in {place} is left out: a worker sets that itself.",
                "Nothing to do.",
                path=str(file.path),
                flags=list(file.own),
            )
        )
    return found


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
