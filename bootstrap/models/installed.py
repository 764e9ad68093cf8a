"""Is a model already there? Answered without the network, and usually without reading it.

The results of checks are kept, so that a later boot need not hash: receipts are in `.receipts/` in
the models folder, one for each file. A receipt is valid while size and modification time are
unchanged.

Models in the platform's cache are linked in a folder on this worker's own disk: the cache belongs
to this host, and a link on the volume would be broken elsewhere (volume/args_file.py).
"""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from bootstrap.core.files import write_whole
from bootstrap.core.temp_files import RECEIPTS_FOLDER, beside, new_owner
from bootstrap.models.download.verify import Wanted, check_content, check_hash, hash_file
from bootstrap.models.manifest import canonical_place
from bootstrap.models.manifest_entry import ModelSpec
from bootstrap.net import DownloadError, disk_error
from bootstrap.volume.categories import ALIASES, category_of

VERSION = 1


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
        f"a broken link stands there ({os.readlink(path)}).",
        f"Remove it (`rm '{path}'`) and start again.",
    )


if TYPE_CHECKING:  # the packages for downloads are imported only if needed
    from bootstrap.models.provision import ProvisionResult


def shown_locally(spec: ModelSpec, folders: Mapping[str, str]) -> bool:
    """Would ComfyUI find this model in a local models folder with `folders`?"""
    category = category_of(PurePosixPath(spec.directory).parts[0])
    return category is not None and category.folders[0] in folders.values()


def link_cached(results: Sequence[ProvisionResult], models: Path) -> list[Path]:
    """Link models in the platform's cache into the local folder `models`; returns the new links. A
    link that is broken because the worker moved to another host is replaced.
    """
    made = []
    for result in results:
        if result.state != "cached" or result.path is None:
            continue
        place = models / canonical_place(result.spec)
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.is_symlink() and not place.exists():
            place.unlink()
        if not place.is_symlink() and not place.exists():
            place.symlink_to(result.path)
            made.append(place)
    return made


def cached_models(models: Path) -> list[dict[str, Any]]:
    """JSON-ready: the links in the local folder `models`; `from` is the target, `size` in bytes,
    None if it is gone."""
    links = sorted(path for path in models.rglob("*") if path.is_symlink())
    return [
        {
            "path": str(link.relative_to(models)),
            "size": link.stat().st_size if link.exists() else None,
            "from": os.readlink(link),
        }
        for link in links
    ]
