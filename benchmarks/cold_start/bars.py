"""The targets for ratios of medians, and whether they were met (pure)."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

Series = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Bar:
    """The median of `ours` divided by the median of `other` must be at most `limit`."""

    ours: str
    other: str
    limit: float
    what: str


BARS = (
    Bar("ours-sd15", "local-sd15", 1.10, "cold start, 2 GB: volume vs. all on local disk"),
    Bar("ours-sd15", "first-job-sd15", 0.60, "cold start, 2 GB: vs. ComfyUI run from the volume"),
    Bar("ours-sd15", "image-sd15", 0.85, "cold start, 2 GB: vs. worker-comfyui's sequence"),
    Bar("ours-sdxl", "image-sdxl", 0.65, "cold start, 7 GB: vs. worker-comfyui's sequence"),
    Bar("unread", "cached", 1.15, "hot worker, 2 GB: model on the volume vs. in memory"),
    Bar("thawed", "hot", 1.20, "first job after a thaw vs. on the hot worker"),
)


@dataclass(frozen=True)
class Verdict:
    """A target and the ratio that was measured."""

    bar: Bar
    ratio: float

    @property
    def met(self) -> bool:
        """Rounded as it is shown, so that a line never contradicts itself."""
        return round(self.ratio, 2) <= self.bar.limit

    def __str__(self) -> str:
        word = "met" if self.met else "MISSED"
        return f"{self.ratio:5.2f}  (target ≤ {self.bar.limit:.2f}, {word})  {self.bar.what}"


def verdicts(series: Series, bars: Iterable[Bar] = BARS) -> list[Verdict]:
    """For each target whose two sides were measured."""
    return [
        Verdict(bar, statistics.median(series[bar.ours]) / statistics.median(series[bar.other]))
        for bar in bars
        if series.get(bar.ours) and series.get(bar.other)
    ]
