"""Runpod's loop: taking jobs, progress, shutdown. The only room that uses the SDK's internals."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# Modules, not names: `job_loop` imports the SDK, which takes a second.
__all__ = ["describe_local_api", "import_sdk", "job_loop", "job_slots", "progress", "shutdown"]


def import_sdk() -> Any:
    """Import the SDK without its own system checks: they import torch into this process, which
    leaves a CUDA context there, and check the host's memory instead of the container's."""
    os.environ.setdefault("RUNPOD_SKIP_AUTO_SYSTEM_CHECKS", "true")
    os.environ.setdefault("RUNPOD_SKIP_GPU_CHECK", "true")
    os.environ.setdefault("RUNPOD_LOG_LEVEL", "INFO")  # DEBUG, its default, logs whole results
    with _without_cpu_query():
        import runpod

    return runpod


def describe_local_api(describe: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Make the local API's (`--rp_serve_api`) `/openapi.json` what `describe` makes of the SDK's
    own. Does nothing without that API, whose import takes half a second."""
    if "--rp_serve_api" not in sys.argv:
        return
    from runpod.serverless.modules import rp_fastapi

    begin = rp_fastapi.WorkerAPI.__init__

    def with_description(api: Any, config: dict[str, Any]) -> None:
        begin(api, config)
        own = api.rp_app.openapi
        api.rp_app.openapi = lambda: describe(own())

    rp_fastapi.WorkerAPI.__init__ = with_description


@contextmanager
def _without_cpu_query() -> Iterator[None]:
    """Prevent the SDK from querying the CPU's name at import, which starts processes and measures
    ticks for a second."""
    import cpuinfo

    original, cpuinfo.get_cpu_info = cpuinfo.get_cpu_info, dict
    try:
        yield
    finally:
        cpuinfo.get_cpu_info = original
