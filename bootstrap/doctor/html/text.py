"""Untrusted data made safe for a page: escaped, bounded, and of the type that was expected.

A report quotes file names, environment and other programs' messages, and may come out of a file
that somebody edited. Nothing in it is taken at its word.
"""

from __future__ import annotations

import html
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from bootstrap.core.text import size_text

# What cannot be seen, or turns the line around it (RTL marks, isolates): Unicode's categories of
# controls, formats, surrogates, private and unassigned characters, line and paragraph separators.
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_JOINTS = re.compile(r"(?<=\S[/_.\-])(?=[^\s/_.\-])")
# An exbibyte: no volume holds more, and sums of such numbers stay exact enough to draw.
_MOST = float(1 << 60)


def is_unseen(character: str) -> bool:
    """Would a reader not see it, or see its neighbours elsewhere?"""
    return unicodedata.category(character) in _UNSEEN


def plain(value: object, most: int, keep_lines: bool = False) -> str:
    """`value` as text without unseen characters, `most` characters at most with an ellipsis."""
    text = value if isinstance(value, str) else "" if value is None else str(value)[: most + 1]
    # Bounded before it is walked: a message may be size_text long.
    cut = text[: most + 1]
    seen = "".join(_seen(c, keep_lines) for c in cut)
    return seen if len(seen) <= most else seen[: max(most - 1, 0)] + "…"


def _seen(character: str, keep_lines: bool) -> str:
    if character == "\n":
        return "\n" if keep_lines else " "
    if not is_unseen(character):
        return character
    code = ord(character)
    return (
        f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"
    )


def escaped(text: str) -> str:
    """Text as it may stand between tags and in quoted attributes."""
    return html.escape(text, quote=True)


def safe(value: object, most: int) -> str:
    """`value` bounded, visible and escaped."""
    return escaped(plain(value, most))


def breakable(text: str) -> str:
    """Escaped text that may be broken behind the joints of a path, before it is anywhere else."""
    return "<wbr>".join(escaped(part) for part in _JOINTS.split(text) if part)


def number(value: object) -> float:
    """A finite number from 0 up; 0 for whatever is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return 0.0
    if isinstance(value, float) and not math.isfinite(value):
        return 0.0
    return float(min(max(value, 0), _MOST))


def size(value: object) -> str:
    """A number of bytes in words."""
    return size_text(int(number(value)))


def seconds(value: float) -> str:
    """`0.04 s`, `12.3 s`, `3 min 20 s`."""
    if value < 1:
        return f"{value:.2f} s"
    if value < 100:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes:,} min {rest} s"


def mapping(value: object) -> Mapping[str, Any]:
    """`value` if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def items(value: object) -> Sequence[Any]:
    """`value` if it is a list, else an empty one."""
    return value if isinstance(value, (list, tuple)) else ()


def mappings(value: object) -> list[Mapping[str, Any]]:
    """The mappings in a list."""
    return [item for item in items(value) if isinstance(item, Mapping)]
