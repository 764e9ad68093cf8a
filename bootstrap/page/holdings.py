"""The report's inventory by category, of the types and in the order that a picture needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bootstrap.page.text import mappings, number, plain

MOST_HOLDINGS = 60
# Longer ones say no more on a page; escaping can make one character six.
_MOST_NAME, _MOST_PATH = 60, 160
_MOST_FILES = 5
_MOST_LARGEST = 16
# What an inventory says of files nothing is wrong with.
_NO_TROUBLE = ("good", "unread", "")


@dataclass(frozen=True)
class File:
    """One of the largest files; `trouble` is what is wrong with its contents, if anything."""

    path: str
    size: float
    trouble: str

    @property
    def name(self) -> str:
        """The path's last part."""
        return self.path.rpartition("/")[2] or self.path


@dataclass(frozen=True)
class Holding:
    """One category: sizes in bytes, the largest models, the number of all."""

    name: str
    count: int
    size: float
    other_count: int
    other_size: float
    largest: tuple[File, ...]

    @property
    def total(self) -> float:
        """Models and what lies beside them."""
        return self.size + self.other_size


def holdings_of(inventory: Mapping[str, Any]) -> list[Holding]:
    """Categories by falling size."""
    found = [_holding(said) for said in mappings(inventory.get("categories"))[:MOST_HOLDINGS]]
    return sorted(found, key=lambda h: (-h.total, h.name))


def largest_of(holdings: Sequence[Holding]) -> list[File]:
    """The largest files of all categories."""
    files = [
        File(f"{h.name}/{f.name}" if "/" not in f.path else f.path, f.size, f.trouble)
        for h in holdings
        for f in h.largest
    ]
    return sorted(files, key=lambda f: -f.size)[:_MOST_LARGEST]


def _holding(said: Mapping[str, Any]) -> Holding:
    files = [_file(f) for f in mappings(said.get("largest"))[:_MOST_FILES]]
    return Holding(
        name=plain(said.get("name"), _MOST_NAME) or "(straight under models)",
        count=int(number(said.get("count"))),
        size=number(said.get("size")),
        other_count=int(number(said.get("other_count"))),
        other_size=number(said.get("other_size")),
        largest=tuple(sorted((f for f in files if f.size), key=lambda f: -f.size)),
    )


def _file(said: Mapping[str, Any]) -> File:
    state = plain(said.get("state"), 40).replace("_", " ")
    return File(
        path=_tail(plain(said.get("path"), 4 * _MOST_PATH)),
        size=number(said.get("size")),
        trouble="" if state in _NO_TROUBLE else state,
    )


def _tail(path: str) -> str:
    """A long path's end, which has the file's name."""
    return path if len(path) <= _MOST_PATH else "…" + path[1 - _MOST_PATH :]
