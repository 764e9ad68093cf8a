"""What PYTORCH_CUDA_ALLOC_CONF says, read as torch reads it, without torch.

Sources: torch's c10/cuda/CUDAAllocatorConfig.cpp and c10/core/AllocatorConfig.h (2.0 to 2.10),
and "Optimizing memory usage with PYTORCH_ALLOC_CONF" in torch's CUDA notes.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

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
    return re.split(r",(?![^\[]*\])", text) if text else []


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
        return None if value.isdigit() and int(value) >= LEAST_SPLIT_MB else least
    if key in _FRACTION_KEYS:
        return _wrong_fraction(key, value)
    if key in _SIZE_KEYS:
        return None if value.isdigit() and int(value) > 0 else f"{key} must be MB above 0"
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
