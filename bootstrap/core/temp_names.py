"""The names of what lies on a volume for a time only, and what of it was left behind.

All begin with a dot, so ComfyUI's lists and the link plan leave them out. Those beside a model fit
into 255 bytes whatever it is called: `key` is its name digested, `owner` unique to one attempt.
A process that is killed leaves such files; they are known by strict names, and nothing else is:
`core/files.py` (`.<32 hex>.part`), `volume/links.py` (`.<32 hex>.unlinking`), parts of models,
their notes and leases.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import stat
from dataclasses import dataclass

RECEIPTS_FOLDER = ".receipts"
LONGEST_NAME = 240  # bytes; leaves room for `.json` in the receipts
_KEY, _OWNER = r"(?P<key>[0-9a-f]{16})", r"(?P<owner>[0-9a-f]{16})"
PART = re.compile(rf"\.model-{_KEY}-{_OWNER}\.part")
_LITTER = re.compile(rf"\.model-{_KEY}-{_OWNER}\.(part|state|state-new|lease-old|receipt-new)")
_LEASE = re.compile(rf"\.model-{_KEY}\.(lease|publishing)")
_RESULT_PART = re.compile(r"\.[0-9a-f]{32}\.part")
_UNLINKING = re.compile(r"\.[0-9a-f]{32}\.unlinking")
HOUR = 3600.0
# Results are copied within minutes. A model's part can be resumed, so it is kept as long as
# provisioning keeps it (models/download/part.py).
_OLD = {"part": HOUR, "unlinking": HOUR, "model": 24 * HOUR}
MOST_LEFTOVERS = 200


def key_of(name: str) -> str:
    """16 hex digits for a model's file name."""
    return hashlib.sha256(name.encode()).hexdigest()[:16]


def new_owner() -> str:
    """16 random hex digits for one attempt to make a model."""
    return secrets.token_hex(8)


def beside(name: str, owner: str, what: str) -> str:
    """The name of an attempt's own file: its part, its state, a lease it put aside."""
    return f".model-{key_of(name)}-{owner}.{what}"


def lease_name(name: str, what: str = "lease") -> str:
    """The name of the one file that all who make a model agree on."""
    return f".model-{key_of(name)}.{what}"


def is_litter(name: str) -> bool:
    """Did one of us make this, for a time only?"""
    return bool(_LITTER.fullmatch(name) or _LEASE.fullmatch(name))


@dataclass(frozen=True)
class Leftover:
    """Something of ours at `path`; `kind` is `part`, `unlinking` or `model`.

    `size` in bytes, `age` in seconds by the volume's clock. `identity` (device, inode, size,
    mtime in ns) tells later whether it is still the same. `removable` is False when it may hold
    what others put there.
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
    if _RESULT_PART.fullmatch(name):
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
    # volume/links.py puts aside whatever stood where its link was to be, and only its own link,
    # a broken one, holds nothing.
    removable = dangling if kind == "unlinking" else stat.S_ISREG(found.st_mode)
    return Leftover(path, kind, found.st_size, now - found.st_mtime, identity_of(found), removable)


def identity_of(found: os.stat_result) -> tuple[int, int, int, int]:
    """What stays the same while a file is renamed."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
