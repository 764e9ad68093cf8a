"""What was checked about a model, so that a later boot needs neither network nor hashing.

Receipts lie under `.receipts/` in the models folder, one for each file. A receipt counts while
size and modification time are what they were when the file was checked.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from bootstrap.core.files import write_whole
from bootstrap.core.temp_names import RECEIPTS_FOLDER, beside, new_owner

VERSION = 1


@dataclass(frozen=True)
class Receipt:
    """`checked` names what was compared: `size`, `sha256`, `header`. `sha256` is what the bytes
    were hashed to, whether or not it was known before; None when they never were."""

    size: int
    mtime_ns: int
    sha256: str | None
    checked: tuple[str, ...]
    source: str = ""

    def still_true_of(self, facts: os.stat_result) -> bool:
        """Is the file as it was when it was checked?"""
        return facts.st_size == self.size and facts.st_mtime_ns == self.mtime_ns

    def as_dict(self) -> dict[str, object]:
        """JSON-ready data."""
        return {"version": VERSION, **asdict(self), "checked": list(self.checked)}


def receipt_path(models: Path, place: PurePosixPath) -> Path:
    """Where the receipt for `place` (relative to `models`) lies."""
    return models / RECEIPTS_FOLDER / place.parent / f"{place.name}.json"


def read_receipt(models: Path, place: PurePosixPath) -> Receipt | None:
    """The receipt for `place`, or None when there is none that can be read."""
    try:
        data = json.loads(receipt_path(models, place).read_text("utf-8"))
        sha256 = data["sha256"]
        if data["version"] != VERSION or not (sha256 is None or isinstance(sha256, str)):
            return None
        return Receipt(
            int(data["size"]),
            int(data["mtime_ns"]),
            sha256,
            tuple(str(item) for item in data["checked"]),
            str(data.get("source", "")),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def write_receipt(models: Path, place: PurePosixPath, receipt: Receipt) -> None:
    """Remember `receipt` for `place`. Raises OSError."""
    path = receipt_path(models, place)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(beside(place.name, new_owner(), "receipt-new"))
    write_whole(path, json.dumps(receipt.as_dict(), indent=1) + "\n", scratch)
