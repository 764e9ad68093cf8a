"""Memory and CPU of the container: enough for ComfyUI, and nothing killed yet?"""

from __future__ import annotations

from collections.abc import Mapping

from bootstrap.config import Settings
from bootstrap.core.findings import Finding, info, ok, warning
from bootstrap.core.memory import CpuFacts, MemoryFacts
from bootstrap.core.text import GB, MB
from bootstrap.facts.machine import MachineFacts

# ComfyUI with torch takes 0.5 GB before any model, and a checkpoint passes through memory on its
# way to the GPU: an SDXL one has 6.5 GB. The SDK's own system check asks for 4 GB as well.
SMALL_LIMIT = 4 * GB
LOW_AVAILABLE = 1 * GB
# Below two cores ComfyUI's imports, 10 s of CPU, are most of a cold start.
FEW_CORES = 2.0

CODES = {
    "memory.good": "The container's memory limit, where it is set, and what is left of it.",
    "memory.limit_small": "The container may use less than 4 GB of memory.",
    "memory.available_low": "Less than 1 GB can still be allocated.",
    "memory.oom_killed": "The kernel has killed processes of this container for want of memory.",
    "machine.cpu_few": "Fewer than two CPU cores: a cold start takes longer.",
}


def check_memory(facts: MachineFacts, settings: Settings, env: Mapping[str, str]) -> list[Finding]:
    """Findings about the container's memory and CPU."""
    found = _memory(facts.memory) if facts.memory else []
    return found + (_cpu(facts.cpu) if facts.cpu else [])


def _memory(memory: MemoryFacts) -> list[Finding]:
    found = [f for f in (_limit(memory), _available(memory), _killed(memory)) if f]
    whose = "the whole machine's, no cgroup limit" if _unlimited(memory) else memory.source
    good = ok(
        "memory.good",
        f"Memory: {memory.limit / GB:.1f} GB ({whose}), "
        f"{memory.available / GB:.1f} GB of it available.",
        limit=memory.limit,
        available=memory.available,
    )
    return found or [good]


def _unlimited(memory: MemoryFacts) -> bool:
    return memory.source == "/proc/meminfo"


def _limit(memory: MemoryFacts) -> Finding | None:
    if memory.limit >= SMALL_LIMIT:
        return None
    return warning(
        "memory.limit_small",
        f"This container may use {memory.limit / GB:.1f} GB of memory ({memory.source}); the "
        f"machine has {memory.host_total / GB:.1f} GB. ComfyUI needs 4 GB or more, or the kernel "
        "kills it while it loads a model.",
        "Choose a GPU type (or CPU instance) with more memory: Edit Endpoint > GPU configuration "
        "shows the RAM of each.",
        limit=memory.limit,
        source=memory.source,
    )


def _available(memory: MemoryFacts) -> Finding | None:
    if memory.available >= LOW_AVAILABLE:
        return None
    return warning(
        "memory.available_low",
        f"Only {memory.available / MB:.0f} MB of {memory.limit / GB:.1f} GB of memory can still "
        "be allocated (page cache counted as available).",
        "Run `ps aux --sort=-rss | head` on the Pod and end what is not needed, add "
        "`--cache-none` to COMFYUI_ARGS, or choose a GPU type with more memory.",
        available=memory.available,
        limit=memory.limit,
    )


def _killed(memory: MemoryFacts) -> Finding | None:
    if not memory.oom_kills:
        return None
    return warning(
        "memory.oom_killed",
        f"The kernel has killed {memory.oom_kills} process(es) in this container because it went "
        f"over its memory limit of {memory.limit / GB:.1f} GB. ComfyUI that vanished with exit "
        "code -9 or 137 was one of them.",
        "Choose a GPU type with more memory, use smaller (fp8) weights, or add `--cache-none` to "
        "COMFYUI_ARGS; then start a new worker, which counts from 0.",
        oom_kills=memory.oom_kills,
    )


def _cpu(cpu: CpuFacts) -> list[Finding]:
    if cpu.cores >= FEW_CORES:
        return []
    return [
        info(
            "machine.cpu_few",
            f"{cpu.cores:.1f} CPU cores for this container ({cpu.source}; the machine has "
            f"{cpu.host}): ComfyUI's start takes 10 s of CPU, so it will take longer here.",
            cores=cpu.cores,
        )
    ]
