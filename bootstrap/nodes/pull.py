"""Fetches listed packs into custom_nodes: once, complete or not at all, never over the user's own.

    .comfyui-worker/nodes/*.zip          an archive, fetched as models are
                         /KEY-OWNER.new  unpacked there; one rename makes it custom_nodes/NAME
                         /KEY-OWNER.old  what an update replaced, until it is removed

No code of a pack runs here.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bootstrap.config import Settings
from bootstrap.core.archive import ArchiveTooLarge, BadArchive, Limits, unpack
from bootstrap.core.concurrency import WorkerPool
from bootstrap.core.files import contains
from bootstrap.core.findings import Finding, Severity, info, ok, warning
from bootstrap.core.temp_files import BEAT, HOUR, LONGEST_NAME, STALE, Lease, key_of, new_owner
from bootstrap.core.text import pluralize, shell_quote
from bootstrap.environment.node_packs import COMMIT
from bootstrap.models.background import provision_context
from bootstrap.models.download.download import Download
from bootstrap.models.download.part import sweep, unchanged_for
from bootstrap.models.download.progress import FileMeter, LogMeter, MakeMeter
from bootstrap.models.download.verify import Wanted, hash_file
from bootstrap.models.sources.https import Https
from bootstrap.net import DownloadError, OwnershipLost, Stopped, disk_error, stopped
from bootstrap.nodes.installed import (
    NOT_UNPACKED,
    RECEIPT,
    TRACKING,
    FoundPack,
    PackReceipt,
    State,
    compare,
    edited,
    files_in,
    look,
    occupied,
    read_receipt,
)
from bootstrap.nodes.manifest import GitPin, PackSpec, RegistryPin
from bootstrap.nodes.sources import MOST_ARCHIVE, PackSources, too_large
from bootstrap.volume import Layout
from bootstrap.volume.locate import OWN_FOLDER

CODES = {
    "nodes.fetched": "All custom node packs in the manifest are present",
    "nodes.bad_archive": "A pack's archive is damaged or has entries that are never unpacked",
    "nodes.other_commit": "The archive is of another commit than the requested one",
    "nodes.outside": "A link leads `custom_nodes` out of the volume",
    "nodes.late": "Custom node packs were not fetched within the time limit of the start",
    "nodes.fault": "A bug in this program stopped the download of a custom node pack",
    "nodes.install_script": "A pack has an install script, which is not run",
    "nodes.submodules": "A pack has git submodules, which its archive lacks",
}
# ComfyUI loads nothing in it, and ComfyUI-Manager puts disabled packs there.
_ASIDE = ".disabled"
_LIMITS = Limits(size=4_000_000_000, files=50_000, depth=40, fold=False)
_AT_ONCE = 4
# Seven seconds in all: ComfyUI's start waits for it.
_ATTEMPTS = 3
_OURS = re.compile(r"[0-9a-f]{16}-[0-9a-f]{16}\.(new|old)|[0-9a-f]{16}\.zip")


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
class PackPlace:
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


def place_for(settings: Settings, layout: Layout, make_meter: MakeMeter = PackMeter) -> PackPlace:
    """This worker's `PackPlace`."""
    options = replace(provision_context(settings, layout).options, attempts=_ATTEMPTS)
    https = Https(settings.download_token, settings.download_token_host)
    own = layout.root / OWN_FOLDER / "nodes"
    return PackPlace(layout.custom_nodes, own, layout.root, PackSources(options, https), make_meter)


def pull(
    specs: Sequence[PackSpec],
    place: PackPlace,
    stop: threading.Event | None = None,
    force: bool = False,
    timeout: float | None = None,
) -> tuple[PackResult, ...]:
    """Install all `specs`, a few at a time; results in their order. With `force`, a folder in the
    way is moved to custom_nodes/.disabled. After `timeout` seconds unfinished packs are `stopped`.
    Faults of packs are not raised but in their results.
    """
    stop = stop or threading.Event()
    job = _Job(place, stop, force)
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


class _Job:
    def __init__(self, place: PackPlace, stop: threading.Event, force: bool) -> None:
        self._place = place
        self._stop = stop
        self._force = force
        self._options = place.sources.options

    def clean(self) -> None:
        """Remove leftovers of killed workers that are too old to be in use."""
        own = self._place.own
        sweep(own)
        with suppress(OSError):
            for entry in os.scandir(own):
                age = time.time() - entry.stat(follow_symlinks=False).st_mtime
                # An `.old` is removed only under the pack's lease: it may be the only copy.
                if age > HOUR and _OURS.fullmatch(entry.name) and not entry.name.endswith(".old"):
                    _remove(Path(entry.path))

    def bring(self, spec: PackSpec) -> PackResult:
        """Install one pack."""
        try:
            self._check_inside()
            return self._there(spec) or self._bring(spec)
        except DownloadError as problem:
            return PackResult(spec, "failed", problem=problem)
        except (Stopped, OwnershipLost):
            return PackResult(spec, "stopped", problem=stopped())
        except OSError as problem:
            failed = disk_error(problem, self._place.nodes, None)
            return PackResult(spec, "failed", problem=failed)
        except Exception as fault:  # noqa: BLE001 - the other packs are still to be brought
            # Only the fault's type is reported: its text may contain anything, even a token.
            return PackResult(spec, "failed", problem=_fault(fault))

    def _there(self, spec: PackSpec) -> PackResult | None:
        found = look(spec, self._place.nodes)
        if found.state is State.THERE:
            return PackResult(spec, "present", found.path)
        if found.state is State.OCCUPIED and not self._force:
            raise occupied(spec, found)
        return None

    def _check_inside(self) -> None:
        place = self._place
        real = os.path.realpath(place.nodes)
        if not contains(os.path.realpath(place.root), real):
            raise DownloadError(
                "nodes.outside",
                f"{place.nodes} leads to {real}, which is not on the volume.",
                "Replace the link by a real folder.",
            )

    def _bring(self, spec: PackSpec) -> PackResult:
        place = self._place
        place.own.mkdir(parents=True, exist_ok=True)
        place.nodes.mkdir(parents=True, exist_ok=True)
        with self._leased(spec) as lease:
            self._recover(spec)
            there = self._there(spec)  # another worker's by now
            if there is None:
                self._check_unchanged(spec)
            return there or self._install(spec, self._download(spec, lease))

    def _check_unchanged(self, spec: PackSpec) -> None:
        """Check before fetching that an update would lose nothing."""
        found = look(spec, self._place.nodes)
        if found.receipt is not None and not self._force:
            changed = compare(found.path, found.receipt).changed
            if changed:
                raise edited(spec, found, changed)

    @contextmanager
    def _leased(self, spec: PackSpec) -> Iterator[Lease]:
        """The right to install this pack. After too long a wait it goes on without: a lease only
        saves bandwidth, and what is renamed into place is complete in any case."""
        place, deadline = self._place, time.monotonic() + self._place.longest_wait
        lease = self._lease(spec)
        while not lease.acquire() and time.monotonic() < deadline:
            while lease.look() is not None and not lease.break_stale():
                if self._stop.wait(place.look_every):
                    raise Stopped
                if time.monotonic() > deadline:
                    break
        try:
            yield lease
        finally:
            lease.release()

    def _lease(self, spec: PackSpec) -> Lease:
        place = self._place
        return Lease(place.own, spec.name, self._options.disk, place.beat, place.stale)

    def _recover(self, spec: PackSpec) -> None:
        """Restore what a killed update had moved aside, if nothing is in its place."""
        final = self._place.nodes / spec.name
        for old in sorted(self._place.own.glob(f"{key_of(spec.name)}-*.old")):
            if os.path.lexists(final):
                _let_go(old, final)
            else:
                os.rename(old, final)

    def _download(self, spec: PackSpec, lease: Lease) -> Path:
        """The pack's complete archive, possibly one that a killed worker had fetched."""
        archive = self._place.own / f"{key_of(f'{spec.name} {spec.pin}')}.zip"
        digest = spec.pin.sha256 if isinstance(spec.pin, RegistryPin) else None
        if archive.is_file() and (digest is None or hash_file(archive, self._stop) == digest):
            return archive
        archive.unlink(missing_ok=True)
        meter = self._place.make_meter(spec.name, lease.tell)
        download = Download(
            self._place.sources.locate(spec),
            archive,
            Wanted(archive.name, None, digest, weights=False),
            self._options,
            _Bounded(meter, spec.name),
            unchanged_for(self._place.stale),
        )
        try:
            fetched = download.run(self._stop)
        except DownloadError as problem:
            meter.end(f"failed: {problem.message}")
            raise
        meter.end(f"fetched from {self._place.sources.host_of(spec)}, {fetched.size:,} bytes")
        return archive

    def _install(self, spec: PackSpec, archive: Path) -> PackResult:
        owner = f"{key_of(spec.name)}-{new_owner()}"
        new, old = (self._place.own / f"{owner}.{what}" for what in ("new", "old"))
        try:
            names = self._unpack(spec, archive, new)
            notes = _notes(spec, names)
            found = look(spec, self._place.nodes)
            aside = (
                self._make_way(spec, found, new, old) if found.state is not State.MISSING else None
            )
            if self._stop.is_set():
                raise Stopped
            _swap(new, found.path, aside)
            kept = aside if aside is not None and aside != old else None
            state = "fetched" if found.state is State.MISSING else "updated"
            return PackResult(spec, state, found.path, notes=notes, aside=kept)
        finally:
            _remove(archive)
            _remove(new)
            if os.path.lexists(self._place.nodes / spec.name):
                _let_go(old, self._place.nodes / spec.name)

    def _unpack(self, spec: PackSpec, archive: Path, new: Path) -> list[str]:
        pin = spec.pin
        try:
            names, comment = unpack(archive, new, _LIMITS, top=isinstance(pin, GitPin))
        except BadArchive as problem:
            code = (
                "nodes.too_large" if isinstance(problem, ArchiveTooLarge) else "nodes.bad_archive"
            )
            raise DownloadError(
                code,
                f"the archive of {pin} {problem}.",
                "Choose another version, or put the pack onto the volume by hand, on a Pod.",
            ) from None
        if isinstance(pin, GitPin) and COMMIT.fullmatch(comment) and comment != pin.commit:
            raise DownloadError(
                "nodes.other_commit",
                f"the archive is of the commit {comment}, wanted is {pin.commit}.",
                "Try again; if it stays, the server is wrong.",
            )
        for name in NOT_UNPACKED:
            _remove(new / name)
        names = [name for name in names if name.partition("/")[0] not in NOT_UNPACKED]
        files = {str(p.relative_to(new)): hash_file(p, self._stop) for p in files_in(new)}
        if isinstance(pin, RegistryPin):
            (new / TRACKING).write_text("\n".join(names), "utf-8")
        (new / RECEIPT).write_text(json.dumps(PackReceipt(str(pin), files).as_dict()), "utf-8")
        return names

    def _make_way(self, spec: PackSpec, found: FoundPack, new: Path, old: Path) -> Path:
        """Where to move the present folder. Files added to one that we fetched are carried into the
        new one; a changed one, or the user's own, is kept, and moved only with `force`."""
        if found.receipt is not None:
            changes = compare(found.path, found.receipt)
            taken = [name for name in changes.added if os.path.lexists(new / name)]
            for name in changes.added:
                if name not in taken:
                    _carry(found.path / name, new / name)
            if not changes.changed and not taken:
                return old
            if not self._force:
                raise edited(spec, found, [*changes.changed, *taken])
        elif not self._force:
            raise occupied(spec, found)
        kept = self._place.nodes / _ASIDE
        kept.mkdir(exist_ok=True)
        aside = f"@{time.strftime('%Y%m%d-%H%M%S')}-{new_owner()[:4]}"
        room = LONGEST_NAME - len(aside)
        return kept / (spec.name.encode()[:room].decode(errors="ignore") + aside)


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


def _carry(source: Path, target: Path) -> None:
    """Copy a file within the volume, links as links. Raises OSError."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def _let_go(old: Path, final: Path) -> None:
    """Remove what an update replaced, after carrying over what a running ComfyUI has saved in it
    since it was compared; if that fails, it stays for the next pull."""
    before, now = read_receipt(old), read_receipt(final)
    try:
        if before is not None and now is not None:
            theirs = {RECEIPT, TRACKING, *before.files, *now.files}
            names = [str(path.relative_to(old)) for path in files_in(old)]
            for name in [name for name in names if name not in theirs]:
                _carry_latest(old / name, final / name)
    except OSError:
        return
    _remove(old)


def _carry_latest(source: Path, target: Path) -> None:
    if os.path.lexists(target):
        if os.lstat(source).st_mtime_ns <= os.lstat(target).st_mtime_ns:
            return
        target.unlink()
    _carry(source, target)


def _swap(new: Path, final: Path, aside: Path | None) -> None:
    """Rename `new` to `final`, moving what is there `aside`; a rename never replaces a folder with
    contents. Raises OSError, with the old folder back in place."""
    if aside is not None:
        os.rename(final, aside)
    try:
        os.rename(new, final)
    except OSError:
        if aside is not None:
            os.rename(aside, final)
        raise


def _remove(path: Path) -> None:
    """Remove a file or folder; what cannot be removed stays for later."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _notes(spec: PackSpec, names: Sequence[str]) -> tuple[Finding, ...]:
    notes = []
    if "install.py" in names:
        notes.append(
            info(
                "nodes.install_script",
                f"Custom node pack {spec.name} has an install script, which was not run: its code "
                "runs in ComfyUI only.",
                "If it does more than install its requirements.txt, run it on a Pod, with "
                f"ComfyUI's Python, in the folder {spec.name}: `python install.py`.",
                pack=spec.name,
            )
        )
    if ".gitmodules" in names:
        notes.append(
            warning(
                "nodes.submodules",
                f"Custom node pack {spec.name} has git submodules; an archive does not hold them.",
                f"Clone it on a Pod, if it lacks them: `{_clone(spec)}`.",
                pack=spec.name,
            )
        )
    return tuple(notes)


def _clone(spec: PackSpec) -> str:
    url = spec.pin.url if isinstance(spec.pin, GitPin) else "ADDRESS"
    return shell_quote("git", "clone", "--recursive", url, spec.name)


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
