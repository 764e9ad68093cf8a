"""The volume's storage: its kind, room, permissions, and what its speed means for a cold start."""

from __future__ import annotations

from collections.abc import Callable

from bootstrap.core.findings import Finding, error, host_error, info, ok, warning
from bootstrap.core.text import (
    GB,
    MB,
    about,
    on_pod,
    printable,
    shell_quote,
    size_text,
    summarize_list,
    words,
)
from bootstrap.doctor.facts.throughput import Read, Throughput
from bootstrap.doctor.facts.volume_facts import Access, Space, VolumeFacts

CODES = {
    "volume.local": "The volume's folder is on a disk of this machine, not on a network volume",
    "volume.not_writable": "This user may not write to some folders on the volume",
    "volume.read_only": "The volume is mounted read-only",
    "volume.full": "The volume cannot store any more data",
    "volume.low": "The volume has little space left",
    "volume.inodes_gone": "The volume cannot store any more files",
    "volume.inodes_low": "The volume has room for few more files",
    "volume.space_unknown": "The free space cannot be determined from here",
    "volume.slow": "Writing a tiny file to the volume takes seconds",
    "volume.io_error": "The volume's mount is broken: the system reports an error",
    "throughput.read": "How fast the volume is read, and how long a checkpoint takes",
    "throughput.slow": "The volume reads so slowly that cold starts suffer",
    "throughput.small_files": "How long the volume takes to deliver one small file",
    "throughput.small_files_slow": "The volume responds so slowly that ComfyUI's start suffers",
    "throughput.not_measured": "The volume's speed could not be measured",
}
TB = 1024**4
# A handful of pictures or one video.
LITTLE_ROOM = GB
# A nearly full file system is slow; on a large one, space for a big model is enough.
LITTLE_SHARE, ENOUGH_ROOM = 0.02, 20 * GB
FEW_INODES = 1000
# Network volumes have about 4 TB at most; a file system that reports more means its cluster.
IMPLAUSIBLE = 64 * TB
# Four or five round trips of 2 ms each and a flush.
SLOW_WRITE = 2.0
_FULL = ("ENOSPC", "EDQUOT")
FORBIDDEN = ("EACCES", "EPERM")
# What lists the largest, and what to remove of it.
_SPACE = ("du -axh {} | sort -h | tail -n 30", "what you do not need")
_INODES = (
    "du --inodes -x --max-depth=2 {} | sort -n | tail -n 20",
    "a folder of many small files",
)
# SDXL, the best-known checkpoint.
EXAMPLE = int(6.5 * GB)
# Reported for Runpod's volumes: 200 to 400 MB/s for one stream, 700 and more for several. Below
# this a 6.5 GB checkpoint takes over a minute in any case.
SLOW_RATE = 100 * MB
# 1.5 to 2 ms is usual; ComfyUI with some nodes opens about 5,000 small files at its start.
SLOW_CALL = 0.010
FILES_OF_A_START = 5000


def check_disk(facts: VolumeFacts) -> list[Finding]:
    """Kind of mount, room, permissions, speed of a write."""
    found = [_local(facts), _read_only(facts), _full(facts), _room(facts.space, facts)]
    found += [_unreadable(facts), _not_writable(facts), _broken(facts), _slow(facts)]
    return [f for f in found if f is not None]


def _broken(facts: VolumeFacts) -> Finding | None:
    """A write error other than space or permissions."""
    trouble = facts.writing.trouble if facts.writing else None
    if trouble is None or trouble.name in (*_FULL, *FORBIDDEN, "EROFS"):
        return None
    return io_error(printable(facts.root), "written to", trouble.name, trouble.text)


def _local(facts: VolumeFacts) -> Finding | None:
    mount = facts.mount
    if mount is None or mount.network:
        return None
    return info(
        "volume.local",
        f"{printable(facts.root)} is on a disk of this machine ({mount.kind}), not on a network "
        "volume: other machines cannot see it.",
        "For Serverless, put ComfyUI and models on a network volume: Storage > New Network Volume.",
        kind=mount.kind,
        point=printable(mount.point),
    )


def _read_only(facts: VolumeFacts) -> Finding | None:
    trouble = facts.writing.trouble if facts.writing else None
    by_error = trouble is not None and trouble.name == "EROFS"
    if not by_error and not (facts.mount and facts.mount.read_only):
        return None
    point = facts.mount.point if facts.mount else facts.root
    command = f"mount -o remount,rw {shell_quote(point)}"
    return warning(
        "volume.read_only",
        f"The volume at {printable(facts.root)} is mounted read-only: jobs run, but results cannot "
        "be saved on it, nor models downloaded to it.",
        "On Runpod, start another worker or Pod, and ask Runpod's support if it happens there too. "
        f"On a machine of your own, as root: `{command}`. In Docker, remove `:ro` from its volume.",
        command=command,
    )


def _full(facts: VolumeFacts) -> Finding | None:
    trouble = facts.writing.trouble if facts.writing else None
    if trouble is None or trouble.name not in _FULL:
        return None
    space = facts.space
    if trouble.name == "ENOSPC" and space and space.inodes_total and not space.inodes_free:
        used = f"can hold no more files: all {space.inodes_total:,} inodes are in use."
        return _shortage(_INODES, error, "volume.inodes_gone", used, facts)
    why = "its quota is used up" if trouble.name == "EDQUOT" else "no space is left"
    full = f"is full: {why}. Results and models cannot be saved on it."
    return _shortage(_SPACE, error, "volume.full", full, facts)


def _room(space: Space | None, facts: VolumeFacts) -> Finding | None:
    if space is None or (facts.writing and facts.writing.trouble):
        return None
    if space.total > IMPLAUSIBLE and facts.mount is not None and facts.mount.network:
        return info(
            "volume.space_unknown",
            f"{facts.mount.system} reports {space.total / TB:,.0f} TB, which is its cluster's "
            "size: the volume's own free space is unknown here.",
            "Storage > the volume shows what is in use.",
            total=space.total,
        )
    share = min(LITTLE_SHARE * space.total, ENOUGH_ROOM)
    if space.free < max(LITTLE_ROOM, share):
        left = f"is nearly full: {size_text(space.free)} of {size_text(space.total)} are free."
        sizes = {"free": space.free, "total": space.total}
        return _shortage(_SPACE, warning, "volume.low", left, facts, **sizes)
    if space.inodes_total and space.inodes_free < FEW_INODES:
        left = f"can hold only {space.inodes_free:,} more files."
        free = space.inodes_free
        return _shortage(_INODES, warning, "volume.inodes_low", left, facts, inodes_free=free)
    return None


def _shortage(
    lacking: tuple[str, str],
    report: Callable[..., Finding],
    code: str,
    what: str,
    facts: VolumeFacts,
    **details: int,
) -> Finding:
    """`lacking` is _SPACE or _INODES."""
    listing, remove = lacking
    command = listing.format(shell_quote(facts.root))
    then = f"Remove {remove}. Or enlarge it: Storage > the volume > Edit."
    message = f"The volume at {printable(facts.root)} {what}"
    return report(code, message, on_pod(command, facts.root, then), command=command, **details)


def _unreadable(facts: VolumeFacts) -> Finding | None:
    """Without its code ComfyUI does not start; without a folder of models it lists fewer."""
    hidden = [a.path for a in facts.access if not a.readable]
    if not hidden:
        return None
    comfyui = facts.comfyui or facts.home
    code = (facts.root, comfyui, f"{comfyui}/main.py")
    report = error if any(path in code for path in hidden) else warning
    command = f"chmod -R a+rX {words(hidden)}"
    return report(
        "volume.unreadable",
        f"User {facts.user} may not read {summarize_list(hidden)}.",
        on_pod(command, facts.root),
        **about(hidden, command),
    )


def _not_writable(facts: VolumeFacts) -> Finding | None:
    if _read_only(facts) is not None:
        return None
    trouble = facts.writing.trouble if facts.writing else None
    refused = trouble is not None and trouble.name in FORBIDDEN
    closed = [a for a in facts.access if a.is_folder and not a.writable and _is_written_to(a)]
    paths = [a.path for a in closed]
    if refused and facts.root not in paths:
        paths.insert(0, facts.root)
    if not paths:
        return None
    command, own = (f"{start} {words(paths)}" for start in ("chmod a+rwX", f"chown {facts.user}"))
    return warning(
        "volume.not_writable",
        f"User {facts.user} may not write to {summarize_list(paths)}: results cannot be saved "
        "there, nor models downloaded.",
        on_pod(command, facts.root, f"Or give them to that user: `{own}`."),
        **about(paths, command),
    )


def _is_written_to(access: Access) -> bool:
    """Custom nodes' code and input files are only read."""
    return not access.path.endswith(("/custom_nodes", "/input"))


def _slow(facts: VolumeFacts) -> Finding | None:
    writing = facts.writing
    if writing is None or writing.trouble or writing.seconds < SLOW_WRITE:
        return None
    return warning(
        "volume.slow",
        f"Writing a tiny file to {printable(facts.root)} took {writing.seconds:.1f} s; far "
        "less than one is usual.",
        "Try again in some minutes, since others use the same storage; if it stays, start "
        "another worker, and ask Runpod's support with the volume's id.",
        seconds=round(writing.seconds, 3),
    )


def io_error(root: str, what: str, name: str, text: str) -> Finding:
    """Another worker gets another mount, so this counts as the machine's fault."""
    return host_error(
        "volume.io_error",
        f"The volume at {root} cannot be {what}: {text} ({name}).",
        "Its mount is broken. A serverless worker is replaced; restart a Pod. If it stays, ask "
        "Runpod's support with the volume's id.",
        root=root,
        errno=name,
    )


def check_throughput(measured: Throughput | None) -> list[Finding]:
    """Findings of a deep examination; none if nothing was measured."""
    if measured is None:
        return []
    if measured.one is None and measured.stat_seconds is None:
        return [_not_measured(measured)]
    return [*reading(measured), *small_files(measured)]


def reading(measured: Throughput) -> list[Finding]:
    """The rates, and the time for a 6.5 GB checkpoint."""
    if measured.one is None:
        return []
    best = max(measured.one.rate, measured.many.rate if measured.many else 0.0)
    message = (
        f"Reading the volume: {_rates(measured)}. A {size_text(EXAMPLE)} checkpoint: "
        f"{_times(measured)}.{'' if measured.cold else ' Part of it may have come from memory.'}"
    )
    if best < SLOW_RATE:
        return [
            warning(
                "throughput.slow",
                message + " That is slow for a network volume.",
                "Measure again at another time; if it stays, move the volume to another "
                "datacenter (a new volume, copied with rsync from a Pod), or use smaller models.",
                **measured.as_dict(),
            )
        ]
    return [ok("throughput.read", message, **measured.as_dict())]


def small_files(measured: Throughput) -> list[Finding]:
    """Metadata latency, and what thousands of small files cost with it."""
    if measured.stat_seconds is None:
        return []
    opening = measured.open_seconds or measured.stat_seconds
    message = (
        f"Small files: {measured.stat_seconds * 1000:.1f} ms to ask for one, "
        f"{opening * 1000:.1f} ms to open and read it; {FILES_OF_A_START:,} of them one after "
        f"another: about {opening * FILES_OF_A_START:.0f} s."
    )
    if opening > SLOW_CALL:
        return [
            warning(
                "throughput.small_files_slow",
                message,
                "Measure again at another time; if it stays, keep ComfyUI and its Python packages "
                "in the image (COMFYUI_DIR) and only models on the volume.",
            )
        ]
    return [ok("throughput.small_files", message)]


def _not_measured(measured: Throughput) -> Finding:
    why = measured.problem or "no file on it is large enough"
    return info("throughput.not_measured", f"The volume's speed could not be measured: {why}.")


def _rates(measured: Throughput) -> str:
    reads = [read for read in (measured.one, measured.many) if read]
    return ", ".join(f"{read.rate / 1e6:,.0f} MB/s by {_streams(read)}" for read in reads)


def _times(measured: Throughput) -> str:
    first = f"about {_seconds(measured.one)} read by one stream" if measured.one else ""
    if measured.many is None:
        return first
    return f"{first}, {_seconds(measured.many)} by {_streams(measured.many, bare=True)}"


def _seconds(read: Read) -> str:
    seconds = EXAMPLE / read.rate
    return f"{seconds:.0f} s" if seconds >= 2 else f"{seconds:.1f} s"


def _streams(read: Read, bare: bool = False) -> str:
    words = {1: "one", 8: "eight"}
    number = words.get(read.streams, str(read.streams))
    return number if bare else f"{number} stream{'s' if read.streams > 1 else ''}"
