"""Models fetched by address: their names, and which are kept or removed.

They are in `fetched/` in their loader's folder, under the source's name with a key of the address:
two repositories' `model.safetensors` are two files, and one address is one file for all jobs. A
download's receipt (presence.py) marks the file as ours; its modification time says until when the
file is in use. Jobs renew it while they run, so a worker that dies leaves nothing to undo.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
import time
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from bootstrap.core.temp_files import LONGEST_NAME, RECEIPTS_FOLDER
from bootstrap.models.presence import read_receipt, receipt_path
from bootstrap.models.sources import Link, identity_of
from bootstrap.volume.categories import GGUF, PT_EXTENSIONS, extension_of

FOLDER = "fetched"
IN_USE_SECONDS = 600.0  # ComfyUI may keep reading a model's file after the job that named it
_KEY = re.compile(r".*-(?P<key>[0-9a-f]{16})(\.[A-Za-z0-9]{1,12})")
_UNFIT = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|]|[^\S ]')
_DEFAULT_EXTENSION = ".safetensors"


def key_of_link(link: Link) -> str:
    """16 hex digits for an address, the same for all its spellings."""
    return hashlib.sha256(identity_of(link).encode()).hexdigest()[:16]


def name_for(link: Link, given: str) -> str:
    """The file name for `link`, whose source calls it `given`. Without a model's extension it
    counts as safetensors: its header is checked after the download."""
    plain = _UNFIT.sub("_", unicodedata.normalize("NFC", given)).strip(" .")
    suffix = _DEFAULT_EXTENSION
    if has_model_name(plain):
        suffix = extension_of(plain)
        plain = plain[: -len(suffix)]
    tail = f"-{key_of_link(link)}{suffix}"
    stem = (
        plain.encode("utf-8", "replace")[: LONGEST_NAME - len(tail)]
        .decode("utf-8", "ignore")
        .strip(" .")
    )
    return f"{stem or 'model'}{tail}"


def has_model_name(name: str) -> bool:
    """Does a name have an extension that ComfyUI lists?"""
    return extension_of(name) in PT_EXTENSIONS | {GGUF}


@dataclass(frozen=True)
class FetchedFile:
    """A model that we may remove. `place` is relative to the models folder, `size` in bytes, `used`
    the latest known time of use, in seconds since the epoch."""

    place: PurePosixPath
    size: int
    used: float


class FetchedModels:
    """The fetched models in the folder `models`, shared by all workers of a volume. All methods
    block."""

    def __init__(self, models: Path) -> None:
        self._models = models

    def name_of(self, folder: str, link: Link) -> str | None:
        """The name of the file fetched from `link`, if it is in `folder`."""
        key = key_of_link(link)
        try:
            names = sorted(os.listdir(self._models / folder / FOLDER))
        except OSError:
            return None
        return next((n for n in names if (m := _KEY.fullmatch(n)) and m["key"] == key), None)

    def mark_used(self, names: Iterable[str]) -> None:
        """Mark files of these names as in use for `IN_USE_SECONDS` from now."""
        until = time.time() + IN_USE_SECONDS
        for name in filter(_KEY.fullmatch, names):
            receipts = (self._models / RECEIPTS_FOLDER).glob(f"*/{FOLDER}/{glob.escape(name)}.json")
            for receipt in receipts:
                with suppress(OSError):
                    os.utime(receipt, (until, until))

    def make_room(self, size: int, limit: float) -> list[PurePosixPath]:
        """Remove the least recently used until `size` more bytes are within `limit`, except those
        in use; returns the removed places."""
        there = sorted(self.kept(), key=lambda model: model.used)
        over = sum(model.size for model in there) + size - limit
        removed = []
        for model in there:
            if over <= 0:
                break
            if self._remove(model):
                removed.append(model.place)
                over -= model.size
        return removed

    def kept(self) -> Iterator[FetchedFile]:
        """Every file that was fetched by address and is unchanged."""
        receipts = self._models / RECEIPTS_FOLDER
        for path in receipts.glob(f"*/{FOLDER}/*.json"):
            place = PurePosixPath(*path.relative_to(receipts).parent.parts, path.stem)
            found = self._look(place)
            if found is not None:
                yield found

    def _look(self, place: PurePosixPath) -> FetchedFile | None:
        receipt = read_receipt(self._models, place)
        if not _KEY.fullmatch(place.name) or receipt is None or not receipt.source:
            return None
        try:
            facts = os.lstat(self._models / place)
            used = os.stat(receipt_path(self._models, place)).st_mtime
        except OSError:
            return None
        return FetchedFile(place, facts.st_size, used) if receipt.still_true_of(facts) else None

    def _remove(self, model: FetchedFile) -> bool:
        """Checked again: another worker may have begun to use it."""
        now = self._look(model.place)
        if now is None or now.used > time.time():
            return False
        try:
            os.unlink(self._models / model.place)
            receipt_path(self._models, model.place).unlink(missing_ok=True)
        except OSError:
            return False
        return True
