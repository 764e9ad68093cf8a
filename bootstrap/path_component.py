"""Pure: names that are one component of a path, on a volume, on Windows and in a web page."""

from __future__ import annotations

import re
import unicodedata

from bootstrap.core.temp_names import LONGEST_NAME

_NOT_IN_NAMES = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|]')
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def fault_of(name: str) -> str:
    """What keeps `name` from being one component of a path everywhere; empty for nothing."""
    if name in ("", ".", "..") or name != name.strip() or name.endswith("."):
        return f"is {name!r}, which is no name"
    if found := _NOT_IN_NAMES.search(name):
        return f"is {name[:80]!r}, which holds {found.group()!r}"
    if name.startswith(".") or _DEVICES.fullmatch(name):
        return f"is {name[:80]!r}, which is hidden or reserved"
    try:
        length = len(unicodedata.normalize("NFC", name).encode())
    except UnicodeError:
        return f"is {name[:80]!r}, which is no valid text"
    if length > LONGEST_NAME:
        return f"has {length} bytes; {LONGEST_NAME} are the most"
    return ""
