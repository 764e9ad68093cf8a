"""A workflow job from its request to its reply: inputs on disk → ComfyUI → outputs → reply."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from bootstrap.boot import Preparation
from bootstrap.core.findings import Finding
from handler.common.blocking import TimeUp
from handler.common.calls import Calls, volume_fault
from handler.common.deadline import Deadline, timeout_error
from handler.common.errors import JobError
from handler.execution import (
    KnownClasses,
    MemoryRelief,
    Prompt,
    Prompts,
    Ran,
    Revival,
    Step,
    of_node,
)
from handler.inputs import Fetcher, JobInputs, VolumeInputs, missing_inputs
from handler.jobs.warmup import LAST
from handler.models.on_demand import ModelSupply
from handler.models.prefetch import JobWeights, Weights
from handler.outputs import GRACE_SECONDS, Delivery, DeliveryOptions, JobOutputs, Produced, produced
from handler.request.parse import WorkflowRequest
from handler.request.workflow import run_anew
from handler.sdk.progress import Progress, has_control_plane
from handler.sdk.shutdown import JobHandle

# As many digits as the true one can have, which is known when the reply's size has been weighed.
_ROOM_FOR_TOTAL = 99999.999
_DELIVERING = "delivering"
_LONG_SECONDS = 0.5
_TOLD_WAITING = 0.05
# What only has to be done some time does not take time from a reply that is being written.
_UNTIL_POSTED = 0.2


@dataclass(frozen=True)
class _Job:
    outputs: JobOutputs
    progress: Progress
    handle: JobHandle

    @property
    def order(self) -> DeliveryOptions:
        return self.outputs.order


class WorkflowJobs:
    """Runs workflow requests on one ComfyUI, restarting it after a fault."""

    def __init__(
        self,
        boot: Preparation,
        supply: ModelSupply | None,
        calls: Calls,
        faults: Sequence[Finding] = (),
    ) -> None:
        """`boot` came as far as starting ComfyUI, and found `faults`."""
        assert boot.layout is not None and boot.layout.comfyui is not None
        assert boot.work is not None and boot.comfyui is not None and boot.recent is not None
        self._supply = supply
        self._settings = boot.settings
        self._layout = boot.layout
        self._work = boot.work
        self._comfyui = boot.comfyui
        self._write_back = boot.write_back
        self._calls = calls
        self._shared_inputs = VolumeInputs(boot.layout.input, boot.work.input, calls.volume)
        self._delivery = Delivery(boot.settings, boot.work, boot.layout, calls)
        self._models = boot.layout.models
        self._known = KnownClasses()
        self._revival = Revival(boot.comfyui, MemoryRelief(boot.settings), calls.control, faults)
        self._prompts = Prompts(boot.comfyui, self._revival, self._models, self._known, calls)
        keep_workflow = (boot.settings.warmup_workflow or "").lower() == LAST
        self._weights = Weights(boot.read_ahead, boot.recent, self._models, keep_workflow)

    def may_try(self, faults: Sequence[Finding]) -> bool:
        """Can a job go ahead in spite of these faults, which the boot found?"""
        return self._revival.may_try(faults)

    async def run(
        self, request: WorkflowRequest, progress: Progress, handle: JobHandle
    ) -> dict[str, Any]:
        """The reply of a job that went well. Raises JobError for one that did not."""
        deadline = handle.deadline = Deadline(request.max_wait)
        mark = uuid.uuid4().hex[:12]
        order = DeliveryOptions(mark, deadline, request.output, request.bucket)
        job = _Job(self._delivery.begin(order), progress, handle)
        fetcher = Fetcher(self._settings, deadline, self._calls.network)
        inputs = JobInputs(self._work.input, mark, fetcher, self._shared_inputs, self._calls.local)
        weights = self._weights.begin(request.workflow)
        has_inputs = inputs.has_files(request.files, request.workflow)
        try:
            handle.stage = "its models and input files were not there yet"
            request = await self._supplied(request, deadline, progress)
            hints: Sequence[JobError] = ()
            if has_inputs:
                hints = await self._place(request, inputs, deadline)
            handle.stage = "the workflow was still running"
            ran, items, notes = await self._produce(request, job, hints)
            handle.computed()
            handle.stage = "its results were not delivered yet"
            warnings = [*request.warnings, *ran.warnings, *notes]
            timings = {"execution": round(ran.seconds, 3), **weights.timings()}
            if deadline.paused >= _TOLD_WAITING:
                timings["waited"] = round(deadline.paused, 3)
            with _told_when_long(progress):
                answer = await self._reply(items, job, warnings, timings, request.seeds)
            self._calls.background.add(self._remember(request, weights))
            return answer
        except (JobError, TimeUp) as problem:
            handle.computed()
            error = problem if isinstance(problem, JobError) else None
            error = error or timeout_error(deadline, handle.stage)
            await self._delivery.keep_rest(job.outputs)
            raise await self._explained(error, request) from None
        except asyncio.CancelledError:
            await asyncio.shield(self._delivery.keep_rest(job.outputs))
            raise
        finally:
            weights.end()
            if has_inputs:
                with suppress(TimeUp):
                    await asyncio.shield(self._calls.local.run(inputs.remove, GRACE_SECONDS))

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
        fault = await self._calls.control.run(
            lambda: volume_fault(self._layout, problem), GRACE_SECONDS
        )
        if fault is not None or self._supply is None:
            return fault or problem
        return await self._supply.explained(problem, request.workflow)

    async def _place(
        self, request: WorkflowRequest, inputs: JobInputs, deadline: Deadline
    ) -> list[JobError]:
        """Put the input files where ComfyUI looks; an explanation for each that is missing. ComfyUI
        decides whether the workflow can do without."""
        await inputs.materialize(request.files, request.workflow, deadline)
        return await self._calls.volume.call_or_fail(
            lambda: missing_inputs(request.workflow, self._work.input, self._layout.input),
            deadline.remaining,
        )

    async def _produce(
        self, request: WorkflowRequest, job: _Job, hints: Sequence[JobError]
    ) -> tuple[Ran, list[Produced], list[str]]:
        """Run the workflow: what it produced, and warnings. Nodes whose results ComfyUI has from
        an earlier job, whose files are gone, run once more. Raises JobError, as `hints` explain it
        where they can."""
        files, with_temp = self._delivery.files, job.order.options.include_temp
        stale: list[str] = []

        def at_end(ran: Ran | None, until: float) -> None:
            items = produced(ran.ended.outputs, with_temp)[0] if ran is not None else []
            stale[:] = files.stale_nodes(items, ran.began) if ran is not None else []
            files.claim(job.outputs.claim, until, files.found(items))

        def tell(step: Step) -> None:
            job.progress.tell(step.stage, step.percent, **step.more)

        prompt = Prompt(
            request.workflow,
            request.extra_data,
            request.targets,
            hints,
            tell,
            job.outputs.eager.saved,
        )
        for again in (False, True):
            try:
                ran = await self._prompts.run(
                    prompt, job.order.deadline, job.handle, at_end, request.retry_on_oom
                )
            except JobError as error:
                raise of_node(hints, error) from None
            if again or not stale or not set(stale) <= set(prompt.workflow):
                return ran, *produced(ran.ended.outputs, with_temp)
            anew = run_anew(prompt.workflow, stale, job.order.mark)
            prompt = replace(prompt, workflow=anew)
        raise AssertionError("the second round always returns")

    async def _reply(
        self,
        items: list[Produced],
        job: _Job,
        warnings: list[str],
        timings: dict[str, Any],
        seeds: Mapping[str, int],
    ) -> dict[str, Any]:
        more: dict[str, Any] = {"seeds": dict(seeds)} if seeds else {}
        timings["total"] = _ROOM_FOR_TOTAL
        answer = await self._delivery.deliver(items, job.outputs, warnings, timings=timings, **more)
        timings["total"] = round(job.order.deadline.elapsed, 3)
        return answer

    async def _remember(self, request: WorkflowRequest, weights: JobWeights) -> None:
        """While the reply travels: what was used, for the next cold start, and what nodes wrote."""
        repeatable = None if request.files else request.workflow
        await asyncio.sleep(_UNTIL_POSTED if has_control_plane() else 0)
        if self._write_back is not None:
            self._write_back.soon()
        with suppress(OSError, TimeUp):
            await self._calls.volume.call(
                lambda: self._weights.went_well(weights, repeatable), GRACE_SECONDS
            )


@contextmanager
def _told_when_long(progress: Progress) -> Iterator[None]:
    """The caller hears of a delivery that takes a while; a short one would only wait for that."""
    telling = asyncio.get_running_loop().call_later(_LONG_SECONDS, progress.tell, _DELIVERING)
    try:
        yield
    finally:
        telling.cancel()
