"""What `models list|plan|verify` say about each model, as data."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bootstrap.core.text import megabytes
from bootstrap.fetch.receipts import Receipt, read_receipt, write_receipt
from bootstrap.fetch.verify import check_content, check_hash, hash_file
from bootstrap.manifest_entry import ModelSpec
from bootstrap.net.errors import DownloadError, disk_error
from bootstrap.presence import Occupied, Present, find_present, wanted_of
from bootstrap.workplace import Workplace


@dataclass(frozen=True)
class Step:
    """One model. `fetch`: it would be fetched, `size` bytes (None unknown) from `host` with the
    credential called `credential`. `there`: nothing is to be done."""

    place: str
    what: str
    there: bool = False
    fetch: bool = False
    size: int | None = None
    host: str = ""
    credential: str | None = None
    problem: DownloadError | None = None

    def as_dict(self) -> dict[str, object]:
        """JSON-ready data."""
        data: dict[str, object] = {"model": self.place, "there": self.there, "what": self.what}
        if self.fetch:
            data |= {"size": self.size, "host": self.host, "credential": self.credential}
        if self.problem is not None:
            data["problem"] = self.problem.finding(self.place).as_dict()
        return data


def plan_models(specs: Sequence[ModelSpec], workplace: Workplace, ask: bool) -> list[Step]:
    """What a pull would do; `ask` the sources for the sizes that the manifest does not give."""
    return [_plan(spec, workplace, ask) for spec in specs]


def _plan(spec: ModelSpec, workplace: Workplace, ask: bool) -> Step:
    place = str(spec.place)
    found = find_present(spec, workplace.models, workplace.also)
    if isinstance(found, Present):
        return Step(place, f"{megabytes(found.receipt.size)} at {found.path}", there=True)
    if isinstance(found, Occupied):
        text = f"{found.path} is there, but: {found.problem.message} {found.problem.fix}"
        return Step(place, text, problem=found.problem)
    if (cached := workplace.cached(spec)) is not None:
        return Step(place, f"in the platform's cache, {cached}", there=True)
    try:
        return _to_fetch(spec, workplace, ask)
    except DownloadError as problem:
        return Step(place, f"{problem.message} {problem.fix}", problem=problem)


def _to_fetch(spec: ModelSpec, workplace: Workplace, ask: bool) -> Step:
    source, link = workplace.sources.source_of(spec.url)
    host, credential, size = source.host_of(link), source.credential_name(link), spec.size
    if ask:
        channel = workplace.tools.channel()
        try:
            located = source.locate(link, spec.revision, wanted_of(spec), channel)
            size = located.size or size
        finally:
            channel.close()
    amount = "unknown size" if size is None else megabytes(size)
    optional = ", optional" if spec.optional else ""
    key = f", with {credential}" if credential else ""
    text = f"{amount} from {source.name} ({host}){key}{optional}"
    return Step(str(spec.place), text, fetch=True, size=size, host=host, credential=credential)


def verify_models(specs: Sequence[ModelSpec], workplace: Workplace) -> Iterator[Step]:
    """Hash what is there and compare it with the manifest, and with the receipt of when it came.

    A file whose receipt has no hash yet gets one now.
    """
    for spec in specs:
        yield _verify(spec, workplace)


def _verify(spec: ModelSpec, workplace: Workplace) -> Step:
    place = str(spec.place)
    try:
        root, relative = next(
            (root, place_there)
            for root in (workplace.models, *workplace.also)
            for place_there in [spec.place]
            if (root / place_there).is_file()
        )
    except StopIteration:
        found = find_present(spec, workplace.models, workplace.also)
        if isinstance(found, Present):
            return Step(place, f"under another folder's name, {found.path}", there=True)
        return Step(place, "not there")
    path, wanted = root / relative, wanted_of(spec)
    receipt = read_receipt(root, relative)
    try:
        facts = os.stat(path)
        checked = check_content(path, wanted)
        sha256 = hash_file(path)
        check_hash(sha256, wanted.sha256)
        if receipt is not None and receipt.sha256 is not None and wanted.sha256 is None:
            check_hash(sha256, receipt.sha256)
        fresh = Receipt(facts.st_size, facts.st_mtime_ns, sha256, (*checked, "sha256"))
        if receipt is None or receipt.sha256 is None or not receipt.still_true_of(facts):
            write_receipt(root, relative, fresh)
    except DownloadError as problem:
        return Step(place, f"{path}: {problem.message} {problem.fix}", problem=problem)
    except OSError as problem:
        failed = disk_error(problem, path, None)
        return Step(place, failed.message, problem=failed)
    against = "the manifest" if wanted.sha256 else "its receipt" if receipt else "nothing yet"
    return Step(place, f"SHA-256 {sha256}, compared with {against}", there=True)
