"""Pure: what is wanted of the ratios of medians, and whether it was met."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

Series = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Bar:
    """The median of `ours` divided by the median of `other` is to be at most `limit`."""

    ours: str
    other: str
    limit: float
    what: str


BARS = (
    Bar("ours-sd15", "local-sd15", 1.10, "cold, 2 GB: volume against all on local disk"),
    Bar("ours-sd15", "first-job-sd15", 0.60, "cold, 2 GB: against ComfyUI run from the volume"),
    Bar("ours-sd15", "image-sd15", 0.85, "cold, 2 GB: against worker-comfyui's sequence"),
    Bar("ours-sdxl", "image-sdxl", 0.65, "cold, 7 GB: against worker-comfyui's sequence"),
    Bar("unread", "cached", 1.15, "hot worker: 2 GB model unread against in memory"),
    Bar("thawed", "hot", 1.20, "first job after a thaw against a hot job"),
)


@dataclass(frozen=True)
class Verdict:
    """A bar and the ratio that was measured."""

    bar: Bar
    ratio: float

    @property
    def met(self) -> bool:
        """Rounded as it is shown, so that a line never contradicts itself."""
        return round(self.ratio, 2) <= self.bar.limit

    def __str__(self) -> str:
        word = "met" if self.met else "MISSED"
        return f"{self.ratio:5.2f}  (wanted ≤ {self.bar.limit:.2f}, {word})  {self.bar.what}"


def verdicts(series: Series, bars: Iterable[Bar] = BARS) -> list[Verdict]:
    """For each bar of which both sides were measured."""
    return [
        Verdict(bar, statistics.median(series[bar.ours]) / statistics.median(series[bar.other]))
        for bar in bars
        if series.get(bar.ours) and series.get(bar.other)
    ]
