"""What our own code left on the volume when it was killed: by strict names, nothing else.

Patterns: `publish.py` (`.<32 hex>.part`), `apply.py` (`.<32 hex>.unlinking`),
`fetch/names.py` (parts of models, their notes and leases).
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass

from bootstrap.fetch.names import is_litter

_PART = re.compile(r"\.[0-9a-f]{32}\.part")
_UNLINKING = re.compile(r"\.[0-9a-f]{32}\.unlinking")
HOUR = 3600.0
# Results are copied within minutes. A model's part can be resumed, so it is kept as long as
# provisioning keeps it (fetch/orphans.py).
_OLD = {"part": HOUR, "unlinking": HOUR, "model": 24 * HOUR}
MOST_LEFTOVERS = 200


@dataclass(frozen=True)
class Leftover:
    """Something of ours at `path`; `kind` is `part`, `unlinking` or `model`.

    `size` in bytes, `age` in seconds by the volume's clock. `identity` (device, inode, size,
    mtime in ns) tells later whether it is still the same. `removable` is False when it may hold
    what somebody else put there.
    """

    path: str
    kind: str
    size: int
    age: float
    identity: tuple[int, int, int, int]
    removable: bool

    @property
    def stale(self) -> bool:
        """Too old to be in use."""
        return self.age > _OLD[self.kind]


def kind_of(name: str) -> str | None:
    """Which kind of leftover has such a name; None for every other name."""
    if _PART.fullmatch(name):
        return "part"
    if _UNLINKING.fullmatch(name):
        return "unlinking"
    return "model" if is_litter(name) else None


def look_at_leftover(path: str, now: float) -> Leftover | None:
    """The leftover at `path`; None when it is gone or has another name than ours."""
    kind = kind_of(os.path.basename(path))
    try:
        found = os.lstat(path)
        dangling = stat.S_ISLNK(found.st_mode) and not os.path.exists(path)
    except OSError:
        return None
    if kind is None:
        return None
    # `apply.py` puts aside whatever stood where its link was to be, and only its own link,
    # one that leads nowhere, holds nothing.
    removable = dangling if kind == "unlinking" else stat.S_ISREG(found.st_mode)
    return Leftover(path, kind, found.st_size, now - found.st_mtime, identity_of(found), removable)


def identity_of(found: os.stat_result) -> tuple[int, int, int, int]:
    """What stays the same while a file is renamed."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
