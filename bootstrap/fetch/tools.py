"""What a download works with: limits, the disk, and which addresses it may go to."""

from __future__ import annotations

from dataclasses import dataclass, field

from bootstrap.core.files import Disk
from bootstrap.fetch.throttle import Throttle
from bootstrap.net.addresses import AddressPolicy
from bootstrap.net.http import Channel


@dataclass(frozen=True)
class Tools:
    """Times in seconds. `attempts` counts failures in a row without a byte of progress; a
    connection slower than `slowest` bytes per second over `stall` seconds counts as stalled."""

    policy: AddressPolicy = field(default_factory=AddressPolicy)
    disk: Disk = field(default_factory=Disk)
    throttle: Throttle = field(default_factory=Throttle)
    connections: int = 16
    stall: float = 30.0
    slowest: int = 1024
    attempts: int = 5
    backoff: float = 1.0
    note_every: float = 5.0

    def channel(self) -> Channel:
        """A new connection, not yet made."""
        return Channel(self.policy, self.stall)

    def pause(self, failures: int, asked: float | None = None) -> float:
        """Seconds to wait after `failures` failures in a row; a server may ask for up to 60."""
        if asked is not None:
            return min(asked, 60.0)
        return min(self.backoff * 2.0 ** (failures - 1), 30.0)
