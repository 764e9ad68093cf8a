"""Fetches listed packs into custom_nodes, each once for all workers of a volume.

An archive is fetched as models are, into .comfyui-worker/nodes/; `install.py` makes it a pack.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bootstrap.config import Settings
from bootstrap.core.concurrency import WorkerPool
from bootstrap.core.files import contains, key_of, list_folder
from bootstrap.core.findings import Finding, Severity, ok
from bootstrap.core.temp_files import BEAT, HOUR, STALE, Lease
from bootstrap.core.text import pluralize
from bootstrap.models.download.download import Download
from bootstrap.models.download.part import sweep, unchanged_for
from bootstrap.models.download.progress import FileMeter, LogMeter, MakeMeter
from bootstrap.models.download.verify import Wanted, hash_file
from bootstrap.models.provisioner import download_options
from bootstrap.models.sources.https import Https
from bootstrap.net import DownloadError, OwnershipLost, Stopped, disk_error, stopped
from bootstrap.nodes.install import Installer, remove
from bootstrap.nodes.manifest import PackSpec, RegistryPin
from bootstrap.nodes.sources import MOST_ARCHIVE, REGISTRY, PackSources, too_large
from bootstrap.volume import Layout
from bootstrap.volume.locate import OWN_FOLDER

CODES = {
    "nodes.fetched": "All custom node packs in the manifest are present",
    "nodes.outside": "A link leads `custom_nodes` out of the volume",
    "nodes.late": "Custom node packs were not fetched within the time limit of the start",
    "nodes.fault": "A bug in this program stopped the download of a custom node pack",
}
_AT_ONCE = 4
# Seven seconds in all: ComfyUI's start waits for it.
_ATTEMPTS = 3
# An `.old` is removed only under the pack's lease: it may be the only copy.
_OURS = re.compile(r"[0-9a-f]{16}-[0-9a-f]{16}\.new|[0-9a-f]{16}\.zip")


@dataclass(frozen=True)
class PackResult:
    """The outcome for a pack: `present`, `fetched`, `updated`, `failed` or `stopped`. `aside` is
    where the user's folder was moved."""

    spec: PackSpec
    state: str
    path: Path | None = None
    problem: DownloadError | None = None
    notes: tuple[Finding, ...] = ()
    aside: Path | None = None

    @property
    def good(self) -> bool:
        """Can ComfyUI load it?"""
        return self.state in ("present", "fetched", "updated")

    def findings(self, severity: Severity = Severity.ERROR) -> list[Finding]:
        """The failure, and remarks."""
        if self.problem is None:
            return list(self.notes)
        name = self.spec.name
        return [self.problem.finding(f"custom node pack {name}", severity, pack=name)]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready data, for `nodes pull --json`."""
        return {
            "pack": self.spec.name,
            "source": str(self.spec.pin),
            "state": self.state,
            "aside": self.aside and str(self.aside),
            "findings": [finding.as_dict() for finding in self.findings()],
        }


class PackMeter(LogMeter):
    """A pack's lines in the log."""

    log = logging.getLogger("nodes")


@dataclass(frozen=True)
class PullContext:
    """Where packs go, and with what they are fetched. `nodes` is custom_nodes, `own` our folder on
    the same volume, `root` the volume. In seconds: `beat` and `stale` for leases, `longest_wait`
    for another worker."""

    nodes: Path
    own: Path
    root: Path
    sources: PackSources
    make_meter: MakeMeter = PackMeter
    beat: float = BEAT
    stale: float = STALE
    longest_wait: float = 900.0
    look_every: float = 0.2


def pull_context(
    settings: Settings, layout: Layout, make_meter: MakeMeter = PackMeter
) -> PullContext:
    """This worker's `PullContext`."""
    options = replace(download_options(settings), attempts=_ATTEMPTS)
    https = Https(settings.download_token, settings.download_token_host)
    own = layout.root / OWN_FOLDER / "nodes"
    return PullContext(
        layout.custom_nodes, own, layout.root, PackSources(options, https, REGISTRY), make_meter
    )


def pull(
    specs: Sequence[PackSpec],
    context: PullContext,
    stop: threading.Event | None = None,
    force: bool = False,
    timeout: float | None = None,
) -> tuple[PackResult, ...]:
    """Install all `specs`, a few at a time; results in their order. With `force`, a folder in the
    way is moved to custom_nodes/.disabled. After `timeout` seconds unfinished packs are `stopped`.
    Faults of packs are not raised but in their results.
    """
    stop = stop or threading.Event()
    job = _Pull(context, stop, force)
    results: dict[int, PackResult] = {}

    def task(index: int) -> Callable[[], None]:
        return lambda: results.__setitem__(index, job.bring(specs[index]))

    job.clean()
    if not WorkerPool(_AT_ONCE).run([task(i) for i in range(len(specs))], timeout):
        stop.set()
    return tuple(
        results.get(i) or PackResult(spec, "stopped", problem=_late(timeout))
        for i, spec in enumerate(specs)
    )


def _late(timeout: float | None) -> DownloadError:
    if timeout is None:
        return stopped()
    return DownloadError(
        "nodes.late",
        f"it was not there after {timeout:g} s; ComfyUI starts without it.",
        "Run `comfyui-worker nodes pull` on a Pod with this volume, or raise NODES_TIMEOUT.",
    )


class _Pull:
    def __init__(self, context: PullContext, stop: threading.Event, force: bool) -> None:
        self._context = context
        self._stop = stop
        self._installer = Installer(context.nodes, context.own, stop, force)
        self._options = context.sources.options

    def clean(self) -> None:
        """Remove leftovers of killed workers that are too old to be in use."""
        own = self._context.own
        sweep(own)
        for entry in list_folder(str(own)).names:
            path = own / entry
            with suppress(OSError):  # another worker's by now
                age = time.time() - path.lstat().st_mtime
                if age > HOUR and _OURS.fullmatch(entry):
                    remove(path)

    def bring(self, spec: PackSpec) -> PackResult:
        """Install one pack."""
        try:
            self._check_inside()
            return self._present(spec) or self._bring(spec)
        except DownloadError as problem:
            return PackResult(spec, "failed", problem=problem)
        except (Stopped, OwnershipLost):
            return PackResult(spec, "stopped", problem=stopped())
        except OSError as problem:
            failed = disk_error(problem, self._context.nodes, None)
            return PackResult(spec, "failed", problem=failed)
        except Exception as fault:  # noqa: BLE001 - the other packs are still to be brought
            # Only the fault's type is reported: its text may contain anything, even a token.
            return PackResult(spec, "failed", problem=_fault(fault))

    def _present(self, spec: PackSpec) -> PackResult | None:
        path = self._installer.present(spec)
        return None if path is None else PackResult(spec, "present", path)

    def _check_inside(self) -> None:
        context = self._context
        real = os.path.realpath(context.nodes)
        if not contains(os.path.realpath(context.root), real):
            raise DownloadError(
                "nodes.outside",
                f"{context.nodes} leads to {real}, which is not on the volume.",
                "Replace the link by a real folder.",
            )

    def _bring(self, spec: PackSpec) -> PackResult:
        context = self._context
        context.own.mkdir(parents=True, exist_ok=True)
        context.nodes.mkdir(parents=True, exist_ok=True)
        with self._leased(spec) as lease:
            self._installer.recover(spec)
            if there := self._present(spec):  # another worker's by now
                return there
            self._installer.check_unchanged(spec)
            path, updated, notes, aside = self._installer.install(spec, self._download(spec, lease))
        state = "updated" if updated else "fetched"
        return PackResult(spec, state, path, notes=notes, aside=aside)

    @contextmanager
    def _leased(self, spec: PackSpec) -> Iterator[Lease]:
        """The right to install this pack. After too long a wait it goes on without: a lease only
        saves bandwidth, and what is renamed into place is complete in any case."""
        context = self._context
        lease = Lease(context.own, spec.name, self._options.disk, context.beat, context.stale)
        lease.wait(context.longest_wait, context.look_every, self._stop)
        try:
            if self._stop.is_set():
                raise Stopped
            yield lease
        finally:
            lease.release()

    def _download(self, spec: PackSpec, lease: Lease) -> Path:
        """The pack's complete archive, possibly one that a killed worker had fetched."""
        archive = self._context.own / f"{key_of(f'{spec.name} {spec.pin}')}.zip"
        digest = spec.pin.sha256 if isinstance(spec.pin, RegistryPin) else None
        if archive.is_file() and (digest is None or hash_file(archive, self._stop) == digest):
            return archive
        archive.unlink(missing_ok=True)
        meter = self._context.make_meter(spec.name, lease.tell)
        download = Download(
            self._context.sources.locate(spec),
            archive,
            Wanted(archive.name, None, digest, weights=False),
            self._options,
            _Bounded(meter, spec.name),
            unchanged_for(self._context.stale),
        )
        try:
            fetched = download.run(self._stop)
        except DownloadError as problem:
            meter.end(f"failed: {problem.message}")
            raise
        meter.end(f"fetched from {self._context.sources.host_of(spec)}, {fetched.size:,} bytes")
        return archive


class _Bounded:
    """A meter that stops a download larger than any pack's archive."""

    def __init__(self, meter: FileMeter, name: str) -> None:
        self._meter = meter
        self._name = name

    def begin(self, done: int, total: int | None) -> None:
        """See download.Meter."""
        self._meter.begin(done, total)

    def add(self, count: int) -> None:
        """See download.Meter. Raises DownloadError."""
        self._meter.add(count)
        if self._meter.done > MOST_ARCHIVE:
            raise too_large(f"the archive of {self._name}", MOST_ARCHIVE)


def _fault(fault: Exception) -> DownloadError:
    return DownloadError(
        "nodes.fault",
        f"a bug in this program ({type(fault).__name__}) while it was fetched.",
        "Report it, with the pack's entry in the manifest.",
    )


def summary(results: Sequence[PackResult]) -> list[Finding]:
    """The boot's findings: each failure as a warning, since jobs that do not need the pack run;
    else one that all packs are there."""
    found = [finding for result in results for finding in result.findings(Severity.WARNING)]
    if results and all(result.good for result in results):
        new = sum(result.state != "present" for result in results)
        packs = pluralize(len(results), "wanted custom node pack")
        found.append(ok("nodes.fetched", f"{packs} there ({new} fetched now)."))
    return found
