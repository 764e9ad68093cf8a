"""Allocators: torch's on the GPU (PYTORCH_CUDA_ALLOC_CONF), libc's (MALLOC_*), LD_PRELOAD.

What we recommend, and when to change it:

- `PYTORCH_CUDA_ALLOC_CONF=max_split_size_mb:256` together with `--disable-cuda-malloc`, for a
  ComfyUI without dynamic VRAM, when nothing else is set: blocks above 256 MB are not cut up, so
  memory fragments less. The worker sets both there, and neither with dynamic VRAM (on by default
  since 0.16), which manages the GPU's memory itself: comfyui/command.py. A lower value (128)
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
from collections.abc import Mapping
from dataclasses import dataclass

from bootstrap.comfyui import Allocator
from bootstrap.config import Settings
from bootstrap.core.findings import Finding, error, info, ok, warning
from bootstrap.core.text import IN_ENDPOINT, whole
from bootstrap.doctor.checks.gpu import gpu_expectation
from bootstrap.doctor.facts.machine import MachineFacts, Preload
from bootstrap.environment.torch_build import TorchBuild

NATIVE = "native"
ASYNC = "cudaMallocAsync"
# torch raises below 20 (from 2.9 on) or up to and including 20 (before).
LEAST_SPLIT_MB = 21
_POWER_OF_TWO = frozenset(str(2**n) for n in range(11))
_BOOLEAN_KEYS = frozenset(
    [
        "expandable_segments",
        "release_lock_on_cudamalloc",
        "release_lock_on_hipmalloc",
        "pinned_use_cuda_host_register",
        "pinned_use_hip_host_register",
        "pinned_use_background_threads",
        "graph_capture_record_stream_reuse",
        "pinned_free_catch_all",
        "throw_on_cudamalloc_oom",
    ]
)
_SPLIT_KEYS = frozenset(("max_split_size_mb", "max_non_split_rounding_mb"))
_FRACTION_KEYS = frozenset(("garbage_collection_threshold", "per_process_memory_fraction"))
_SIZE_KEYS = frozenset(
    ("pinned_reserve_segment_size_mb", "large_segment_size_mb", "roundup_bypass_threshold_mb")
)
KNOWN_KEYS = (
    _BOOLEAN_KEYS
    | _SPLIT_KEYS
    | _FRACTION_KEYS
    | _SIZE_KEYS
    | {"backend", "roundup_power2_divisions", "pinned_num_register_threads"}
)
# Keys that shape how the native allocator cuts memory up: no effect under cudaMallocAsync.
NATIVE_ONLY = _SPLIT_KEYS | {
    "garbage_collection_threshold",
    "roundup_power2_divisions",
    "roundup_bypass_threshold_mb",
    "expandable_segments",
    "release_lock_on_cudamalloc",
}
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


@dataclass(frozen=True)
class Problem:
    """Something torch would raise at. `kind` is `unknown_key`, `value` or `syntax`.

    `nearest` is the known key an unknown one was probably meant to be.
    """

    kind: str
    text: str
    nearest: str | None = None


@dataclass(frozen=True)
class AllocConf:
    """The settings, in order, and what is wrong with them."""

    settings: tuple[tuple[str, str], ...] = ()
    problems: tuple[Problem, ...] = ()

    @property
    def backends(self) -> tuple[str, ...]:
        """Every backend that is named."""
        return tuple(value for key, value in self.settings if key == "backend")

    @property
    def native_only(self) -> tuple[str, ...]:
        """The keys that have no effect under cudaMallocAsync."""
        return tuple(key for key, _ in self.settings if key in NATIVE_ONLY)


def parse_alloc_conf(text: str) -> AllocConf:
    """`key:value,key:value`, where a value may be a list in brackets. Never raises.

    One comma at the end is allowed, as torch allows it.
    """
    settings: list[tuple[str, str]] = []
    problems: list[Problem] = []
    items = _items("".join(text.split()))
    if len(items) > 1 and not items[-1]:
        items.pop()
    for item in items:
        key, colon, value = item.partition(":")
        if not item:
            problems.append(Problem("syntax", "there is a comma too many"))
        elif key not in KNOWN_KEYS:
            problems.append(_unknown(key))
        elif not colon or not value:
            problems.append(Problem("syntax", f"{key} has no value (`{key}:…`)"))
        else:
            settings.append((key, value))
            wrong = _wrong_value(key, value)
            problems += [Problem("value", wrong)] if wrong else []
    return AllocConf(tuple(settings), tuple(problems))


def _items(text: str) -> list[str]:
    """Split at commas that are not inside brackets."""
    items, depth = [""], 0
    for character in text:
        depth = max(depth + (character == "[") - (character == "]"), 0)
        if character == "," and not depth:
            items.append("")
        else:
            items[-1] += character
    return items if text else []


def _unknown(key: str) -> Problem:
    near = difflib.get_close_matches(key.lower(), sorted(KNOWN_KEYS), n=1, cutoff=0.75)
    return Problem("unknown_key", key[:80], near[0] if near else None)


def _wrong_value(key: str, value: str) -> str | None:
    """What torch would say against a value; None when it would take it."""
    if key == "backend":
        allowed = f"`{NATIVE}` or `{ASYNC}`"
        return None if value in (NATIVE, ASYNC) else f"backend must be {allowed}"
    if key in _BOOLEAN_KEYS:
        return None if value in ("True", "False") else f"{key} must be `True` or `False`"
    if key in _SPLIT_KEYS:
        least = f"{key} must be a whole number of MB above 20"
        return None if (whole(value) or 0) >= LEAST_SPLIT_MB else least
    if key in _FRACTION_KEYS:
        return _wrong_fraction(key, value)
    if key in _SIZE_KEYS:
        return None if whole(value) else f"{key} must be MB above 0"
    if key == "pinned_num_register_threads":
        good = value in _POWER_OF_TWO and int(value) <= 128
        return None if good else f"{key} must be 1, 2, 4 … 128"
    return _wrong_divisions(value)


def _wrong_fraction(key: str, value: str) -> str | None:
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    # A share of 1 is allowed for the process' memory, not for the threshold.
    most = 1.0 if key == "per_process_memory_fraction" else 0.999999
    return None if 0 < number <= most else f"{key} must lie between 0 and 1, such as 0.8"


def _wrong_divisions(value: str) -> str | None:
    """A power of two, or a list such as `[256:1,512:2,>:4]`."""
    inner = value[1:-1] if value.startswith("[") and value.endswith("]") else None
    parts = (
        [p.partition(":") for p in inner.split(",")] if inner is not None else [(">", ":", value)]
    )
    for size, _, divisions in parts:
        if divisions not in _POWER_OF_TWO | {"0"} or not (size == ">" or size.isdigit()):
            return "roundup_power2_divisions must be a power of two or a list like [256:1,>:4]"
    return None


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
    # of a newer torch; without a GPU nobody reads them.
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
    """Whether ComfyUI appends its backend: its cuda_malloc.py does on most GPUs, unless told not
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
