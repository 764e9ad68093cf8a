"""This worker's provisioning: where its models go and with what they are fetched, in the background
of a boot or a job, waited for with a limit, reported as findings.

Models in the platform's cache are linked in a folder on this worker's own disk: the cache belongs
to this host, and a link on the volume would be broken elsewhere (volume/args_file.py).
"""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from bootstrap.config import Settings
from bootstrap.core.concurrency import threaded
from bootstrap.core.findings import Finding, error
from bootstrap.core.text import summarize_list
from bootstrap.models.download.progress import LogMeter, MakeMeter
from bootstrap.models.download.remote import DownloadOptions, RateLimiter
from bootstrap.models.download.verify import check_content
from bootstrap.models.manifest import canonical_place
from bootstrap.models.manifest_entry import ModelSpec
from bootstrap.models.presence import wanted_of
from bootstrap.models.provision import (
    ProvisionContext,
    ProvisionResult,
    crashed,
    provision,
    resolve_offline,
    summary,
)
from bootstrap.models.sources import BadLink, make_sources, parse_link
from bootstrap.models.sources.huggingface import (
    CACHE_ON_VOLUME,
    PLATFORM_CACHE,
    HubHosts,
    HuggingFace,
)
from bootstrap.net import DownloadError
from bootstrap.net.addresses import AddressPolicy
from bootstrap.volume import MODELS, Layout, locate
from bootstrap.volume.args_file import local_folders
from bootstrap.volume.categories import category_of
from bootstrap.volume.links import link_models

_log = logging.getLogger("models")


def models_folder(layout: Layout) -> Path:
    """Where models go: `models/` at the volume's root if it exists or the volume has no ComfyUI,
    else the models folder of the volume's ComfyUI."""
    own, inside = layout.root / MODELS, layout.home / MODELS
    return inside if os.path.isdir(inside) and not os.path.isdir(own) else own


def provision_context(
    settings: Settings, layout: Layout, make_meter: MakeMeter = LogMeter
) -> ProvisionContext:
    """This worker's `ProvisionContext`."""
    target = models_folder(layout)
    roots = [*layout.model_roots, layout.home / MODELS]
    if layout.comfyui is not None:
        roots.append(layout.comfyui / MODELS)
    return ProvisionContext(
        models=target,
        sources=make_sources(settings),
        options=download_options(settings),
        within=(layout.root,),
        also=tuple(dict.fromkeys(root for root in roots if root != target)),
        make_meter=make_meter,
        cached=platform_cache(layout),
    )


def download_options(settings: Settings) -> DownloadOptions:
    """How this worker downloads, models or custom node packs."""
    return DownloadOptions(
        policy=AddressPolicy(settings.allow_private_download_urls, exempt=HubHosts()),
        rate_limiter=_rate_limiter(settings.download_max_mbps),
        connections=settings.download_connections,
    )


@functools.cache
def _rate_limiter(megabytes_per_second: float | None) -> RateLimiter:
    """One rate limit for all downloads of this process, at boot and on demand."""
    return RateLimiter(None if megabytes_per_second is None else megabytes_per_second * 1e6)


def platform_cache(layout: Layout) -> Callable[[ModelSpec], Path | None]:
    """Looks a model up in the platform's cache, if it could be linked for ComfyUI from there."""
    folders = local_folders(layout.comfyui)
    caches = tuple(dict.fromkeys((PLATFORM_CACHE, layout.root / CACHE_ON_VOLUME)))

    def cached(spec: ModelSpec) -> Path | None:
        if not shown_locally(spec, folders):
            return None
        found = (cached_by_platform(spec, cache) for cache in caches)
        return next((path for path in found if path is not None), None)

    return cached


def cached_by_platform(spec: ModelSpec, cache: Path = PLATFORM_CACHE) -> Path | None:
    """The model in the platform's cache, if it is there and correct. An LFS file's blob is named by
    its SHA-256, so a pinned hash can be checked without reading it.
    """
    try:
        link = parse_link(spec.url)
        found = HuggingFace().cached(link, spec.revision, cache)
        if found is None:
            return None
        if spec.sha256 is not None and found.resolve().name != spec.sha256:
            return None
        check_content(found, wanted_of(spec))
    except (BadLink, DownloadError, OSError):
        return None
    return found


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
            place.unlink(missing_ok=True)
        with suppress(FileExistsError):  # also when another job has just linked it
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
            "size": _size_at(link),
            "from": os.readlink(link),
        }
        for link in links
    ]


def _size_at(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def show_to_comfyui(
    settings: Settings, results: Sequence[ProvisionResult], local_models: Path | None
) -> tuple[Layout, list[Finding]]:
    """Link new models into ComfyUI's folders; returns the current layout (models/ at the volume's
    root may be new) and findings. Models in the platform's cache are linked in `local_models`, a
    folder on this worker's own disk."""
    layout = locate(settings)
    if local_models is not None:
        link_cached(results, local_models)
    return layout, link_models(layout)


class Provisioner:
    """The models of one manifest, fetched by its own thread, in the current context. The first job
    waits in `wait_for_required`; after its limit the worker starts degraded, the thread goes on,
    and `findings` and `ready` change when it is done, or when `look_again` finds models that others
    have added.
    """

    def __init__(self, specs: Sequence[ModelSpec], context: ProvisionContext) -> None:
        self._specs = tuple(specs)
        self._context = context
        self._results: dict[int, ProvisionResult] = {}
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._next_look = 0.0
        self._thread = threaded(self._run, "provisioning")

    def start(self) -> None:
        """Start; returns at once."""
        self._thread.start()

    def stop(self, timeout: float = 10.0) -> None:
        """Stop; partial downloads are resumed next time. Waits up to `timeout` seconds."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def wait_for_required(self, timeout: float) -> bool:
        """True as soon as every required model is settled, False after `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._pending_required(), timeout)

    def wait_for_all(self, timeout: float) -> bool:
        """True as soon as every model is settled, False after `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self._results) == len(self._specs), timeout)

    @property
    def ready(self) -> bool:
        """Are all required models there?"""
        with self._changed:
            return all(
                (result := self._results.get(id(spec))) is not None and result.good
                for spec in self._specs
                if not spec.optional
            )

    def look_again(self) -> None:
        """Check whether missing models have arrived by a download request, another worker or a
        person on a Pod. Uses no network, and at most a tenth of the time, since a large file may
        have to be hashed."""
        with self._changed:
            failed = [r.spec for r in self._results.values() if r.state == "failed"]
        began = time.monotonic()
        if not failed or began < self._next_look:
            return
        for spec in failed:
            result = resolve_offline(spec, self._context, self._stop)
            if result is not None:
                self._note(result)
        now = time.monotonic()
        self._next_look = now + 9 * (now - began)

    def results(self) -> tuple[ProvisionResult, ...]:
        """The results so far."""
        with self._changed:
            return tuple(self._results.values())

    def findings(self) -> list[Finding]:
        """Failures, and required models that are still being fetched."""
        with self._changed:
            known, pending = tuple(self._results.values()), self._pending_required()
        found = [f for result in known if (f := result.finding()) is not None]
        if pending:
            found.append(_pending(pending))
        return found or summary(known)

    def _pending_required(self) -> list[ModelSpec]:
        return [s for s in self._specs if not s.optional and id(s) not in self._results]

    def _run(self) -> None:
        try:
            provision(self._specs, self._context, self._stop, self._note)
        except Exception as fault:  # noqa: BLE001 - a thread's fault must be reported, not lost
            _log.error("provisioning stopped: %s", type(fault).__name__)
            for spec in self._specs:
                if id(spec) not in self._results:
                    self._note(ProvisionResult(spec, "failed", problem=crashed(fault)))

    def _note(self, result: ProvisionResult) -> None:
        with self._changed:
            self._results[id(result.spec)] = result
            self._changed.notify_all()


def _pending(specs: Sequence[ModelSpec]) -> Finding:
    names = summarize_list([str(spec.relative_path) for spec in specs])
    return error(
        "provision.pending",
        f"Still being fetched: {names}.",
        "Wait, or raise DOWNLOAD_TIMEOUT to make jobs wait longer; models that may come "
        "later can be marked `optional: true`.",
        models=[str(spec.relative_path) for spec in specs],
    )
