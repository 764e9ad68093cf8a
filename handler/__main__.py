"""`python -m handler`: boot, then serve jobs with the Runpod SDK. The container's command."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
from typing import Any

from bootstrap.boot import Boot, BootReport, log_report
from bootstrap.config import read_settings
from bootstrap.core import log
from bootstrap.core.findings import Outcome, errors_in
from handler.sdk import check_arguments, complete_local_api, import_sdk


def main() -> None:
    """Boot and serve. The job loop is imported (the SDK alone takes a second) while ComfyUI
    starts. All that is imported stays: collecting garbage meanwhile takes a fifth of the time."""
    gc.disable()
    settings, problems = read_settings()
    collected = bool(os.environ.get("RUNPOD_ENDPOINT_ID"))  # as its SDK decides
    log.set_up(settings.log_level, settings.comfy_log_level, as_json=collected)
    check_arguments()
    warm_up = None
    if settings.warmup_workflow is not None:
        from handler.jobs.warmup import WarmUp

        warm_up = WarmUp(settings.warmup_workflow)
    boot = Boot(settings, problems, os.environ, warm_up)
    atexit.register(boot.stop)
    boot.begin()
    with boot.timeline.stage("import SDK"):
        runpod = import_sdk()
        from handler.jobs.worker import Worker
        from handler.sdk.job_loop import Hooks, with_slots
        from handler.sdk.shutdown import FORCE_SECONDS, force_end_after_sigterm
    gc.freeze()
    gc.enable()
    runtime = boot.finish()
    report = runtime.report
    log_report(report)
    if report.outcome is Outcome.UNFIT:
        _register_fitness_check(runpod, report)
    # A worker that is stopped after a job must not take another one.
    worker = Worker(runtime, 0 if settings.refresh_worker else settings.job_prefetch)
    hooks = Hooks(
        worker.slots,
        at_start=runtime.health.loop_watchdog.begin,
        at_end=worker.shutdown.begin,
        finish=worker.finish,
        grace=settings.shutdown_grace,
    )
    force_end_after_sigterm(settings.shutdown_grace + FORCE_SECONDS)
    complete_local_api(worker.described)
    # The local API would die of the signal without cleaning up; Runpod's loop sets its own handler.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    runpod.serverless.start(with_slots({"handler": worker.handle}, hooks))


def _register_fitness_check(runpod: Any, report: BootReport) -> None:
    """Let Runpod use another machine, and show why."""
    faults = [f for f in errors_in(report.findings) if f.host_fault]

    def machine_is_fit() -> None:
        raise RuntimeError("; ".join(f"{fault.code}: {fault.message}" for fault in faults))

    runpod.serverless.register_fitness_check(machine_is_fit)


if __name__ == "__main__":
    log.use_utf8()
    main()
