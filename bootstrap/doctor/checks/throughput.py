"""What the volume's speed means for a cold start."""

from __future__ import annotations

from bootstrap.core.findings import Finding, info, ok, warning
from bootstrap.core.text import GB, MB, size_text
from bootstrap.doctor.facts.throughput import Read, Throughput

CODES = {
    "throughput.read": "How fast the volume is read, and how long a checkpoint takes",
    "throughput.slow": "The volume reads so slowly that cold starts suffer",
    "throughput.small_files": "How long the volume takes to deliver one small file",
    "throughput.small_files_slow": "The volume responds so slowly that ComfyUI's start suffers",
    "throughput.not_measured": "The volume's speed could not be measured",
}
# SDXL, the best-known checkpoint.
EXAMPLE = int(6.5 * GB)
# Reported for Runpod's volumes: 200 to 400 MB/s for one stream, 700 and more for several. Below
# this a 6.5 GB checkpoint takes over a minute in any case.
SLOW_RATE = 100 * MB
# 1.5 to 2 ms is usual; ComfyUI with some nodes opens about 5,000 small files at its start.
SLOW_CALL = 0.010
FILES_OF_A_START = 5000


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
