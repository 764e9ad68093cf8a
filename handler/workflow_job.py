"""A workflow job from its request to its reply: inputs on disk → ComfyUI → outputs → reply."""

from __future__ import annotations

import asyncio
import threading
import uuid
from pathlib import Path
from typing import Any

from bootstrap.comfyui import ComfyUI
from bootstrap.log import say
from bootstrap.settings import Settings
from bootstrap.volume import MODELS, Layout
from bootstrap.workdir import WorkDir
from handler import inputs, reply
from handler.deadline import Deadline
from handler.delivery import Delivery
from handler.errors import JobError
from handler.outputs import produced
from handler.requests import WorkflowRequest
from handler.run import Ran, ensure_ready, run_prompt


class WorkflowJobs:
    """Runs workflow requests on one ComfyUI, restarting it after a fault."""

    def __init__(self, settings: Settings, layout: Layout, work: WorkDir, comfyui: ComfyUI) -> None:
        self._settings = settings
        self._layout = layout
        self._work = work
        self._comfyui = comfyui
        self._delivery = Delivery(work, layout)
        self._models = comfyui.launch.comfyui / MODELS

    async def run(self, request: WorkflowRequest) -> dict[str, Any]:
        """The reply of a job that went well. Raises JobError for one that did not."""
        deadline = Deadline(request.max_wait)
        mark = uuid.uuid4().hex[:12]
        placed: list[Path] = []
        try:
            await ensure_ready(self._comfyui, deadline)
            placed = await asyncio.to_thread(self._place, request, mark)
            ran = await run_prompt(
                self._comfyui, request.workflow, deadline, self._models, request.extra_data
            )
            if ran.ended.failure is not None:
                raise ran.ended.failure
            return await asyncio.to_thread(self._reply, request, ran, deadline, mark)
        except JobError:
            self._restart_if_ended()
            await asyncio.to_thread(self._delivery.keep_rest, mark)
            raise
        finally:
            await asyncio.to_thread(inputs.remove, placed)

    def _place(self, request: WorkflowRequest, mark: str) -> list[Path]:
        folder = self._work.input
        placed = inputs.place_images(request.images, request.workflow, folder, mark)
        inputs.fetch_from_volume(request.workflow, self._layout.input, folder)
        return placed

    def _reply(
        self, request: WorkflowRequest, ran: Ran, deadline: Deadline, mark: str
    ) -> dict[str, Any]:
        items, notes = produced(ran.ended.outputs)
        results, warnings = self._delivery.deliver(items, mark)
        kept, more = self._delivery.keep_rest(mark)
        answer = reply.completed(
            results,
            [*request.warnings, *ran.warnings, *notes, *warnings, *more],
            timings={"execution": round(ran.seconds, 3), "total": round(deadline.elapsed, 3)},
            **({"also_kept": kept} if kept else {}),
        )
        return reply.fitted(answer, self._settings.max_reply_mb)

    def _restart_if_ended(self) -> None:
        """Start ComfyUI again while the failed job's reply travels; the next job waits for it."""
        if self._comfyui.ended() is not None:
            threading.Thread(target=self._restart, name="comfyui-restart", daemon=True).start()

    def _restart(self) -> None:
        try:
            self._comfyui.start()
        except OSError as problem:
            say(f"ComfyUI could not be restarted: {problem}")
