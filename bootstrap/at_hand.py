"""What can be said of a wanted model without the network: it is on the volume, in the platform's
cache, or something else stands in its place."""

from __future__ import annotations

import threading

from bootstrap.manifest_entry import ModelSpec
from bootstrap.net.errors import DownloadError, Stopped, stopped
from bootstrap.presence import Occupied, find_present
from bootstrap.workplace import Result, Workplace


def at_hand(spec: ModelSpec, place: Workplace, stop: threading.Event) -> Result | None:
    """What became of the model; None when it is to be fetched. Never raises."""
    try:
        found = find_present(spec, place.models, place.also, stop)
        if isinstance(found, Occupied):
            return Result(spec, "failed", found.path, problem=_occupied(found))
        if found is not None:
            return Result(spec, "present", found.path, found.receipt)
        cached = place.cached(spec)
        return None if cached is None else Result(spec, "cached", cached)
    except Stopped:
        return Result(spec, "stopped", problem=stopped())


def _occupied(found: Occupied) -> DownloadError:
    return DownloadError(
        "download.occupied",
        f"{found.path} is there but is not the wanted file: {found.problem.message}",
        f"If it is of no use, remove it (`rm '{found.path}'`) and start again; else correct the "
        "manifest. A file that is there is never replaced.",
    )
