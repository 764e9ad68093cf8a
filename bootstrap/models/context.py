"""Where and with what models are provisioned, and what became of each."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bootstrap.core.files import contains
from bootstrap.core.findings import Finding, Severity
from bootstrap.core.lease import BEAT, STALE
from bootstrap.models.download.options import Tools
from bootstrap.models.download.progress import LogMeter, MakeMeter
from bootstrap.models.installed import Receipt
from bootstrap.models.manifest_entry import ModelSpec
from bootstrap.models.sources.base import Sources
from bootstrap.net.errors import CODES as DOWNLOAD_CODES
from bootstrap.net.errors import DownloadError

CODES = {
    **DOWNLOAD_CODES,
    "provision.ready": "All wanted models are there.",
    "provision.pending": "Required models are still being fetched.",
}


@dataclass(frozen=True)
class Result:
    """What became of a wanted model. `state` is `present`, `fetched`, `cached` (in the platform's
    cache, to be linked from a local folder), `failed` or `stopped`."""

    spec: ModelSpec
    state: str
    path: Path | None = None
    receipt: Receipt | None = None
    problem: DownloadError | None = None

    @property
    def good(self) -> bool:
        """Can ComfyUI have it?"""
        return self.state in ("present", "fetched", "cached")

    def finding(self) -> Finding | None:
        """The failure in words, a warning for an optional model."""
        if self.problem is None:
            return None
        severity = Severity.WARNING if self.spec.optional else Severity.ERROR
        return self.problem.finding(str(self.spec.place), severity)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready data: what `models pull --json` and a download request's reply say."""
        finding = self.finding()
        return {
            "model": str(self.spec.place),
            "state": self.state,
            "receipt": self.receipt and self.receipt.as_dict(),
            "problem": finding and finding.as_dict(),
        }


@dataclass(frozen=True)
class Workplace:
    """Where and with what. `models` is the folder that models go to, `also` others that ComfyUI
    reads; where links in the way of `models` or in it lead, is in one of `within` (none given: in
    `models`). Times in seconds:
    `beat` and `stale` of leases, `longest_wait` for another worker that seems alive, after which
    we fetch the model ourselves."""

    models: Path
    sources: Sources
    tools: Tools = field(default_factory=Tools)
    also: tuple[Path, ...] = ()
    within: tuple[Path, ...] = ()
    make_meter: MakeMeter = LogMeter
    cached: Callable[[ModelSpec], Path | None] = lambda spec: None
    beat: float = BEAT
    stale: float = STALE
    longest_wait: float = 3600.0
    look_every: float = 0.5

    def holds(self, folder: Path) -> bool:
        """Is `folder` where models may be put and leftovers removed, wherever links lead?"""
        real = os.path.realpath(folder)
        return any(contains(os.path.realpath(r), real) for r in self.within or (self.models,))


def summary(results: Sequence[Result]) -> list[Finding]:
    """What a boot report says about provisioning: each failure, else one line that all is well."""
    failed = [finding for result in results if (finding := result.finding()) is not None]
    if failed or not results:
        return failed
    count = {state: sum(r.state == state for r in results) for state in ("fetched", "cached")}
    message = f"{len(results)} wanted models are there ({count['fetched']} fetched now"
    message += f", {count['cached']} in the platform's cache)." if count["cached"] else ")."
    return [Finding("provision.ready", Severity.OK, message)]
