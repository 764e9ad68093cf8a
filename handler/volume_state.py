"""Is the volume still there? Asked when a job fails: a mount can go, or fall silent."""

from __future__ import annotations

import os

from bootstrap.core.concurrency import SilentError, Together
from bootstrap.volume import Layout
from handler.errors import JobError
from handler.volume_watchdog import VOLUME_FIX

CODES = {  # volume.silent is the doctor's
    "volume.gone": "The volume was there when the worker started, and is not any more",
}
_PATIENCE = 2.0


def volume_fault(layout: Layout, cause: JobError) -> JobError | None:
    """The error to tell instead of `cause` when the volume is gone or silent; None when it is
    there, or `cause` tells already. Blocks for two seconds at most."""
    if cause.code == "volume.silent":
        return None
    probe = layout.root
    if layout.comfyui is not None and layout.comfyui_on_volume:
        probe = layout.comfyui / "main.py"  # a mount point stays when its mount goes
    try:
        if Together(_PATIENCE).one(lambda: os.path.exists(probe)):
            return None
    except SilentError:
        return _error("volume.silent", f"does not answer ({probe}, {_PATIENCE:g} s)", cause)
    return _error("volume.gone", f"is no longer there ({probe} is missing)", cause)


def _error(code: str, state: str, cause: JobError) -> JobError:
    message = f"The volume {state}, and the job failed: {cause.message}"
    return JobError(code, message, VOLUME_FIX, cause=cause.code, **cause.details)
