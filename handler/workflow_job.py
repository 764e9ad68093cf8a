"""A workflow job from its request to its reply: inputs on disk → ComfyUI → outputs → reply."""

from __future__ import annotations

import asyncio
import threading
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

from bootstrap.log import say
from bootstrap.preparation import Preparation
from bootstrap.volume import MODELS
from handler import inputs, reply
from handler.deadline import Deadline
from handler.delivery import Delivery
from handler.errors import JobError
from handler.model_supply import ModelSupply
from handler.outputs import produced
from handler.progress import Progress
from handler.requests import WorkflowRequest
from handler.run import Ran, ensure_ready, run_prompt
from handler.volume_state import volume_fault
from handler.warmup import LAST
from handler.weights import JobWeights, Weights


class WorkflowJobs:
    """Runs workflow requests on one ComfyUI, restarting it after a fault."""

    def __init__(self, boot: Preparation, supply: ModelSupply | None) -> None:
        """`boot` came as far as starting ComfyUI."""
        assert boot.layout is not None and boot.layout.comfyui is not None
        assert boot.work is not None and boot.comfyui is not None and boot.recent is not None
        self._supply = supply
        self._settings = boot.settings
        self._layout = boot.layout
        self._work = boot.work
        self._comfyui = boot.comfyui
        self._keeper = boot.keeper
        self._delivery = Delivery(boot.work, boot.layout)
        self._models = boot.layout.comfyui / MODELS
        keep_workflow = (boot.settings.warmup_workflow or "").lower() == LAST
        self._weights = Weights(boot.read_ahead, boot.recent, self._models, keep_workflow)

    async def run(self, request: WorkflowRequest, progress: Progress) -> dict[str, Any]:
        """The reply of a job that went well. Raises JobError for one that did not."""
        deadline = Deadline(request.max_wait)
        mark = uuid.uuid4().hex[:12]
        placed: list[Path] = []
        weights = self._weights.begin(request.workflow)
        try:
            request = await self._supplied(request, deadline, progress)
            await ensure_ready(self._comfyui, deadline)
            placed = await asyncio.to_thread(self._place, request, mark)
            ran = await run_prompt(
                self._comfyui, request.workflow, deadline, self._models, request.extra_data
            )
            if ran.ended.failure is not None:
                raise ran.ended.failure
            answer = await asyncio.to_thread(self._reply, request, ran, weights, deadline, mark)
            self._remember(request, weights)
            return answer
        except JobError as problem:
            self._restart_if_ended()
            await asyncio.to_thread(self._delivery.keep_rest, mark)
            raise await self._explained(problem, request) from None
        finally:
            await asyncio.to_thread(inputs.remove, placed)

    async def _supplied(
        self, request: WorkflowRequest, deadline: Deadline, progress: Progress
    ) -> WorkflowRequest:
        """The request, its models there as far as the manifest knows them."""
        if self._supply is None:
            return request
        fetched = await self._supply.bring(request.workflow, deadline, progress)
        told = tuple(f"{model} was fetched for this job" for model in fetched)
        return replace(request, warnings=(*request.warnings, *told))

    async def _explained(self, problem: JobError, request: WorkflowRequest) -> JobError:
        """The error to tell: a volume that went is behind many others."""
        fault = await asyncio.to_thread(volume_fault, self._layout, problem)
        if fault is not None or self._supply is None:
            return fault or problem
        return await self._supply.explained(problem, request.workflow)

    def _place(self, request: WorkflowRequest, mark: str) -> list[Path]:
        folder = self._work.input
        placed = inputs.place_images(request.images, request.workflow, folder, mark)
        inputs.fetch_from_volume(request.workflow, self._layout.input, folder)
        return placed

    def _reply(
        self,
        request: WorkflowRequest,
        ran: Ran,
        weights: JobWeights | None,
        deadline: Deadline,
        mark: str,
    ) -> dict[str, Any]:
        items, notes = produced(ran.ended.outputs)
        results, warnings = self._delivery.deliver(items, mark)
        kept, more = self._delivery.keep_rest(mark)
        answer = reply.completed(
            results,
            [*request.warnings, *ran.warnings, *notes, *warnings, *more],
            timings={
                "execution": round(ran.seconds, 3),
                "total": round(deadline.elapsed, 3),
                **(weights.timings() if weights is not None else {}),
            },
            **({"also_kept": kept} if kept else {}),
        )
        return reply.fitted(answer, self._settings.max_reply_mb)

    def _remember(self, request: WorkflowRequest, weights: JobWeights | None) -> None:
        """While the reply travels: what was used, for the next cold start, and what nodes wrote."""
        repeatable = None if request.images else request.workflow
        threading.Thread(
            target=self._weights.went_well, args=(weights, repeatable), daemon=True
        ).start()
        if self._keeper is not None:
            self._keeper.soon()

    def _restart_if_ended(self) -> None:
        """Start ComfyUI again while the failed job's reply travels; the next job waits for it."""
        if self._comfyui.ended() is not None:
            threading.Thread(target=self._restart, name="comfyui-restart", daemon=True).start()

    def _restart(self) -> None:
        try:
            self._comfyui.start()
        except OSError as problem:
            say(f"ComfyUI could not be restarted: {problem}")
