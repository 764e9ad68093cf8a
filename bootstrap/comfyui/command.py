"""Pure: ComfyUI's command line, and the GPU allocator it is started with.

Flags come and go between versions and an unknown one ends ComfyUI with argparse's code 2, so only
those that its own `--help` names are used.

With dynamic VRAM (on by default since 0.16, for NVIDIA and torch 2.8 or newer) ComfyUI manages the
GPU's memory through hooks that work best with cudaMallocAsync, its own choice; torch's allocator
with max_split_size_mb:256 would leave larger blocks whole and unused. Without it, that setting is
what keeps memory from fragmenting, and it needs --disable-cuda-malloc to have an effect. Source:
comfy/cli_args.py, main.py and cuda_malloc.py up to 0.33, comfy-aimdo's allocator.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bootstrap.core.findings import Finding, warning
from bootstrap.volume.args_file import group_flags

CODES = {"comfyui.flag_unknown": "A flag that this version of ComfyUI does not know"}

# Python 3.14 colours its help when FORCE_COLOR is set.
_COLOUR = re.compile(r"\x1b\[[\d;]*m")

# On by default in 0.38: each worker would scan all models on the volume, at its start and at each
# question for nodes, and keep them in a database.
_NO_ASSETS = "--disable-assets"


@dataclass(frozen=True)
class Folders:
    """Where ComfyUI writes, and the file that tells it of further models, if there is one."""

    input: Path
    output: Path
    user: Path
    temp_parent: Path
    front_end: Path
    database: str
    model_paths: Path | None = None


def flags_in(help_text: str) -> frozenset[str]:
    """The long flags that a `--help` text lists."""
    plain = _COLOUR.sub("", help_text)
    return frozenset(re.findall(r"(?<![\w-])--[a-zA-Z][\w-]*", plain))


def arguments(
    known: frozenset[str], folders: Folders, port: int, extra: Iterable[str]
) -> tuple[list[str], list[Finding]]:
    """What follows `main.py`: our flags, as far as known, then the user's."""
    ours: list[list[str]] = [
        ["--listen", "127.0.0.1"],
        ["--port", str(port)],
        ["--disable-auto-launch"],
        ["--input-directory", str(folders.input)],
        ["--output-directory", str(folders.output)],
        ["--temp-directory", str(folders.temp_parent)],
        ["--user-directory", str(folders.user)],
        ["--database-url", folders.database],
        ["--front-end-root", str(folders.front_end)],
    ]
    if folders.model_paths is not None:
        ours.append(["--extra-model-paths-config", str(folders.model_paths)])
    kept = [part for group in ours if group[0] in known for part in group]
    users, findings = _known_groups(extra, known)
    if _NO_ASSETS in known and "--enable-assets" not in users:
        kept.append(_NO_ASSETS)
    return kept + users, findings


def _known_groups(extra: Iterable[str], known: frozenset[str]) -> tuple[list[str], list[Finding]]:
    """The user's flags with their values, without those this version does not know."""
    groups = group_flags(tuple(extra))
    kept: list[str] = []
    findings: list[Finding] = []
    for group in groups:
        flag = group[0].split("=", 1)[0]
        if flag in known:
            kept.extend(group)
        else:
            findings.append(_unknown_flag(flag))
    return kept, findings


def _unknown_flag(flag: str) -> Finding:
    return warning(
        "comfyui.flag_unknown",
        f"This ComfyUI does not know the flag {flag}; it was left out.",
        f"Remove {flag} from COMFYUI_ARGS (or comfyui_args.txt on the volume), or update the "
        "ComfyUI on the volume.",
        flag=flag,
    )


CONF_NAMES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
RECOMMENDED = "max_split_size_mb:256"
_FLAG = "--disable-cuda-malloc"
_CHOSEN = frozenset(("--cuda-malloc", _FLAG))
_WITHOUT_DYNAMIC = frozenset(
    ("--disable-dynamic-vram", "--highvram", "--gpu-only", "--novram", "--cpu")
)
_LEAST_TORCH = (2, 8)


@dataclass(frozen=True)
class Allocator:
    """`args` and `env` are added to what ComfyUI is started with. `dynamic`: it manages the GPU's
    memory itself. `by_user`: a variable or flag has decided already, so that nothing is added."""

    dynamic: bool
    by_user: bool = False
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)


def choose_allocator(
    known: frozenset[str], args: Sequence[str], torch: str | None, env: Mapping[str, str]
) -> Allocator:
    """What to add for a ComfyUI that knows the flags `known`, is started with `args` and has that
    version of torch."""
    flags = {arg.partition("=")[0] for arg in args}
    dynamic = uses_dynamic_vram(known, flags, torch)
    if flags & _CHOSEN or any(env.get(name, "").strip() for name in CONF_NAMES):
        return Allocator(dynamic, by_user=True)
    if dynamic or "--cpu" in flags or _FLAG not in known:
        return Allocator(dynamic)
    return Allocator(dynamic, args=(_FLAG,), env={CONF_NAMES[0]: RECOMMENDED})


def uses_dynamic_vram(known: frozenset[str], flags: set[str], torch: str | None) -> bool:
    """On an NVIDIA GPU. An unknown torch is taken for a new one, as one beside a new ComfyUI is."""
    if "--enable-dynamic-vram" in flags & known:
        return True
    if "--disable-dynamic-vram" not in known or flags & _WITHOUT_DYNAMIC:
        return False
    numbers = tuple(int(n) for n in re.findall(r"\d+", torch or "")[:2])
    return len(numbers) < 2 or numbers >= _LEAST_TORCH
