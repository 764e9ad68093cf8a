"""`Worker.handle(job)`: one job, from the SDK's dict to the reply, behind one error boundary."""

from __future__ import annotations

import asyncio
import os
import threading
import traceback
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bootstrap.boot import Boot, BootReport
from bootstrap.comfyui import ComfyUI
from bootstrap.findings import Finding, errors_in
from bootstrap.log import say
from bootstrap.volume import MODELS
from bootstrap.workdir import WorkDir
from handler import inputs, reply
from handler.deadline import Deadline
from handler.delivery import Delivery
from handler.errors import JobError
from handler.outputs import produced
from handler.requests import WorkflowRequest, parse_request
from handler.run import ensure_ready, run_prompt

_RESTART_WORTHY = ("comfyui.died", "comfyui.unreachable", "job.timeout")


class Worker:
    """Answers jobs on what a boot has made."""

    def __init__(self, boot: Boot, report: BootReport) -> None:
        self._settings = boot.settings
        self._faults: tuple[Finding, ...] = errors_in(report.findings)
        self._layout = boot.layout
        self._work = boot.work
        self._comfyui = boot.comfyui
        if boot.work is not None and boot.layout is not None:
            self._delivery = Delivery(boot.work, boot.layout)

    async def handle(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """The SDK's handler: always a reply, never an exception but a cancellation."""
        try:
            answer = await self._answer(job)
        except JobError as error:
            say(f"job {job.get('id')}: {error.code}: {error}")
            answer = reply.failed(error)
        except Exception as problem:  # noqa: BLE001  # the boundary: the worker lives on
            say(traceback.format_exc())
            answer = reply.failed(_internal(problem))
        posted: dict[str, Any] = reply.postable(answer)
        return posted

    async def _answer(self, job: Mapping[str, Any]) -> dict[str, Any]:
        if self._faults:
            raise _degraded(self._faults)
        request = parse_request(job.get("input"), self._settings)
        deadline = Deadline(request.max_wait)
        assert self._comfyui is not None and self._work is not None
        try:
            await ensure_ready(self._comfyui, deadline)
            return await self._run(self._comfyui, self._work, request, deadline)
        except JobError as error:
            if error.code in _RESTART_WORTHY and self._comfyui.ended() is not None:
                _restart_meanwhile(self._comfyui)
            raise

    async def _run(
        self, comfyui: ComfyUI, work: WorkDir, request: WorkflowRequest, deadline: Deadline
    ) -> dict[str, Any]:
        """Inputs on disk → ComfyUI → outputs → reply; the job's own input files go afterwards."""
        mark = uuid.uuid4().hex[:12]
        placed: list[Path] = []
        try:
            placed = await asyncio.to_thread(self._place, request, work.input, mark)
            ran = await run_prompt(comfyui, request.workflow, deadline, self._models())
            if ran.ended.failure is not None:
                raise ran.ended.failure
            items, notes = produced(ran.ended.outputs)
            results, warnings = await asyncio.to_thread(self._delivery.deliver, items, mark)
            kept, more = await asyncio.to_thread(self._delivery.keep_rest, mark)
        finally:
            await asyncio.to_thread(inputs.remove, placed)
        answer = reply.completed(
            results,
            [*request.warnings, *ran.warnings, *notes, *warnings, *more],
            timings={"execution": round(ran.seconds, 3), "total": round(deadline.elapsed, 3)},
            **({"also_kept": kept} if kept else {}),
        )
        return reply.fitted(answer, self._settings.max_reply_mb)

    def _place(self, request: WorkflowRequest, folder: Path, mark: str) -> list[Path]:
        placed = inputs.place_images(request.images, request.workflow, folder, mark)
        if self._layout is not None:
            inputs.fetch_from_volume(request.workflow, self._layout.input, folder)
        return placed

    def _models(self) -> Path:
        assert self._layout is not None and self._layout.comfyui is not None
        return self._layout.comfyui / MODELS


def _restart_meanwhile(comfyui: ComfyUI) -> None:
    """Start ComfyUI again while the failed job's reply travels; the next job waits for it."""

    def start() -> None:
        try:
            comfyui.start()
        except OSError as problem:
            say(f"ComfyUI could not be restarted: {problem}")

    threading.Thread(target=start, name="comfyui-restart", daemon=True).start()


def _degraded(faults: tuple[Finding, ...]) -> JobError:
    """The first fault, for whoever reads one sentence; all of them in the details."""
    first = faults[0]
    return JobError(
        first.code,
        f"This worker cannot run jobs: {first.message}",
        first.fix,
        findings=[fault.as_dict() for fault in faults],
        worker_id=os.environ.get("RUNPOD_POD_ID", ""),
    )


def _internal(problem: Exception) -> JobError:
    return JobError(
        "worker.internal",
        f"The worker failed: {type(problem).__name__}: {problem}",
        "Please report this with the worker's log; the worker itself goes on.",
    )
