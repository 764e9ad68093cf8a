"""Is a model already there? Answered without the network, and usually without reading it.

The results of checks are kept, so that a later boot need not hash: receipts are in `.receipts/` in
the models folder, one for each file. A receipt is valid while size and modification time are
unchanged.
"""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from bootstrap.core.files import link_text, read_regular, write_whole
from bootstrap.core.temp_files import RECEIPTS_FOLDER, beside, new_owner
from bootstrap.models.download.verify import Wanted, check_content, check_hash, hash_file
from bootstrap.models.manifest_entry import ModelSpec
from bootstrap.net import DownloadError, disk_error
from bootstrap.volume.categories import ALIASES

VERSION = 1
_MOST_RECEIPT = 64 * 1024


@dataclass(frozen=True)
class Receipt:
    """`checked` lists what was checked: `size`, `sha256`, `header`. `sha256` is the hash of the
    bytes, whether or not it was known before; None if never hashed."""

    size: int
    mtime_ns: int
    sha256: str | None
    checked: tuple[str, ...]
    source: str = ""

    def still_true_of(self, facts: os.stat_result) -> bool:
        """Is the file unchanged since it was checked?"""
        return facts.st_size == self.size and facts.st_mtime_ns == self.mtime_ns

    def as_dict(self) -> dict[str, object]:
        """JSON-ready data."""
        return {"version": VERSION, **asdict(self), "checked": list(self.checked)}


def receipt_path(models: Path, place: PurePosixPath) -> Path:
    """The path of the receipt for `place` (relative to `models`)."""
    return models / RECEIPTS_FOLDER / place.parent / f"{place.name}.json"


def read_receipt(models: Path, place: PurePosixPath) -> Receipt | None:
    """The receipt for `place`; None if there is none, or it cannot be read."""
    try:
        data = json.loads(read_regular(receipt_path(models, place), _MOST_RECEIPT))
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
    """Save `receipt` for `place`. Raises OSError."""
    path = receipt_path(models, place)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(beside(place.name, new_owner(), "receipt-new"))
    write_whole(path, json.dumps(receipt.as_dict(), indent=1) + "\n", scratch)


@dataclass(frozen=True)
class Present:
    """The model is at `path`, as `receipt` says."""

    path: Path
    receipt: Receipt


@dataclass(frozen=True)
class PathConflict:
    """Something else is in the model's place; `problem` says what is wrong with it."""

    path: Path
    problem: DownloadError


def wanted_of(spec: ModelSpec) -> Wanted:
    """What is known of a spec's content."""
    return Wanted(spec.name, spec.size, spec.sha256)


def find_present(
    spec: ModelSpec,
    models: Path,
    also: Sequence[Path] = (),
    stop: threading.Event | None = None,
) -> Present | PathConflict | None:
    """The model in its folder or another one of its category, under `models` first, then under the
    other roots. A file with a valid receipt is not opened. One without is checked once (size,
    header, and hash if known) and gets a receipt. Raises Stopped.
    """
    occupied: PathConflict | None = None
    for root, place in _candidates(spec, models, also):
        path = root / place
        try:
            facts = os.stat(path)
        except FileNotFoundError:
            if path.is_symlink() and (root, place) == (models, spec.relative_path):
                occupied = PathConflict(path, _dangling(path))
            continue
        except OSError as problem:
            return PathConflict(path, disk_error(problem, path, None))
        if not stat.S_ISREG(facts.st_mode):
            continue
        try:
            return Present(path, _examined(spec, root, place, facts, stop))
        except DownloadError as problem:
            if (root, place) == (models, spec.relative_path):
                occupied = PathConflict(path, problem)
    return occupied


def examine(
    path: Path, facts: os.stat_result, wanted: Wanted, stop: threading.Event | None = None
) -> Receipt:
    """Check a file; returns its receipt. Raises DownloadError and Stopped."""
    try:
        checked = check_content(path, wanted)
        sha256 = None
        if wanted.sha256 is not None:
            sha256 = hash_file(path, stop)
            check_hash(sha256, wanted.sha256)
            checked = (*checked, "sha256")
    except OSError as problem:
        raise disk_error(problem, path, None) from None
    return Receipt(facts.st_size, facts.st_mtime_ns, sha256, checked)


def _examined(
    spec: ModelSpec,
    root: Path,
    place: PurePosixPath,
    facts: os.stat_result,
    stop: threading.Event | None,
) -> Receipt:
    wanted = wanted_of(spec)
    receipt = read_receipt(root, place)
    if receipt is not None and receipt.still_true_of(facts):
        hash_known = wanted.sha256 is None or receipt.sha256 is not None
        if hash_known and wanted.size in (None, receipt.size):
            check_hash(receipt.sha256 or "", wanted.sha256)
            return receipt
    receipt = examine(root / place, facts, wanted, stop)
    try:
        write_receipt(root, place, receipt)
    except OSError:
        pass  # a read-only folder: checked again next time
    return receipt


def verify(
    spec: ModelSpec, models: Path, also: Sequence[Path] = ()
) -> tuple[bool, str, DownloadError | None]:
    """(as listed, in words, what is wrong) for a model on disk, reading all of it: its hash is
    compared with the manifest's, else with the receipt's; a receipt without one gets it."""
    for root in (models, *also):
        if os.path.isfile(root / spec.relative_path):
            return _verified(spec, root)
    found = find_present(spec, models, also)
    if isinstance(found, Present):
        return True, f"under another folder's name, {found.path}", None
    return False, "not there", None


def _verified(spec: ModelSpec, root: Path) -> tuple[bool, str, DownloadError | None]:
    path, wanted = root / spec.relative_path, wanted_of(spec)
    receipt = read_receipt(root, spec.relative_path)
    noted = receipt.sha256 if receipt else None
    try:
        facts = os.stat(path)
        checked = check_content(path, wanted)
        sha256 = hash_file(path)
        check_hash(sha256, wanted.sha256 or noted)
        fresh = Receipt(facts.st_size, facts.st_mtime_ns, sha256, (*checked, "sha256"))
        if receipt is None or noted is None or not receipt.still_true_of(facts):
            write_receipt(root, spec.relative_path, fresh)
    except DownloadError as problem:
        return False, f"{path}: {problem.message} {problem.fix}", problem
    except OSError as problem:
        failed = disk_error(problem, path, None)
        return False, failed.message, failed
    against = "the manifest" if wanted.sha256 else "its receipt" if noted else "nothing yet"
    return True, f"SHA-256 {sha256}, compared with {against}", None


def _candidates(
    spec: ModelSpec, models: Path, also: Sequence[Path]
) -> Iterator[tuple[Path, PurePosixPath]]:
    first, *rest = spec.relative_path.parts
    for root in (models, *also):
        for folder in (first, *ALIASES.get(first, ())):
            yield root, PurePosixPath(folder, *rest)


def _dangling(path: Path) -> DownloadError:
    return DownloadError(
        "download.occupied",
        f"a broken link is there ({link_text(path)}).",
        f"Remove it (`rm '{path}'`) and start again.",
    )
