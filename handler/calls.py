"""How the jobs of one worker do what blocks: each kind of call in threads of its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from bootstrap.core.findings import Finding, error
from handler.blocking import Background, Pool
from handler.volume_watchdog import VolumeWatchdog

CODES = {"worker.threads_exhausted": "Too many calls of earlier jobs hang; no more jobs are taken"}


@dataclass(frozen=True)
class Calls:
    """`local` disk and encoding; the `network` for uploads and inputs; `control` of ComfyUI's
    process, and diagnostics; the `volume`; and what a reply does not wait for."""

    volume: VolumeWatchdog
    local: Pool = field(default_factory=lambda: Pool("local", 8, 8))
    network: Pool = field(default_factory=lambda: Pool("network", 12, 12))
    control: Pool = field(default_factory=lambda: Pool("control", 6, 6))
    background: Background = field(default_factory=Background)

    @classmethod
    def on(cls, volume: Path) -> Calls:
        """For a worker whose volume is mounted there."""
        return cls(VolumeWatchdog(volume, Pool("volume", 12, 12)))

    @property
    def pools(self) -> tuple[Pool, ...]:
        """All of them."""
        return (self.local, self.network, self.control, self.volume.pool)

    def fault(self) -> Finding | None:
        """What to tell when one of the pools has no spare threads left."""
        full = next((pool for pool in self.pools if pool.exhausted), None)
        if full is None:
            return None
        return error(
            "worker.threads_exhausted",
            f"{full.hanging} calls of earlier jobs hang in the pool {full.name!r}, so no further "
            "job is taken.",
            "Look at the log: behind most of these is a volume that does not answer, or a server "
            "that trickles. The worker ends when its jobs are answered, and Runpod starts another.",
            pool=full.name,
            hanging=full.hanging,
        )
