"""Fetches models onto the volume, shared by all workers.

    there already? -> in the platform's cache? -> who gets the lease fetches, others wait

Models that another worker is fetching come later, so that several workers share a list.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bootstrap.core.files import contains
from bootstrap.core.findings import Finding, Severity, ok
from bootstrap.core.temp_files import BEAT, STALE, Lease, LeaseState
from bootstrap.core.text import size_text
from bootstrap.models.download.download import Download, Fetched
from bootstrap.models.download.part import IsAbandoned, PartState, sweep, unchanged_for
from bootstrap.models.download.progress import FileMeter, LogMeter, MakeMeter
from bootstrap.models.download.remote import DownloadOptions, Locate, Remote
from bootstrap.models.manifest_entry import ModelSpec
from bootstrap.models.presence import PathConflict, Receipt, find_present, wanted_of, write_receipt
from bootstrap.models.sources import Sources
from bootstrap.net import CODES as DOWNLOAD_CODES
from bootstrap.net import DownloadError, OwnershipLost, Stopped, disk_error, stopped
from bootstrap.net.addresses import shown
from bootstrap.net.http import Channel


def resolve_offline(
    spec: ModelSpec, context: ProvisionContext, stop: threading.Event
) -> ProvisionResult | None:
    """The model's result; None if it must be fetched. Never raises."""
    try:
        found = find_present(spec, context.models, context.also, stop)
        if isinstance(found, PathConflict):
            return ProvisionResult(spec, "failed", found.path, problem=_occupied(found))
        if found is not None:
            return ProvisionResult(spec, "present", found.path, found.receipt)
        cached = context.cached(spec)
        return None if cached is None else ProvisionResult(spec, "cached", cached)
    except Stopped:
        return ProvisionResult(spec, "stopped", problem=stopped())


def _occupied(found: PathConflict) -> DownloadError:
    return DownloadError(
        "download.occupied",
        f"{found.path} is there but is not the wanted file: {found.problem.message}",
        f"If you do not need it, remove it (`rm '{found.path}'`) and start again; else correct the "
        "manifest. A file that is there is never replaced.",
    )


def provision(
    specs: Sequence[ModelSpec],
    context: ProvisionContext,
    stop: threading.Event | None = None,
    on_result: Callable[[ProvisionResult], None] | None = None,
) -> tuple[ProvisionResult, ...]:
    """Provide all `specs`, required ones first; results in the order of `specs`. Faults of models
    are in their results, not raised. `on_result` gets each result as soon as it is known.
    """
    job = _Provision(context, stop or threading.Event(), on_result or (lambda result: None))
    ordered = sorted(specs, key=lambda spec: spec.optional)
    for folder in {context.models / spec.directory for spec in specs}:
        if context.holds(folder):
            sweep(folder)
    missing = [spec for spec in ordered if not job.settled_without_network(spec)]
    busy = [spec for spec in missing if not job.fetch(spec, wait=False)]
    for spec in busy:
        job.fetch(spec, wait=True)
    return tuple(job.results[id(spec)] for spec in specs)


class _Provision:
    def __init__(
        self,
        context: ProvisionContext,
        stop: threading.Event,
        on_result: Callable[[ProvisionResult], None],
    ) -> None:
        self.results: dict[int, ProvisionResult] = {}
        self._context = context
        self._stop = stop
        self._on_result = on_result

    def settled_without_network(self, spec: ModelSpec) -> bool:
        """Is the model's result known without fetching?"""
        result = resolve_offline(spec, self._context, self._stop)
        return result is not None and self._settle(result)

    def fetch(self, spec: ModelSpec, wait: bool) -> bool:
        """Fetch, or wait for the worker that does; False if another worker does and we must not
        wait."""
        try:
            return self._fetch(spec, wait)
        except DownloadError as problem:
            return self._settle(ProvisionResult(spec, "failed", problem=problem))
        except Stopped:
            return self._settle(ProvisionResult(spec, "stopped", problem=stopped()))
        except Exception as fault:  # noqa: BLE001 - the other models are still to be brought
            # Only the fault's type is reported: its text may contain anything, even a token.
            return self._settle(ProvisionResult(spec, "failed", problem=crashed(fault)))

    def _fetch(self, spec: ModelSpec, wait: bool) -> bool:
        end = time.monotonic() + self._context.longest_wait
        while not self._stop.is_set():
            lease = self._lease(spec)
            try:
                if not lease.acquire():
                    if not wait:
                        return False
                    # After a long enough wait we go on without a lease: it only saves bandwidth.
                    self._wait_for(spec, lease, end - time.monotonic())
                if not self._stop.is_set():
                    if not self.settled_without_network(spec):
                        self._fetch_now(spec, lease)
                    return True
            except OwnershipLost:
                wait = True  # another worker took our part over and continues
            finally:
                lease.release()
        raise Stopped

    def _wait_for(self, spec: ModelSpec, lease: Lease, seconds: float) -> None:
        line = _WaitingLine(spec, self._context.make_meter)
        try:
            lease.wait(seconds, self._context.look_every, self._stop, line.show)
        finally:
            line.end()

    def _fetch_now(self, spec: ModelSpec, lease: Lease) -> None:
        context = self._context
        final = context.models / spec.relative_path
        meter = context.make_meter(str(spec.relative_path), lease.tell)
        download = Download(
            self._locate(spec),
            final,
            wanted_of(spec),
            context.options,
            meter,
            self._is_abandoned(lease),
        )
        try:
            fetched = download.run(self._stop)
        except DownloadError as problem:
            meter.end(f"failed: {problem.message}")
            raise
        if not fetched.published:
            meter.end("another worker was faster")
            if not self.settled_without_network(spec):
                raise OwnershipLost  # it was published and removed again: try once more
            return
        receipt = self._remember(spec, final, fetched)
        meter.end(_done(meter, fetched))
        self._settle(ProvisionResult(spec, "fetched", final, receipt))

    def _remember(self, spec: ModelSpec, final: Path, fetched: Fetched) -> Receipt:
        try:
            facts = final.stat()
            receipt = Receipt(
                facts.st_size,
                facts.st_mtime_ns,
                fetched.sha256,
                fetched.checked,
                shown(spec.url),
            )
            write_receipt(self._context.models, spec.relative_path, receipt)
            return receipt
        except OSError as problem:
            raise disk_error(problem, final.parent, None) from None

    def _locate(self, spec: ModelSpec) -> Locate:
        source, link = self._context.sources.source_of(spec.url)
        wanted = wanted_of(spec)

        def locate(channel: Channel) -> Remote:
            return source.locate(link, spec.revision, wanted, channel)

        return locate

    def _is_abandoned(self, lease: Lease) -> IsAbandoned:
        """The owner of a part is dead if its lease was stale; otherwise it must have released the
        part."""
        left = unchanged_for(self._context.stale)

        def is_abandoned(path: Path, state: PartState) -> bool:
            return lease.taken_over or left(path, state)

        return is_abandoned

    def _lease(self, spec: ModelSpec) -> Lease:
        folder = self._context.models / spec.directory
        self._check_inside(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise disk_error(problem, folder, None) from None
        return Lease(
            folder, spec.name, self._context.options.disk, self._context.beat, self._context.stale
        )

    def _check_inside(self, folder: Path) -> None:
        if not self._context.holds(folder):
            raise _outside(folder, Path(os.path.realpath(folder)))

    def _settle(self, result: ProvisionResult) -> bool:
        self.results[id(result.spec)] = result
        self._on_result(result)
        return True


class _WaitingLine:
    """Logs the other worker's progress now and then."""

    def __init__(self, spec: ModelSpec, make_meter: MakeMeter) -> None:
        self._meter = make_meter(f"{spec.relative_path} (another worker)", None)
        self._begun = False

    def show(self, holder: LeaseState) -> None:
        """Show how far the other worker is."""
        done, total = holder.done, holder.total
        if not total:
            return
        if not self._begun or done < self._meter.done:
            self._meter.begin(done, total)
            self._begun = True
        self._meter.add(done - self._meter.done)

    def end(self) -> None:
        """The other worker is done, or dead."""
        if self._begun:
            self._meter.end("no longer waiting for the other worker")


def _done(meter: FileMeter, fetched: Fetched) -> str:
    resumed = f", {size_text(fetched.resumed_bytes)} of it before" if fetched.resumed_bytes else ""
    return (
        f"there, {size_text(fetched.size)}{resumed}, {meter.speed / 1e6:.1f} MB/s, "
        f"checked: {', '.join(fetched.checked) or 'length'}"
    )


def _outside(folder: Path, real: Path) -> DownloadError:
    return DownloadError(
        "download.outside",
        f"{folder} leads to {real}, which is not on the volume.",
        "Name another `directory`, or put a real folder in place of the link; the model would "
        "be lost with this machine.",
    )


def crashed(fault: Exception) -> DownloadError:
    """A fault of ours."""
    return DownloadError(
        "download.crashed",
        f"a bug in this program ({type(fault).__name__}) while the model was fetched.",
        "Report it, with the model's entry in the manifest.",
    )


CODES = {
    **DOWNLOAD_CODES,
    "provision.ready": "All models in the manifest are present",
    "provision.pending": "Required models are still being fetched",
}


@dataclass(frozen=True)
class ProvisionResult:
    """The result for a model. `state` is `present`, `fetched`, `cached` (in the platform's cache,
    to be linked in a local folder), `failed` or `stopped`."""

    spec: ModelSpec
    state: str
    path: Path | None = None
    receipt: Receipt | None = None
    problem: DownloadError | None = None

    @property
    def good(self) -> bool:
        """Can ComfyUI use it?"""
        return self.state in ("present", "fetched", "cached")

    def finding(self) -> Finding | None:
        """The failure as a finding, a warning for an optional model."""
        if self.problem is None:
            return None
        severity = Severity.WARNING if self.spec.optional else Severity.ERROR
        name = str(self.spec.relative_path)
        return self.problem.finding(name, severity, model=name)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready data, for `models pull --json` and a download request's reply."""
        finding = self.finding()
        return {
            "model": str(self.spec.relative_path),
            "state": self.state,
            "receipt": self.receipt and self.receipt.as_dict(),
            "problem": finding and finding.as_dict(),
        }


@dataclass(frozen=True)
class ProvisionContext:
    """Where models go, and with what they are fetched. `models` is their folder, `also` others that
    ComfyUI reads; links in or on the way to `models` must lead into one of `within` (default:
    `models`). In seconds: `beat` and `stale` for leases, `longest_wait` for another live worker,
    after which we fetch the model ourselves."""

    models: Path
    sources: Sources
    options: DownloadOptions = field(default_factory=DownloadOptions)
    also: tuple[Path, ...] = ()
    within: tuple[Path, ...] = ()
    make_meter: MakeMeter = LogMeter
    cached: Callable[[ModelSpec], Path | None] = lambda spec: None
    beat: float = BEAT
    stale: float = STALE
    longest_wait: float = 3600.0
    look_every: float = 0.5

    def holds(self, folder: Path) -> bool:
        """May models be put into `folder` and leftovers removed there, with links resolved?"""
        real = os.path.realpath(folder)
        return any(contains(os.path.realpath(r), real) for r in self.within or (self.models,))


def summary(results: Sequence[ProvisionResult]) -> list[Finding]:
    """The boot's findings about provisioning: each failure, else one that all models are there."""
    failed = [finding for result in results if (finding := result.finding()) is not None]
    if failed or not results:
        return failed
    count = {state: sum(r.state == state for r in results) for state in ("fetched", "cached")}
    message = f"{len(results)} listed models are there ({count['fetched']} fetched now"
    message += f", {count['cached']} in the platform's cache)." if count["cached"] else ")."
    return [ok("provision.ready", message)]
