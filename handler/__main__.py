"""`python -m handler`: boot, then serve jobs with the Runpod SDK. The container's command."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bootstrap.boot import Boot, BootReport, boot_text
from bootstrap.config import read_settings
from bootstrap.core.findings import Finding, Outcome, errors_in
from bootstrap.core.log import say
from handler.warmup import WarmUp


def main() -> None:
    """Boot and serve. What takes jobs is imported (the SDK alone a second) while ComfyUI starts."""
    boot = Boot(*read_settings(), warm_up=WarmUp())
    atexit.register(boot.stop)
    boot.begin()
    with boot.timeline.stage("import SDK"):
        runpod = _import_sdk()
        from handler.intake import Hooks, with_slots
        from handler.shutdown import FORCE_SECONDS, force_end_after_sigterm
        from handler.worker import Worker
    report = boot.finish()
    say("boot report:\n" + boot_text(report))
    if report.outcome is Outcome.UNFIT:
        _register_fitness_check(runpod, report)
    # A worker that is stopped after a job must not hold another one.
    settings = boot.settings
    worker = Worker(boot, report, 0 if settings.refresh_worker else settings.job_prefetch)
    hooks = Hooks(
        worker.slots,
        at_start=boot.loop_pulse.begin,
        at_end=worker.shutdown.begin,
        finish=worker.finish,
        grace=settings.shutdown_grace,
    )
    force_end_after_sigterm(settings.shutdown_grace + FORCE_SECONDS)
    runpod.serverless.start(with_slots({"handler": worker.handle}, hooks))


def _import_sdk() -> Any:
    """The SDK, without its own system checks: they import torch into this process, which leaves a
    CUDA context there for good, and look at the host's memory instead of the container's."""
    os.environ.setdefault("RUNPOD_SKIP_AUTO_SYSTEM_CHECKS", "true")
    os.environ.setdefault("RUNPOD_SKIP_GPU_CHECK", "true")
    os.environ.setdefault("RUNPOD_LOG_LEVEL", "INFO")  # DEBUG, its default, logs whole results
    with _processor_unasked():
        import runpod

    return runpod


@contextmanager
def _processor_unasked() -> Iterator[None]:
    """The SDK asks for the processor's name as it is imported, for its debugger's report; in other
    processes, and for a second in which the processor's ticks are counted."""
    import cpuinfo

    asked, cpuinfo.get_cpu_info = cpuinfo.get_cpu_info, dict
    try:
        yield
    finally:
        cpuinfo.get_cpu_info = asked


def _register_fitness_check(runpod: Any, report: BootReport) -> None:
    """Let Runpod take another machine, and show why."""
    faults = [f for f in errors_in(report.findings) if f.host_fault]

    def machine_is_fit() -> None:
        raise RuntimeError(_reason(faults))

    runpod.serverless.register_fitness_check(machine_is_fit)


def _reason(faults: list[Finding]) -> str:
    return "; ".join(f"{fault.code}: {fault.message}" for fault in faults)


if __name__ == "__main__":
    main()
