"""Pure: which GPU allocator ComfyUI is started with, by its version, its torch and its flags.

With dynamic VRAM (on by default since 0.16, for NVIDIA and torch 2.8 or newer) ComfyUI manages the
GPU's memory through hooks that work best with cudaMallocAsync, its own choice; torch's allocator
with max_split_size_mb:256 would leave larger blocks whole and unused. Without it, that setting is
what keeps memory from fragmenting, and it needs --disable-cuda-malloc to have an effect. Source:
comfy/cli_args.py, main.py and cuda_malloc.py up to 0.33, comfy-aimdo's allocator.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

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
