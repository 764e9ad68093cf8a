"""A workflow job from its request to its reply: inputs on disk → ComfyUI → outputs → reply."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from dataclasses import replace
from typing import Any

from bootstrap.comfyui import ComfyUI
from bootstrap.log import say
from bootstrap.settings import Settings
from bootstrap.volume import MODELS, Layout
from bootstrap.workdir import WorkDir
from handler.comfy_client import connect
from handler.deadline import Deadline
from handler.delivery import Delivery
from handler.errors import JobError
from handler.fetch_inputs import Fetcher
from handler.inputs import JobInputs, fetch_from_volume
from handler.order import Order
from handler.outputs import Produced, produced
from handler.preflight import KnownClasses, all_at_once, missing_inputs
from handler.requests import WorkflowRequest
from handler.run import Ran, ensure_ready, run_prompt
from handler.workflow import Workflow, run_anew

# As many digits as the true one can have, which is known when the reply's size has been weighed.
_ROOM_FOR_TOTAL = 99999.999


class WorkflowJobs:
    """Runs workflow requests on one ComfyUI, restarting it after a fault."""

    def __init__(self, settings: Settings, layout: Layout, work: WorkDir, comfyui: ComfyUI) -> None:
        self._settings = settings
        self._layout = layout
        self._work = work
        self._comfyui = comfyui
        self._delivery = Delivery(settings, work, layout)
        self._models = comfyui.launch.comfyui / MODELS
        self._known = KnownClasses()

    async def run(self, request: WorkflowRequest) -> dict[str, Any]:
        """The reply of a job that went well. Raises JobError for one that did not."""
        deadline = Deadline(request.max_wait)
        mark = uuid.uuid4().hex[:12]
        order = Order(mark, deadline, request.output, request.bucket)
        inputs = JobInputs(self._work.input, mark, Fetcher(self._settings, deadline))
        try:
            await ensure_ready(self._comfyui, deadline)
            await asyncio.to_thread(self._place, request, inputs)
            await self._refuse_missing(request.workflow)
            ran, items, notes = await self._produce(request, order)
            order = replace(order, ended=ran.ended.at)
            warnings = [*request.warnings, *ran.warnings, *notes]
            return await asyncio.to_thread(self._reply, items, order, warnings, ran.seconds)
        except JobError as error:
            self._restart_if_ended()
            if error.code.startswith(("job.", "comfyui.")):  # it may have written something
                await asyncio.to_thread(self._delivery.keep_rest, order)
            raise
        finally:
            await asyncio.to_thread(inputs.remove)

    def _place(self, request: WorkflowRequest, inputs: JobInputs) -> None:
        inputs.place(request.files, request.workflow)
        fetch_from_volume(request.workflow, self._layout.input, self._work.input)

    async def _refuse_missing(self, workflow: Workflow) -> None:
        """Name everything that is missing at once; ComfyUI would stop at the first."""
        problems = await asyncio.to_thread(
            missing_inputs, workflow, self._work.input, self._layout.input
        )
        if problems:
            async with connect(self._comfyui.url) as client:
                known = await self._known.names(client, self._comfyui.starts)
            raise all_at_once(problems, workflow, known)

    async def _produce(
        self, request: WorkflowRequest, order: Order
    ) -> tuple[Ran, list[Produced], list[str]]:
        """Run the workflow: what it produced, and warnings. Nodes whose results ComfyUI has from
        an earlier job, whose files are gone, run once more."""
        workflow = request.workflow
        for again in (False, True):
            started = time.time()
            ran = await self._run(workflow, order.deadline)
            items, notes = produced(ran.ended.outputs, order.options.include_temp)
            stale = await asyncio.to_thread(self._delivery.files.stale_nodes, items, started)
            if again or not stale or not set(stale) <= set(workflow):
                return ran, items, notes
            workflow = run_anew(workflow, stale, order.mark)
        raise AssertionError("the second round always returns")

    async def _run(self, workflow: Workflow, deadline: Deadline) -> Ran:
        ran = await run_prompt(self._comfyui, workflow, deadline, self._models, self._known)
        if ran.ended.failure is not None:
            raise ran.ended.failure
        return ran

    def _reply(
        self, items: list[Produced], order: Order, warnings: list[str], seconds: float
    ) -> dict[str, Any]:
        timings = {"execution": round(seconds, 3), "total": _ROOM_FOR_TOTAL}
        answer = self._delivery.deliver(items, order, warnings, timings=timings)
        timings["total"] = round(order.deadline.elapsed, 3)
        return answer

    def _restart_if_ended(self) -> None:
        """Start ComfyUI again while the failed job's reply travels; the next job waits for it."""
        if self._comfyui.ended() is not None:
            threading.Thread(target=self._restart, name="comfyui-restart", daemon=True).start()

    def _restart(self) -> None:
        try:
            self._comfyui.start()
        except OSError as problem:
            say(f"ComfyUI could not be restarted: {problem}")
