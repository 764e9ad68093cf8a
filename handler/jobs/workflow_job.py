"""A workflow job from its request to its reply: inputs on disk → ComfyUI → outputs → reply."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any

from bootstrap.boot import Serving
from bootstrap.core.concurrency import BoundedCaller, VolumeTimeout
from bootstrap.core.findings import Finding
from bootstrap.nodes.node_map import where_nodes_are
from bootstrap.volume import Layout
from handler.common.blocking import RESPONSE_SECONDS, Calls, TimeUp
from handler.common.errors import (
    VOLUME_FIX,
    Deadline,
    JobError,
    VolumeSilentError,
    timeout_error,
)
from handler.execution import (
    ComfyRecovery,
    KnownClasses,
    MemoryRelief,
    ProgressUpdate,
    Prompt,
    PromptExecutor,
    PromptResult,
    UnknownNode,
    hint_for,
    memory_gauge,
    with_origins,
    with_withheld,
)
from handler.inputs import Fetcher, JobInputs, VolumeInputs, missing_inputs
from handler.jobs.warmup import LAST
from handler.models.on_demand import ModelSupply, Supplied
from handler.models.prefetch import JobPrefetch, ModelPrefetcher
from handler.outputs import (
    GRACE_SECONDS,
    Delivery,
    DeliveryOptions,
    JobOutputs,
    Previews,
    Produced,
    produced,
)
from handler.request.parse import WorkflowRequest
from handler.request.workflow import Workflow
from handler.sdk.progress import Progress, has_control_plane
from handler.sdk.shutdown import JobHandle

CODES = {
    # volume.silent is the doctor's code
    "volume.gone": "The volume was there when the worker started, but no longer is",
}
# As many digits as the real number may have, which is known only after the reply's size.
_ROOM_FOR_TOTAL = 99999.999
_DELIVERING = "delivering"
_LONG_SECONDS = 0.5
_REPORTED_WAIT = 0.05
# Background work waits until the reply has probably been sent.
_UNTIL_POSTED = 0.2


@dataclass
class _Job:
    """A job in progress. `inputs` is None if it has no input files."""

    request: WorkflowRequest
    outputs: JobOutputs
    progress: Progress
    handle: JobHandle
    previews: Previews
    inputs: JobInputs | None
    prefetch: JobPrefetch

    @property
    def workflow(self) -> Workflow:
        return self.request.workflow

    @property
    def deadline(self) -> Deadline:
        return self.outputs.options.deadline


class WorkflowJobs:
    """Runs workflow requests on one ComfyUI, which is restarted after a fault."""

    def __init__(
        self,
        serving: Serving,
        supply: ModelSupply | None,
        calls: Calls,
        faults: Sequence[Finding],
        withheld: Sequence[str],
    ) -> None:
        """`faults` are the boot's; `withheld` are the names of variables that are withheld from
        ComfyUI."""
        settings, layout, comfyui = serving.settings, serving.layout, serving.comfyui
        self._supply = supply
        self._withheld = withheld
        self._settings = settings
        self._layout = layout
        self._work = serving.work
        self._comfyui = comfyui
        self._write_back = serving.write_back
        self._calls = calls
        self._shared_inputs = VolumeInputs(layout, serving.work.input, calls.volume)
        self._delivery = Delivery(settings, serving.work, layout, calls)
        self._models = layout.models
        self._known = KnownClasses()
        self._uncomputed: set[JobHandle] = set()
        relief = MemoryRelief(settings, memory_gauge())
        self._recovery = ComfyRecovery(comfyui, relief, calls.control, faults)
        self._executor = PromptExecutor(comfyui, self._recovery, self._models, self._known, calls)
        keep_workflow = (settings.warmup_workflow or "").lower() == LAST
        self._prefetcher = ModelPrefetcher(
            serving.read_ahead, serving.recent, self._models, keep_workflow
        )

    @property
    def load(self) -> int:
        """The number of jobs that ComfyUI is not done with."""
        return len(self._uncomputed)

    def _computed(self, handle: JobHandle) -> None:
        self._uncomputed.discard(handle)
        handle.computed()

    def can_retry(self, faults: Sequence[Finding]) -> bool:
        """Can a job run in spite of these faults of the boot?"""
        return self._recovery.can_retry(faults)

    async def run(
        self, request: WorkflowRequest, progress: Progress, handle: JobHandle
    ) -> dict[str, Any]:
        """The reply of a successful job. Raises JobError if it fails."""
        supply = self._supply
        async with nullcontext() if supply is None else supply.in_use(request.workflow):
            return await self._run(request, progress, handle)

    async def _run(
        self, request: WorkflowRequest, progress: Progress, handle: JobHandle
    ) -> dict[str, Any]:
        job = self._begin(request, progress, handle)
        try:
            return await self._answer(job)
        except Exception as problem:
            self._computed(handle)
            kept, _ = await self._delivery.keep_rest(job.outputs)
            if isinstance(problem, TimeUp):
                problem = timeout_error(job.deadline, handle.stage)
            if not isinstance(problem, JobError):
                raise
            error = await self._explained(problem, job.workflow)
            if kept:
                error.details = {**error.details, "also_kept": kept}
            raise error from None
        except asyncio.CancelledError:
            await asyncio.shield(self._delivery.keep_rest(job.outputs))
            raise
        finally:
            self._uncomputed.discard(handle)
            job.previews.end()
            job.prefetch.end()
            if job.inputs is not None:
                with suppress(TimeUp, OSError):
                    removing = self._calls.local.run(job.inputs.remove, GRACE_SECONDS)
                    await asyncio.shield(removing)

    def _begin(self, request: WorkflowRequest, progress: Progress, handle: JobHandle) -> _Job:
        deadline = handle.deadline = Deadline(request.max_wait)
        job_tag, local = uuid.uuid4().hex[:12], self._calls.local
        inputs = None
        if JobInputs.has_files(request.files, request.workflow):
            fetcher = Fetcher(self._settings, deadline, self._calls.network, request.bucket)
            inputs = JobInputs(self._work.input, job_tag, fetcher, self._shared_inputs, local)
        options = DeliveryOptions(job_tag, deadline, request.output, request.bucket)
        job = _Job(
            request,
            self._delivery.begin(options),
            progress,
            handle,
            Previews(request.progress, progress.preview, local),
            inputs,
            self._prefetcher.begin(request.workflow),
        )
        self._uncomputed.add(handle)
        return job

    async def _answer(self, job: _Job) -> dict[str, Any]:
        job.handle.stage = "its models and input files were not there yet"
        supplied = await self._supply_models(job)
        hints = [*supplied.hints, *await self._place_inputs(job)]
        job.handle.stage = "the workflow was still running"
        result, items, notes = await self._produce(job, hints)
        self._computed(job.handle)
        job.handle.stage = "its results were not delivered yet"
        warnings = [*job.request.warnings, *result.warnings, *notes]
        timings = {"execution": round(result.seconds, 3), **job.prefetch.timings()}
        if supplied.seconds:
            timings["models"] = round(supplied.seconds, 3)
        if job.deadline.paused >= _REPORTED_WAIT:
            timings["waited"] = round(job.deadline.paused, 3)
        with _reported_when_long(job.progress):
            answer = await self._reply(items, job, warnings, timings)
        self._calls.background.add(self._remember(job))
        return answer

    async def _supply_models(self, job: _Job) -> Supplied:
        """Provide its models from the manifest or by address."""
        if self._supply is None:
            return Supplied()
        supplied = await self._supply.ensure_models(job.workflow, job.deadline, job.progress)
        notes = tuple(f"{model} was fetched for this job" for model in supplied.fetched)
        job.request = replace(job.request, warnings=(*job.request.warnings, *notes))
        if supplied.renamed:
            job.prefetch.end()
            job.prefetch = self._prefetcher.begin(job.workflow)
        return supplied

    async def _explained(self, problem: JobError, workflow: Workflow) -> JobError:
        """The error to report: a missing volume causes many others."""
        problem = with_withheld(problem, self._withheld, self._settings.comfyui_env_pass)
        fault = None
        with suppress(TimeUp):
            fault = await self._calls.control.run(
                lambda: volume_fault(self._layout, problem), GRACE_SECONDS
            )
        if isinstance(problem, UnknownNode) and fault is None:
            problem = await self._with_origins(problem)
        if fault is not None or self._supply is None:
            return fault or problem
        return await self._supply.explained(problem, workflow)

    async def _with_origins(self, problem: UnknownNode) -> UnknownNode:
        """Add the packs that have the missing nodes, by the map on the volume."""
        if not problem.classes:
            return problem
        root, nodes = self._layout.root, self._layout.custom_nodes
        try:
            date, origins = await self._calls.volume.call(
                lambda: where_nodes_are(root, nodes, problem.classes), GRACE_SECONDS
            )
        except (OSError, TimeUp):
            return problem
        return with_origins(problem, date, origins)

    async def _place_inputs(self, job: _Job) -> list[JobError]:
        """Put the input files where ComfyUI looks; returns an explanation for each missing one.
        ComfyUI decides whether the workflow needs it."""
        if job.inputs is None:
            return []
        await job.inputs.materialize(job.request.files, job.workflow, job.deadline)
        return await self._calls.volume.call_or_fail(
            lambda: missing_inputs(job.workflow, self._work.input, self._layout.input),
            job.deadline.remaining,
        )

    async def _produce(
        self, job: _Job, hints: Sequence[JobError]
    ) -> tuple[PromptResult, list[Produced], list[str]]:
        """Run the workflow; returns what it produced, and warnings. Nodes with cached results whose
        files are gone run again. Raises JobError, explained by `hints` if possible."""
        request, files = job.request, self._delivery.files
        with_temp = request.output.include_temp
        stale: list[str] = []

        def at_end(result: PromptResult | None, cutoff: float) -> None:
            items = produced(result.history.outputs, with_temp)[0] if result is not None else []
            nodes = files.stale_nodes(items, result.started_at) if result is not None else []
            # A node from an expansion has an id such as `5.0.1`.
            stale[:] = [n for n in nodes if {n, n.partition(".")[0]} & set(request.workflow)]
            files.claim(job.outputs.claim, cutoff, files.found(items))

        def on_progress(update: ProgressUpdate) -> None:
            job.progress.update(update.stage, update.percent, **update.more)

        prompt = Prompt(
            request.workflow,
            request.extra_data,
            request.targets,
            hints=hints,
            on_progress=on_progress,
            on_output=job.outputs.eager.on_output,
            on_binary=job.previews.on_frame,
        )
        for again in (False, True):
            try:
                result = await self._executor.run(
                    prompt, job.deadline, job.handle, at_end, request.retry_on_oom
                )
            except JobError as error:
                raise hint_for(hints, error) from None
            if again or not stale:
                return result, *produced(result.history.outputs, with_temp)
            prompt = replace(prompt, rerun=tuple(stale))
        raise AssertionError("the second round always returns")

    async def _reply(
        self,
        items: list[Produced],
        job: _Job,
        warnings: list[str],
        timings: dict[str, Any],
    ) -> dict[str, Any]:
        seeds = job.request.seeds
        more: dict[str, Any] = {"seeds": dict(seeds)} if seeds else {}
        timings["total"] = _ROOM_FOR_TOTAL
        answer = await self._delivery.deliver(items, job.outputs, warnings, timings=timings, **more)
        timings["total"] = round(job.deadline.elapsed, 3)
        return answer

    async def _remember(self, job: _Job) -> None:
        """While the reply is sent: record the models used, for the next cold start, and write back
        what nodes wrote."""
        repeatable = None if job.request.files else job.workflow
        await asyncio.sleep(_UNTIL_POSTED if has_control_plane() else 0)
        if self._write_back is not None:
            self._write_back.soon()
        with suppress(OSError, TimeUp):
            await self._calls.volume.call(
                lambda: self._prefetcher.record_use(job.prefetch, repeatable), GRACE_SECONDS
            )


@contextmanager
def _reported_when_long(progress: Progress) -> Iterator[None]:
    """Report a long delivery; a short one would only be delayed by that."""
    reporting = asyncio.get_running_loop().call_later(_LONG_SECONDS, progress.update, _DELIVERING)
    try:
        yield
    finally:
        reporting.cancel()


def volume_fault(layout: Layout, cause: JobError) -> JobError | None:
    """The error to report instead of `cause` if the volume is gone or does not respond; None if it
    is there, or `cause` already says so. Blocks for at most two seconds."""
    if isinstance(cause, VolumeSilentError):
        return None
    probe = layout.root
    if layout.comfyui is not None and layout.comfyui_on_volume:
        probe = layout.comfyui / "main.py"  # a mount point remains after its mount is gone
    details, failed = {"cause": cause.code, **cause.details}, f"the job failed: {cause.message}"
    try:
        if BoundedCaller(RESPONSE_SECONDS).one(lambda: os.path.exists(probe)):
            return None
    except VolumeTimeout:
        silent = f"The volume does not answer ({probe}, {RESPONSE_SECONDS:g} s)"
        return VolumeSilentError(f"{silent}, and {failed}", **details)
    gone = f"The volume is no longer there ({probe} is missing)"
    return JobError("volume.gone", f"{gone}, and {failed}", VOLUME_FIX, **details)
