"""Runpod's loop: taking jobs, progress, shutdown. The only room that knows the SDK's internals."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Modules, not names: `job_loop` imports the SDK, which takes a second.
__all__ = ["import_sdk", "job_loop", "job_slots", "progress", "shutdown"]


def import_sdk() -> Any:
    """The SDK, without its own system checks: they import torch into this process, which leaves a
    CUDA context there for good, and look at the host's memory instead of the container's."""
    os.environ.setdefault("RUNPOD_SKIP_AUTO_SYSTEM_CHECKS", "true")
    os.environ.setdefault("RUNPOD_SKIP_GPU_CHECK", "true")
    os.environ.setdefault("RUNPOD_LOG_LEVEL", "INFO")  # DEBUG, its default, logs whole results
    with _without_cpu_query():
        import runpod

    return runpod


@contextmanager
def _without_cpu_query() -> Iterator[None]:
    """The SDK queries the CPU's name at import, for its debugger's report: that starts processes
    and counts the CPU's ticks for a second."""
    import cpuinfo

    original, cpuinfo.get_cpu_info = cpuinfo.get_cpu_info, dict
    try:
        yield
    finally:
        cpuinfo.get_cpu_info = original
