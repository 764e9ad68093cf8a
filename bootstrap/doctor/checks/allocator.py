"""Allocators: torch's on the GPU (PYTORCH_CUDA_ALLOC_CONF), libc's (MALLOC_*), LD_PRELOAD.

What we recommend, and when to change it:

- `PYTORCH_CUDA_ALLOC_CONF=max_split_size_mb:256` together with `--disable-cuda-malloc`, for a
ComfyUI without dynamic VRAM, if nothing else is set: blocks above 256 MB are not split, so memory
fragments less. The worker sets both then, and neither with dynamic VRAM (on by default since 0.16),
which manages GPU memory itself: comfyui/launch.py. A lower value (128) fragments even less but is
slower; a higher one (512) suits big video models. - `MALLOC_ARENA_MAX=2`, always: glibc creates up
to 8 arenas per core, which keep freed memory, so a worker on a machine with many cores grows by
gigabytes until the container's limit kills it. Raise it to 4 if CPU-heavy nodes with many threads
got slower; unneeded with tcmalloc,
  jemalloc or mimalloc preloaded. Source: mallopt(3).

Sources: torch's c10/cuda/CUDAAllocatorConfig.cpp and c10/core/AllocatorConfig.h (2.0 to 2.10),
and "Optimizing memory usage with PYTORCH_ALLOC_CONF" in torch's CUDA notes.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence

from bootstrap.comfyui import Allocator
from bootstrap.comfyui.launch import CONF_NAMES, RECOMMENDED
from bootstrap.config import Settings
from bootstrap.core.findings import Finding, error, info, ok, warning
from bootstrap.core.text import IN_ENDPOINT, whole
from bootstrap.doctor.checks.gpu import gpu_expectation
from bootstrap.doctor.facts.machine import MachineFacts, Preload
from bootstrap.environment import TorchBuild, version_numbers

NATIVE, ASYNC = "native", "cudaMallocAsync"
OLD_NAME, NEW_NAME = CONF_NAMES  # the new name wins since torch 2.9
_NEW_NAME_SINCE = (2, 9)
_ALLOCATORS = ("tcmalloc", "jemalloc", "mimalloc")
_SHOWN = 200  # characters of a variable
CODES = {
    "env.alloc_conf_good": "torch's allocator settings are valid",
    "env.alloc_conf_unknown_key": "torch's allocator settings have a key that torch rejects",
    "env.alloc_conf_value": "torch's allocator settings have a value that torch rejects",
    "env.alloc_conf_syntax": "torch's allocator settings are not `key:value` pairs",
    "env.alloc_conf_both": "Both names of torch's allocator settings are set",
    "env.alloc_conf_name": "`PYTORCH_ALLOC_CONF` is set, which this torch does not know yet",
    "env.alloc_conf_no_effect": "Some allocator settings have no effect with `cudaMallocAsync`",
    "env.allocator_dynamic": "ComfyUI's dynamic VRAM manages the GPU's memory; no allocator is set",
    "env.allocator_native": "torch's own allocator is used, set to avoid fragmentation",
    "env.alloc_conf_backend": "The allocator's `backend` contradicts the one that ComfyUI appends",
    "env.arena_max_unset": "`MALLOC_ARENA_MAX` is not set; 2 is recommended",
    "env.arena_max_value": "`MALLOC_ARENA_MAX` is not a positive whole number",
    "env.preload": "A memory allocator is preloaded through `LD_PRELOAD`",
    "env.preload_missing": "`LD_PRELOAD` names a library that does not exist",
    "env.preload_several": "`LD_PRELOAD` names more than one allocator",
}

_Rule = tuple[re.Pattern[str], str]  # a pattern of the values that torch takes; what they must be
_DIVISIONS = "(?:0|1|2|4|8|16|32|64|128|256|512|1024)"
_PAIR = rf"(?:\d+|>):{_DIVISIONS}"
_LIST = re.compile(r"\[[^\[\]]*\]")  # its commas do not separate pairs
_BOOLEAN: _Rule = (re.compile("True|False"), "`True` or `False`")
_SIZE: _Rule = (re.compile(r"\b0*[1-9]\d*"), "MB above 0")
# torch raises below 20 (from 2.9 on) or up to and including 20 (before).
_SPLIT: _Rule = (re.compile(r"\b0*(2[1-9]|[3-9]\d|[1-9]\d\d+)"), "a whole number of MB above 20")
_PART, _SHARE = r"0?\.0*[1-9]\d*", "between 0 and 1, such as 0.8"
# Keys for how the native allocator splits memory: no effect with cudaMallocAsync.
_NATIVE_ONLY: Mapping[str, _Rule] = {
    "max_split_size_mb": _SPLIT,
    "max_non_split_rounding_mb": _SPLIT,
    "garbage_collection_threshold": (re.compile(_PART), _SHARE),
    "expandable_segments": _BOOLEAN,
    "roundup_power2_divisions": (
        re.compile(rf"{_DIVISIONS}|\[{_PAIR}(;{_PAIR})*\]"),
        "a power of two or a list like [256:1,>:4]",
    ),
    "roundup_bypass_threshold_mb": _SIZE,
    "release_lock_on_cudamalloc": _BOOLEAN,
}
_SWITCHES = (
    "release_lock_on_hipmalloc pinned_use_cuda_host_register pinned_use_hip_host_register "
    "pinned_use_background_threads graph_capture_record_stream_reuse pinned_free_catch_all "
    "throw_on_cudamalloc_oom"
)
_RULES: Mapping[str, _Rule] = {
    **_NATIVE_ONLY,
    "backend": (re.compile(f"{NATIVE}|{ASYNC}"), f"`{NATIVE}` or `{ASYNC}`"),
    "per_process_memory_fraction": (re.compile(rf"{_PART}|1(\.0*)?"), _SHARE),
    "pinned_num_register_threads": (re.compile("1|2|4|8|16|32|64|128"), "1, 2, 4 … 128"),
    "pinned_reserve_segment_size_mb": _SIZE,
    "large_segment_size_mb": _SIZE,
    **dict.fromkeys(_SWITCHES.split(), _BOOLEAN),
}


def _pairs_in(text: str) -> list[tuple[str, str]]:
    """`key:value,key:value`, where a value may be a list in brackets. One comma at the end is
    allowed, as torch allows it."""
    text = _LIST.sub(lambda found: found[0].replace(",", ";"), "".join(text.split()))
    items = text.split(",") if text else []
    if len(items) > 1 and not items[-1]:
        items.pop()
    return [(key, value) for key, _, value in (item.partition(":") for item in items)]


def check_allocator(
    facts: MachineFacts,
    settings: Settings,
    env: Mapping[str, str],
    chosen: Allocator | None = None,
) -> list[Finding]:
    """Findings about the allocators of torch and of libc; `chosen` is ComfyUI's allocator, None
    without a known ComfyUI."""
    uses_gpu = gpu_expectation(facts.gpu, settings, env).expected
    found = _alloc_conf(settings, env, facts.torch, uses_gpu)
    if chosen is not None and chosen.dynamic:
        # With dynamic VRAM, making native settings take effect is the worse choice.
        found = [f for f in found if f.code != "env.alloc_conf_no_effect"]
    preloaded = [a for p in facts.preloads if p.exists for a in _ALLOCATORS if a in p.name.lower()]
    return [
        *(_chosen(chosen) if chosen is not None and uses_gpu else ()),
        *found,
        *_preloads(facts.preloads, preloaded),
        *_arenas(env.get("MALLOC_ARENA_MAX", "").strip(), preloaded),
    ]


def _chosen(chosen: Allocator) -> Iterator[Finding]:
    if not chosen.dynamic and chosen.args:
        yield info(
            "env.allocator_native",
            f"ComfyUI is started with {chosen.args[0]} and {OLD_NAME}={RECOMMENDED}: without "
            "dynamic VRAM that keeps GPU memory from fragmenting.",
            f"Nothing to do; {OLD_NAME} or --cuda-malloc in COMFYUI_ARGS decide otherwise.",
        )
    if chosen.dynamic:
        what, fix = "neither is set.", "Nothing to do."
        if chosen.by_user:
            what = "variables or flags set an allocator all the same."
            fix = (
                f"Remove {OLD_NAME}, {NEW_NAME} and --disable-cuda-malloc {IN_ENDPOINT}, unless "
                "you measured that they help; --disable-dynamic-vram switches dynamic VRAM off."
            )
        yield info(
            "env.allocator_dynamic",
            "ComfyUI's dynamic VRAM manages GPU memory itself, by cudaMallocAsync; "
            "max_split_size_mb has no effect on that, and with --disable-cuda-malloc leaves large "
            f"blocks unused: {what}",
            fix,
        )


def _alloc_conf(
    settings: Settings, env: Mapping[str, str], torch: TorchBuild | None, uses_gpu: bool
) -> list[Finding]:
    given = {name: env[name] for name in (NEW_NAME, OLD_NAME) if name in env}
    found = list(_names(given, torch.version if torch else None))
    for name, text in given.items():
        pairs = _pairs_in(text)
        wrong = [f for pair in pairs for f in _wrong(name, *pair, uses_gpu)]
        # ComfyUI's cuda_malloc.py appends its backend on most GPUs, unless set not to; with dynamic
        # VRAM, in versions of 2026, it empties the variable instead: so these are warnings only.
        flagged = "--disable-cuda-malloc" in settings.comfyui_args
        appends = uses_gpu and name == OLD_NAME and not flagged
        found += wrong or _effects(name, text.strip(), pairs, appends)
    if given and not found:
        shown = ", ".join(f"{name}={text[:_SHOWN]}" for name, text in given.items())
        found.append(ok("env.alloc_conf_good", f"{shown} is understood and takes effect."))
    return found


def _names(given: Mapping[str, str], version: str | None) -> Iterator[Finding]:
    if len(given) == 2:
        both = " and ".join(f"{name} (`{text[:_SHOWN]}`)" for name, text in given.items())
        yield warning(
            "env.alloc_conf_both",
            f"Both {both} are set; torch 2.9 and newer reads the first only, older ones the "
            "second, and ComfyUI adds its backend to the second.",
            f"Remove {NEW_NAME} {IN_ENDPOINT} and put what you want into {OLD_NAME}.",
        )
    numbers = version_numbers(version)[:2] if version else ()
    if NEW_NAME in given and len(numbers) == 2 and numbers < _NEW_NAME_SINCE:
        yield warning(
            "env.alloc_conf_name",
            f"{NEW_NAME} is set, but ComfyUI's torch {version} reads {OLD_NAME} only.",
            f"Rename it to {OLD_NAME} {IN_ENDPOINT}: newer ones read that too.",
        )


def _wrong(name: str, key: str, value: str, uses_gpu: bool) -> Iterator[Finding]:
    """What torch raises at, so that no job runs. A key that resembles none we know may be one of a
    newer torch; without a GPU none is read."""
    kind, report = "syntax", error if uses_gpu else warning
    fix = f"Correct it {IN_ENDPOINT}, for instance {OLD_NAME}={RECOMMENDED}, or remove {name}."
    pattern, allowed = _RULES.get(key, (None, ""))
    if not (key or value):
        what = "there is a comma too many"
    elif pattern is None:
        kind, what = "unknown_key", f"the key `{key[:80]}` is unknown to torch"
        if near := difflib.get_close_matches(key.lower(), sorted(_RULES), n=1, cutoff=0.75):
            fix = f"Write `{near[0]}` in place of it {IN_ENDPOINT}."
        else:
            report = warning
            fix = f"Remove it from {name} {IN_ENDPOINT}, or make sure your torch has it."
    elif not value:
        what = f"{key} has no value (`{key}:…`)"
    elif not pattern.fullmatch(value):
        kind, what = "value", f"{key} must be {allowed}"
    else:
        return
    message = f"{name}: {what}; torch raises at its first use of the GPU."
    yield report(f"env.alloc_conf_{kind}", message, fix, key=key[:80])


def _effects(
    name: str, text: str, pairs: Sequence[tuple[str, str]], appends: bool
) -> Iterator[Finding]:
    backends = list(dict.fromkeys(value for key, value in pairs if key == "backend"))
    native = list(dict.fromkeys(key for key, _ in pairs if key in _NATIVE_ONLY))
    if appends and text[-1:] in ("", ","):
        yield warning(
            "env.alloc_conf_syntax",
            f"{name} is blank or ends in a comma; ComfyUI appends `,backend:{ASYNC}` to it, and "
            "torch refuses the double or leading comma.",
            f"Remove {name} {IN_ENDPOINT}, or set it to {RECOMMENDED} and add "
            "--disable-cuda-malloc to COMFYUI_ARGS.",
        )
    elif len(backends) > 1 or (appends and NATIVE in backends):
        yield warning(
            "env.alloc_conf_backend",
            f"{name} names the backend {' and '.join(backends)}, and ComfyUI appends "
            f"`backend:{ASYNC}`: torch takes one when it loads, meets the other, and stops with "
            "'Allocator backend parsed at runtime != allocator backend parsed at load time'.",
            f"Remove `backend:…` from {name} and choose by flag: add --disable-cuda-malloc to "
            "COMFYUI_ARGS for the native one.",
        )
    elif native and (appends or ASYNC in backends):
        drop = f"remove `backend:{ASYNC}` and " if ASYNC in backends else ""
        yield warning(
            "env.alloc_conf_no_effect",
            f"{name} sets {', '.join(native)}, which has no effect: ComfyUI uses torch's "
            f"{ASYNC} allocator on most GPUs, and that ignores it.",
            f"To use it: {drop}add --disable-cuda-malloc to COMFYUI_ARGS (worth it when jobs end "
            f"in 'CUDA out of memory' with much memory reserved). Else remove {name}.",
            keys=native,
        )


def _preloads(preloads: Sequence[Preload], allocators: Sequence[str]) -> Iterator[Finding]:
    for name in (p.name for p in preloads if not p.exists):
        yield warning(
            "env.preload_missing",
            f"LD_PRELOAD names {name[:_SHOWN]}, which does not exist: every process starts with a "
            "warning, and without it.",
            "Correct the path (`find / -name 'libtcmalloc*.so*'` shows where one is) or remove "
            f"LD_PRELOAD {IN_ENDPOINT}.",
            library=name,
        )
    if len(allocators) > 1:
        yield warning(
            "env.preload_several",
            f"LD_PRELOAD has {len(allocators)} allocators ({', '.join(allocators)}): only the "
            "first counts.",
            f"Keep one of them in LD_PRELOAD {IN_ENDPOINT}.",
        )
    elif allocators:
        yield info("env.preload", f"{allocators[0]} is preloaded in place of libc's malloc.")


def _arenas(text: str, allocators: Sequence[str]) -> Iterator[Finding]:
    if text and not whole(text):
        yield warning(
            "env.arena_max_value",
            f"MALLOC_ARENA_MAX is {text[:40]!r}, which libc ignores: it must be a whole number "
            "above 0.",
            f"Set MALLOC_ARENA_MAX=2 {IN_ENDPOINT}.",
        )
    elif not (text or allocators):
        yield info(
            "env.arena_max_unset",
            "MALLOC_ARENA_MAX is not set: libc keeps freed memory in up to 8 arenas a core, so "
            "ComfyUI's memory grows with every model that is exchanged.",
            f"Set MALLOC_ARENA_MAX=2 {IN_ENDPOINT}; 4 if nodes with many threads get slower.",
        )
