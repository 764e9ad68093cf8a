"""Pure: the names of what lies beside a model while it is made, and nothing else has.

All begin with a dot, so ComfyUI's lists and the link plan leave them out, and fit into 255 bytes
whatever the model is called. `key` is the model's name digested; `owner` is unique to one attempt.
"""

from __future__ import annotations

import hashlib
import re
import secrets

RECEIPTS_FOLDER = ".receipts"
LONGEST_NAME = 240  # bytes; leaves room for `.json` in the receipts
_KEY, _OWNER = r"(?P<key>[0-9a-f]{16})", r"(?P<owner>[0-9a-f]{16})"
PART = re.compile(rf"\.model-{_KEY}-{_OWNER}\.part")
_LITTER = re.compile(rf"\.model-{_KEY}-{_OWNER}\.(part|state|state-new|lease-old|receipt-new)")
_LEASE = re.compile(rf"\.model-{_KEY}\.(lease|publishing)")


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
