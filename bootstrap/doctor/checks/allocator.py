"""Allocators: torch's on the GPU (PYTORCH_CUDA_ALLOC_CONF), libc's (MALLOC_*), LD_PRELOAD.

What we recommend, and when to change it:

- `PYTORCH_CUDA_ALLOC_CONF=max_split_size_mb:256` together with `--disable-cuda-malloc`, for a
  ComfyUI without dynamic VRAM, when nothing else is set: blocks above 256 MB are not cut up, so
  memory fragments less. The worker sets both there, and neither with dynamic VRAM (on by default
  since 0.16), which manages the GPU's memory itself: comfyui/launch.py. A lower value (128)
  fragments still less and is slower; a higher one (512) suits big video models.
- `MALLOC_ARENA_MAX=2`, always: glibc gives threads up to 8 arenas a core, and those keep what was
  freed, so a worker on a machine with many cores grows by gigabytes until the container's limit
  kills it. Raise it to 4 if CPU-heavy nodes with many threads got slower; unneeded with tcmalloc,
  jemalloc or mimalloc preloaded. Source: mallopt(3).

Sources: torch's c10/cuda/CUDAAllocatorConfig.cpp and c10/core/AllocatorConfig.h (2.0 to 2.10),
and "Optimizing memory usage with PYTORCH_ALLOC_CONF" in torch's CUDA notes.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import NamedTuple

from bootstrap.comfyui import Allocator
from bootstrap.config import Settings
from bootstrap.core.findings import Finding, error, info, ok, warning
from bootstrap.core.text import IN_ENDPOINT, whole
from bootstrap.doctor.checks.gpu import gpu_expectation
from bootstrap.doctor.facts.machine import MachineFacts, Preload
from bootstrap.environment.torch_build import TorchBuild

NATIVE = "native"
ASYNC = "cudaMallocAsync"
_BOOLEAN = "`True` or `False`"
# torch raises below 20 (from 2.9 on) or up to and including 20 (before).
_SPLIT = "a whole number of MB above 20"
_SHARE = "between 0 and 1, such as 0.8"
_SIZE = "MB above 0"
_LIST = re.compile(r"\[[^\[\]]*\]")  # its commas do not divide pairs
_DIVISIONS = re.compile(r"(?:\d+|>):(?:0|1|2|4|8|16|32|64|128|256|512|1024)")
# What is said of a key's value that torch would not take.
_VALUES: Mapping[str, str] = {
    "backend": f"`{NATIVE}` or `{ASYNC}`",
    "max_split_size_mb": _SPLIT,
    "max_non_split_rounding_mb": _SPLIT,
    "garbage_collection_threshold": _SHARE,
    "per_process_memory_fraction": _SHARE,
    "pinned_reserve_segment_size_mb": _SIZE,
    "large_segment_size_mb": _SIZE,
    "roundup_bypass_threshold_mb": _SIZE,
    "pinned_num_register_threads": "1, 2, 4 … 128",
    "roundup_power2_divisions": "a power of two or a list like [256:1,>:4]",
    "expandable_segments": _BOOLEAN,
    "release_lock_on_cudamalloc": _BOOLEAN,
    "release_lock_on_hipmalloc": _BOOLEAN,
    "pinned_use_cuda_host_register": _BOOLEAN,
    "pinned_use_hip_host_register": _BOOLEAN,
    "pinned_use_background_threads": _BOOLEAN,
    "graph_capture_record_stream_reuse": _BOOLEAN,
    "pinned_free_catch_all": _BOOLEAN,
    "throw_on_cudamalloc_oom": _BOOLEAN,
}
# Keys that shape how the native allocator cuts memory up: no effect under cudaMallocAsync.
NATIVE_ONLY = frozenset(
    "max_split_size_mb max_non_split_rounding_mb garbage_collection_threshold expandable_segments "
    "roundup_power2_divisions roundup_bypass_threshold_mb release_lock_on_cudamalloc".split()
)
OLD_NAME = "PYTORCH_CUDA_ALLOC_CONF"
NEW_NAME = "PYTORCH_ALLOC_CONF"  # torch 2.9 and newer; wins over the old name
NEW_NAME_SINCE = (2, 9)
RECOMMENDED = "max_split_size_mb:256"
RECOMMENDED_ARENAS = "2"
_ALLOCATORS = ("tcmalloc", "jemalloc", "mimalloc")
CODES = {
    "env.alloc_conf_good": "torch's allocator settings are understood.",
    "env.alloc_conf_unknown_key": "torch's allocator settings have a key that torch refuses.",
    "env.alloc_conf_value": "torch's allocator settings have a value that torch refuses.",
    "env.alloc_conf_syntax": "torch's allocator settings are not key:value pairs.",
    "env.alloc_conf_both": "Both names of torch's allocator settings are set.",
    "env.alloc_conf_name": "PYTORCH_ALLOC_CONF is set, which this torch does not know yet.",
    "env.alloc_conf_no_effect": "Allocator settings that cudaMallocAsync ignores.",
    "env.allocator_dynamic": "ComfyUI's dynamic VRAM manages the GPU's memory; nothing is set.",
    "env.allocator_native": "Torch's own allocator is used, with its blocks kept whole.",
    "env.alloc_conf_backend": "The allocator's backend contradicts the one ComfyUI appends.",
    "env.arena_max_unset": "MALLOC_ARENA_MAX is not set; 2 is recommended.",
    "env.arena_max_value": "MALLOC_ARENA_MAX is not a positive whole number.",
    "env.preload": "An allocator is preloaded.",
    "env.preload_missing": "LD_PRELOAD names a library that does not exist.",
    "env.preload_several": "LD_PRELOAD names more than one allocator.",
}


class Problem(NamedTuple):
    """Something torch would raise at. `kind` is `unknown_key`, `value` or `syntax`.

    `nearest` is the known key an unknown one was probably meant to be.
    """

    kind: str
    text: str
    nearest: str | None = None


class AllocConf(NamedTuple):
    """The settings, in order, and what is wrong with them."""

    settings: tuple[tuple[str, str], ...] = ()
    problems: tuple[Problem, ...] = ()

    @property
    def backends(self) -> tuple[str, ...]:
        """Every backend that is named."""
        return tuple(dict.fromkeys(value for key, value in self.settings if key == "backend"))

    @property
    def native_only(self) -> tuple[str, ...]:
        """The keys that have no effect under cudaMallocAsync."""
        return tuple(dict.fromkeys(key for key, _ in self.settings if key in NATIVE_ONLY))


def parse_alloc_conf(text: str) -> AllocConf:
    """`key:value,key:value`, where a value may be a list in brackets. Never raises.

    One comma at the end is allowed, as torch allows it.
    """
    text = "".join(text.split())
    text = _LIST.sub(lambda found: found[0].replace(",", ";"), text)
    items = text.split(",") if text else []
    if len(items) > 1 and not items[-1]:
        items.pop()
    pairs = [item.partition(":") for item in items]
    problems = (_problem(key, value) for key, _, value in pairs)
    return AllocConf(
        tuple((key, value) for key, _, value in pairs if key in _VALUES and value),
        tuple(problem for problem in problems if problem),
    )


def _problem(key: str, value: str) -> Problem | None:
    """What torch would say against a pair; None when it would take it."""
    if not (key or value):
        return Problem("syntax", "there is a comma too many")
    if key not in _VALUES:
        near = difflib.get_close_matches(key.lower(), sorted(_VALUES), n=1, cutoff=0.75)
        return Problem("unknown_key", key[:80], near[0] if near else None)
    if not value:
        return Problem("syntax", f"{key} has no value (`{key}:…`)")
    return None if _takes(key, value) else Problem("value", f"{key} must be {_VALUES[key]}")


def _takes(key: str, value: str) -> bool:
    """Would torch take the value of a key that it knows?"""
    kind = _VALUES[key]
    if kind == _SPLIT:
        return (whole(value) or 0) > 20
    if kind == _SIZE:
        return bool(whole(value))
    if kind == _SHARE:
        # A share of 1 is allowed for the process' memory, not for the threshold.
        return _share(value) < 1 or (key, _share(value)) == ("per_process_memory_fraction", 1)
    if key == "roundup_power2_divisions":
        inner = value[1:-1] if value[0] + value[-1] == "[]" else f">:{value}"
        return all(_DIVISIONS.fullmatch(part) for part in inner.split(";"))
    if kind == _BOOLEAN:
        return value in ("True", "False")
    return value in ((NATIVE, ASYNC) if key == "backend" else ("1 2 4 8 16 32 64 128".split()))


def _share(text: str) -> float:
    """A number above 0; infinity for anything else."""
    try:
        return float(text) if float(text) > 0 else float("inf")
    except ValueError:
        return float("inf")


def check_allocator(
    facts: MachineFacts,
    settings: Settings,
    env: Mapping[str, str],
    chosen: Allocator | None = None,
) -> list[Finding]:
    """Findings about the allocators of torch and of libc; `chosen` is what ComfyUI is started
    with, None where no ComfyUI is known."""
    uses_gpu = gpu_expectation(facts.gpu, settings, env).expected
    return [
        *_chosen(chosen, uses_gpu),
        *_not_with_dynamic(chosen, _alloc_conf(settings, env, facts.torch, uses_gpu)),
        *_preloads(facts.preloads),
        *_arenas(env, facts.preloads),
    ]


def _chosen(chosen: Allocator | None, uses_gpu: bool) -> list[Finding]:
    if chosen is None or not uses_gpu or not (chosen.dynamic or chosen.args):
        return []
    if not chosen.dynamic:
        return [
            info(
                "env.allocator_native",
                f"ComfyUI is started with {chosen.args[0]} and {OLD_NAME}={RECOMMENDED}: without "
                "dynamic VRAM that keeps GPU memory from fragmenting.",
                f"Nothing to do; {OLD_NAME} or --cuda-malloc in COMFYUI_ARGS decide otherwise.",
            )
        ]
    why = (
        "ComfyUI's dynamic VRAM manages GPU memory itself, by cudaMallocAsync; max_split_size_mb "
        "has no effect on that, and with --disable-cuda-malloc leaves large blocks unused"
    )
    if not chosen.by_user:
        return [info("env.allocator_dynamic", f"{why}: neither is set.", "Nothing to do.")]
    return [
        info(
            "env.allocator_dynamic",
            f"{why}. Variables or flags set an allocator all the same.",
            f"Remove {OLD_NAME}, {NEW_NAME} and --disable-cuda-malloc {IN_ENDPOINT}, unless you "
            "measured that they help; --disable-dynamic-vram switches dynamic VRAM off.",
        )
    ]


def _not_with_dynamic(chosen: Allocator | None, found: list[Finding]) -> list[Finding]:
    """What makes native settings take effect is the poorer choice with dynamic VRAM."""
    if chosen is None or not chosen.dynamic:
        return found
    return [f for f in found if f.code != "env.alloc_conf_no_effect"]


def _alloc_conf(
    settings: Settings, env: Mapping[str, str], torch: TorchBuild | None, uses_gpu: bool
) -> list[Finding]:
    names = [name for name in (NEW_NAME, OLD_NAME) if name in env]
    found = _both(env) if len(names) == 2 else []
    for name in names:
        conf = parse_alloc_conf(env[name])
        wrong = [_wrong(name, problem, uses_gpu) for problem in conf.problems]
        found += wrong or _effects(name, env[name], conf, settings, uses_gpu)
    if NEW_NAME in names:
        found += _too_new_name(torch)
    if names and not found:
        shown = ", ".join(f"{name}={env[name][:200]}" for name in names)
        found.append(ok("env.alloc_conf_good", f"{shown} is understood and takes effect."))
    return found


def _both(env: Mapping[str, str]) -> list[Finding]:
    return [
        warning(
            "env.alloc_conf_both",
            f"Both {NEW_NAME} (`{env[NEW_NAME][:200]}`) and {OLD_NAME} (`{env[OLD_NAME][:200]}`) "
            f"are set; torch 2.9 and newer reads the first only, older ones the second, and "
            "ComfyUI adds its backend to the second.",
            f"Remove {NEW_NAME} {IN_ENDPOINT} and put what you want into {OLD_NAME}.",
        )
    ]


def _wrong(name: str, problem: Problem, uses_gpu: bool) -> Finding:
    # torch raises at these, so that no job runs. A key that resembles none we know may be one
    # of a newer torch; without a GPU they are not read.
    certain = uses_gpu and (problem.kind != "unknown_key" or problem.nearest is not None)
    make = error if certain else warning
    if problem.kind == "unknown_key":
        nearest = problem.nearest
        return make(
            "env.alloc_conf_unknown_key",
            f"{name} has the key `{problem.text}`, which torch does not know: it raises at its "
            "first use of the GPU.",
            f"Write `{nearest}` in place of it {IN_ENDPOINT}."
            if nearest
            else f"Remove it from {name} {IN_ENDPOINT}, or make sure your torch has it.",
            key=problem.text,
        )
    return make(
        f"env.alloc_conf_{problem.kind}",
        f"{name}: {problem.text}; torch raises at its first use of the GPU.",
        f"Correct it {IN_ENDPOINT}, for instance {OLD_NAME}={RECOMMENDED}, or remove {name}.",
    )


def _effects(
    name: str, text: str, conf: AllocConf, settings: Settings, uses_gpu: bool
) -> list[Finding]:
    appends = uses_gpu and name == OLD_NAME and _comfyui_appends(settings)
    stripped = "".join(text.split())
    if appends and (not stripped or stripped.endswith(",")):
        return [_bare_comma(name)]
    if len(set(conf.backends)) > 1 or (appends and NATIVE in conf.backends):
        return [_backend_conflict(name, conf)]
    if conf.native_only and (appends or ASYNC in conf.backends):
        return [_no_effect(name, conf)]
    return []


def _comfyui_appends(settings: Settings) -> bool:
    """Whether ComfyUI appends its backend: its cuda_malloc.py does on most GPUs, unless set not
    to. (With dynamic VRAM, in versions of 2026, it empties the variable instead.)"""
    return "--disable-cuda-malloc" not in settings.comfyui_args


def _bare_comma(name: str) -> Finding:
    # `,backend:cudaMallocAsync` and `a:b,,backend:…` are what ComfyUI makes of these.
    return warning(
        "env.alloc_conf_syntax",
        f"{name} is blank or ends in a comma; ComfyUI appends `,backend:{ASYNC}` to it, and torch "
        "refuses the double or leading comma.",
        f"Remove {name} {IN_ENDPOINT}, or set it to {RECOMMENDED} and add --disable-cuda-malloc to "
        "COMFYUI_ARGS.",
    )


def _backend_conflict(name: str, conf: AllocConf) -> Finding:
    # A warning only: a ComfyUI of 2026 with dynamic VRAM empties the variable and runs.
    return warning(
        "env.alloc_conf_backend",
        f"{name} names the backend {' and '.join(dict.fromkeys(conf.backends))}, and ComfyUI "
        f"appends `backend:{ASYNC}`: torch takes one when it loads, meets the other, and stops "
        "with 'Allocator backend parsed at runtime != allocator backend parsed at load time'.",
        f"Remove `backend:…` from {name} and choose by flag: add --disable-cuda-malloc to "
        "COMFYUI_ARGS for the native one.",
    )


def _no_effect(name: str, conf: AllocConf) -> Finding:
    keys = ", ".join(dict.fromkeys(conf.native_only))
    drop = f"remove `backend:{ASYNC}` and " if ASYNC in conf.backends else ""
    return warning(
        "env.alloc_conf_no_effect",
        f"{name} sets {keys}, which has no effect: ComfyUI uses torch's {ASYNC} allocator on most "
        "GPUs, and that ignores it.",
        f"To use it: {drop}add --disable-cuda-malloc to COMFYUI_ARGS (worth it when jobs end in "
        f"'CUDA out of memory' with much memory reserved). Else remove {name}.",
        keys=list(dict.fromkeys(conf.native_only)),
    )


def _too_new_name(torch: TorchBuild | None) -> list[Finding]:
    numbers = (torch.version or "").split(".") if torch else []
    if len(numbers) < 2 or not (numbers[0].isdecimal() and numbers[1].isdecimal()):
        return []
    if (int(numbers[0]), int(numbers[1])) >= NEW_NAME_SINCE:
        return []
    return [
        warning(
            "env.alloc_conf_name",
            f"{NEW_NAME} is set, but ComfyUI's torch {torch.version if torch else ''} reads "
            f"{OLD_NAME} only.",
            f"Rename it to {OLD_NAME} {IN_ENDPOINT}: newer ones read that too.",
        )
    ]


def _allocators(preloads: tuple[Preload, ...]) -> list[str]:
    return [a for p in preloads if p.exists for a in _ALLOCATORS if a in p.name.lower()]


def _preloads(preloads: tuple[Preload, ...]) -> list[Finding]:
    found = [
        warning(
            "env.preload_missing",
            f"LD_PRELOAD names {p.name[:200]}, which does not exist: every process starts with a "
            "warning, and without it.",
            "Correct the path (`find / -name 'libtcmalloc*.so*'` shows where one is) or remove "
            f"LD_PRELOAD {IN_ENDPOINT}.",
            library=p.name,
        )
        for p in preloads
        if not p.exists
    ]
    allocators = _allocators(preloads)
    if len(allocators) > 1:
        found.append(
            warning(
                "env.preload_several",
                f"LD_PRELOAD has {len(allocators)} allocators ({', '.join(allocators)}): only the "
                "first counts.",
                f"Keep one of them in LD_PRELOAD {IN_ENDPOINT}.",
            )
        )
    elif allocators:
        found.append(
            info("env.preload", f"{allocators[0]} is preloaded in place of libc's malloc.")
        )
    return found


def _arenas(env: Mapping[str, str], preloads: tuple[Preload, ...]) -> list[Finding]:
    text = env.get("MALLOC_ARENA_MAX", "").strip()
    if text and not whole(text):
        return [
            warning(
                "env.arena_max_value",
                f"MALLOC_ARENA_MAX is {text[:40]!r}, which libc ignores: it must be a whole number "
                "above 0.",
                f"Set MALLOC_ARENA_MAX={RECOMMENDED_ARENAS} {IN_ENDPOINT}.",
            )
        ]
    if text or _allocators(preloads):
        return []
    return [
        info(
            "env.arena_max_unset",
            "MALLOC_ARENA_MAX is not set: libc keeps freed memory in up to 8 arenas a core, so "
            "ComfyUI's memory grows with every model that is exchanged.",
            f"Set MALLOC_ARENA_MAX={RECOMMENDED_ARENAS} {IN_ENDPOINT}; 4 if nodes with many "
            "threads get slower.",
        )
    ]
