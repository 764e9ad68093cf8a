"""The machine without its GPU: memory, CPU, local disk, /dev/shm, open files, clock, Python."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime, timezone

from bootstrap.config import Settings
from bootstrap.core.container_limits import CpuFacts, MemoryFacts
from bootstrap.core.findings import Finding, error, host_error, info, ok, warning
from bootstrap.core.text import GB, MB
from bootstrap.doctor.facts.machine import DiskFacts, MachineFacts

# ComfyUI with torch uses 0.5 GB before any model, and a checkpoint passes through memory on its way
# to the GPU: SDXL's is 6.5 GB. The SDK's own system check requires 4 GB too.
SMALL_LIMIT = 4 * GB
LOW_AVAILABLE = 1 * GB
# With fewer than two cores, ComfyUI's imports (10 s of CPU) dominate a cold start.
FEW_CORES = 2.0
CODES = {
    "memory.good": "The memory limit and how much is still available",
    "memory.limit_small": "The container may use less than 4 GiB of memory",
    "memory.available_low": "Less than 1 GiB can still be allocated",
    "memory.oom_killed": "The kernel has killed processes in this container because memory ran out",
    "machine.cpu_few": "There are fewer than two CPU cores: a cold start takes longer",
    "machine.good": "Local disk, limits, clock and Python are in order",
    "machine.probe_failed": "Something about this machine could not be determined",
    "machine.temp_unusable": "There is no writable folder for temporary files",
    "machine.disk_read_only": "A local disk is mounted read-only",
    "machine.disk_full": "A local disk has less than 64 MiB free",
    "machine.disk_low": "A local disk has less than 2 GiB free",
    "machine.inodes_low": "A local disk has room for fewer than 10,000 more files",
    "machine.shm_small": "`/dev/shm` is smaller than 64 MiB",
    "machine.locks_unusable": "Processes cannot share a lock: `/dev/shm` is not writable",
    "machine.open_files_low": "A process may open fewer than 4,096 files",
    "machine.clock_wrong": "The clock is years off, so TLS connections fail",
    "machine.clock_behind": "The clock is more than a day behind this project's newest file",
    "machine.python_old": "The worker's Python is older than 3.10",
}
# ComfyUI's code, its temp folder and a job's inputs and outputs are on local disk; a single video
# job can need 2 GiB.
LOW_DISK = 2 * GB
# Not even a log and a picture fit; another worker starts with an empty disk.
FULL_DISK = 64 * MB
FEW_INODES = 10_000  # a copy of ComfyUI with some node packs has 2,000 to 8,000 files
# torch's DataLoader workers pass tensors through it; ComfyUI itself hardly uses it. Docker's
# default is 64 MB.
SMALL_SHM = 64 * MB
# Each mapped weights file, socket and node's file takes one; parallel reads take hundreds.
FEW_FILES = 4096
# Before this project existed; TLS certificates are then not yet valid.
FIRST_YEAR = 2025
# Files may have a build machine's time, so an hour or a time zone proves nothing.
CLOCK_TOLERANCE = 86_400.0
OLDEST_PYTHON = (3, 10)


def check_memory(facts: MachineFacts, settings: Settings, env: Mapping[str, str]) -> list[Finding]:
    """Findings about the container's memory and CPU."""
    found = _memory(facts.memory) if facts.memory else []
    return [*found, *(_cpu(facts.cpu) if facts.cpu else ())]


def _memory(memory: MemoryFacts) -> list[Finding]:
    found = [f for f in (_limit(memory), _available(memory), _killed(memory)) if f]
    whose = "the whole machine's, no cgroup limit" if _unlimited(memory) else memory.source
    good = ok(
        "memory.good",
        f"Memory: {memory.limit / GB:.1f} GiB ({whose}), "
        f"{memory.available / GB:.1f} GiB of it available.",
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
        f"This container may use {memory.limit / GB:.1f} GiB of memory ({memory.source}); the "
        f"machine has {memory.host_total / GB:.1f} GiB. ComfyUI needs 4 GiB or more, or the kernel "
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
        f"Only {memory.available / MB:.0f} MiB of {memory.limit / GB:.1f} GiB of memory can still "
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
        f"over its memory limit of {memory.limit / GB:.1f} GiB. ComfyUI that vanished with exit "
        "code -9 or 137 was one of them.",
        "Choose a GPU type with more memory, use smaller (fp8) weights, or add `--cache-none` to "
        "COMFYUI_ARGS; then start a new worker, which counts from 0.",
        oom_kills=memory.oom_kills,
    )


def _cpu(cpu: CpuFacts) -> Iterator[Finding]:
    if cpu.cores >= FEW_CORES:
        return
    yield info(
        "machine.cpu_few",
        f"{cpu.cores:.1f} CPU cores for this container ({cpu.source}; the machine has "
        f"{cpu.host}): ComfyUI's start takes 10 s of CPU, so it will take longer here.",
        cores=cpu.cores,
    )


def check_machine(facts: MachineFacts, settings: Settings, env: Mapping[str, str]) -> list[Finding]:
    """Findings about disk, limits, clock and Python; GPU and memory have their own checks."""
    found = [*_failed_probes(facts), *_disks(facts), *_limits(facts), *_clock(facts)]
    found += _python(facts)
    if found:
        return found
    room = min((d.free for d in (facts.root_disk, facts.temp) if d), default=0)
    return [ok("machine.good", f"Local disk has {room / GB:.1f} GiB free; limits and clock fine.")]


def _failed_probes(facts: MachineFacts) -> list[Finding]:
    found = []
    for problem in facts.problems:
        if problem.startswith("temp folder"):
            found.append(
                host_error(
                    "machine.temp_unusable",
                    f"There is no usable folder for temporary files ({problem}).",
                    "On a Pod: `mkdir -p /tmp && chmod 1777 /tmp`, or set WORK_DIR to a folder on "
                    "local disk. A serverless worker is replaced.",
                )
            )
        else:
            found.append(
                warning(
                    "machine.probe_failed",
                    f"Could not be read: {problem}.",
                    "Try again with a diagnostics request; if it stays, report it with this "
                    "sentence and the output of `uname -a`.",
                )
            )
    return found


def _disks(facts: MachineFacts) -> list[Finding]:
    disks = [d for d in (facts.root_disk, facts.temp) if d]
    same = len(disks) == 2 and disks[0].device == disks[1].device
    # A read-only `/` is a way to harden a container; the worker writes to the temp folder.
    written = disks[-1:] if same or (facts.temp and disks[0].read_only) else disks
    return [f for disk in written for f in _disk(disk)]


def _disk(disk: DiskFacts) -> list[Finding]:
    if disk.read_only:
        return [
            host_error(
                "machine.disk_read_only",
                f"The local disk at {disk.path} is mounted read-only: nothing can be written.",
                "A disk with errors is mounted like this; a serverless worker is replaced. On a "
                "Pod: set WORK_DIR to a folder that can be written to, or start another Pod.",
                path=disk.path,
            )
        ]
    return [f for f in (_room(disk), _inodes(disk)) if f]


def _room(disk: DiskFacts) -> Finding | None:
    if disk.free < FULL_DISK:
        return host_error(
            "machine.disk_full",
            f"The local disk at {disk.path} is full: {disk.free / MB:.0f} MiB of "
            f"{disk.total / GB:.1f} GiB free.",
            "A new worker starts with an empty disk; if that is full soon too, raise Container "
            "Disk (Edit Endpoint > Docker configuration). On a Pod: `du -xh --max-depth=2 / | "
            "sort -h | tail` shows what fills it.",
            path=disk.path,
            free=disk.free,
        )
    if disk.free < LOW_DISK:
        return warning(
            "machine.disk_low",
            f"The local disk at {disk.path} has {disk.free / GB:.1f} GiB of "
            f"{disk.total / GB:.1f} GiB free; a video job can need 2 GiB.",
            "Raise Container Disk (Edit Endpoint > Docker configuration) by 5 GB or more.",
            path=disk.path,
            free=disk.free,
        )
    return None


def _inodes(disk: DiskFacts) -> Finding | None:
    if not disk.inodes_total or disk.inodes_free >= FEW_INODES:
        return None
    return warning(
        "machine.inodes_low",
        f"The local disk at {disk.path} can hold {disk.inodes_free} more files.",
        "Raise Container Disk (Edit Endpoint > Docker configuration); on a Pod: remove folders "
        "with many small files, such as `rm -rf ~/.cache/pip`.",
        path=disk.path,
        inodes_free=disk.inodes_free,
    )


def _limits(facts: MachineFacts) -> list[Finding]:
    found = (_locks(facts.locks), _shm(facts.shm), _open_files(facts.open_files))
    return [f for f in found if f]


def _locks(trouble: str) -> Finding | None:
    if not trouble:
        return None
    return host_error(
        "machine.locks_unusable",
        f"Processes cannot share a lock ({trouble}); the Runpod SDK needs one to serve "
        "jobs, and many custom nodes do.",
        "Make /dev/shm writable where you start the container yourself: without `--read-only`, or "
        "with `--tmpfs /dev/shm:rw,size=1g`. Runpod uses another machine.",
        reason=trouble,
    )


def _shm(shm: DiskFacts | None) -> Finding | None:
    if shm is None or shm.total >= SMALL_SHM:
        return None
    return info(
        "machine.shm_small",
        f"/dev/shm has {shm.total / MB:.0f} MiB; nodes that start worker processes (training, data "
        "loaders) may end with 'bus error'.",
        "Where you start the container yourself: `docker run --shm-size=1g …`.",
        total=shm.total,
    )


def _open_files(limits: tuple[int | None, int | None] | None) -> Finding | None:
    soft, hard = limits or (None, None)
    if soft is None or soft >= FEW_FILES:
        return None
    may = "no limit" if hard is None else str(hard)
    return warning(
        "machine.open_files_low",
        f"A process may open {soft} files (hard limit: {may}); many models and node packs at once "
        "can end in 'Too many open files'.",
        "Before the worker: `ulimit -n 65536`; where you start the container yourself: "
        "`docker run --ulimit nofile=65536 …`.",
        soft=soft,
        hard=hard,
    )


def _clock(facts: MachineFacts) -> list[Finding]:
    if facts.clock is None:
        return []
    now = datetime.fromtimestamp(facts.clock.now, timezone.utc)
    said = now.strftime("%Y-%m-%d %H:%M UTC")
    if now.year < FIRST_YEAR:
        return [
            host_error(
                "machine.clock_wrong",
                f"The clock says {said}: certificates are not valid yet at that time, so every "
                "download and upload fails.",
                "A container cannot set it: start another Pod; a serverless worker is replaced.",
                now=facts.clock.now,
            )
        ]
    newest = facts.clock.newest_file
    if newest is None or facts.clock.now >= newest - CLOCK_TOLERANCE:
        return []
    days = (newest - facts.clock.now) / 86_400
    return [
        warning(
            "machine.clock_behind",
            f"The clock says {said}, but this project has a file that is {days:.0f} days newer: "
            "the clock is probably behind, and signed uploads (S3) are then refused.",
            "Compare with `date -u`. If the clock is right, the files are dated wrongly: `find . "
            "-name '*.py' -exec touch {} +` in the project. If it is wrong, start another worker.",
            now=facts.clock.now,
            newest_file=newest,
        )
    ]


def _python(facts: MachineFacts) -> Iterator[Finding]:
    parts = facts.python.split(".")
    if len(parts) < 2 or tuple(int(p) for p in parts[:2] if p.isdigit()) >= OLDEST_PYTHON:
        return
    yield error(
        "machine.python_old",
        f"The worker runs with Python {facts.python}; it needs 3.10 or newer.",
        "Run it with a newer one, such as `python3.11 check_volume.py`, or use the "
        "project's image.",
        python=facts.python,
    )
