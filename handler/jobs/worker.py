"""Jobs behind one error boundary, from the SDK's dict to the reply; and diagnostics."""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import bootstrap
from bootstrap.boot import Runtime, boot_json
from bootstrap.comfyui import ComfyUI, Exit, explain_exit, is_answering
from bootstrap.config.bucket import S3_CONFIG
from bootstrap.core import log
from bootstrap.core.concurrency import BoundedCaller, VolumeTimeout
from bootstrap.core.findings import Finding, errors_in
from bootstrap.core.redact import withheld
from bootstrap.core.text import pluralize, summarize_list
from bootstrap.doctor import Facts, Scope, bounded, examine, report_json
from bootstrap.models.provisioner import cached_models
from bootstrap.volume import MODELS
from handler.common import reply
from handler.common.blocking import Calls, TimeUp
from handler.common.errors import JobError, VolumeSilentError
from handler.jobs.workflow_job import WorkflowJobs
from handler.models.on_demand import ModelSupply
from handler.request.compatibility import in_requested_form
from handler.request.named_workflows import NamedWorkflows, openapi
from handler.request.parse import (
    DiagnosticsRequest,
    DownloadRequest,
    ModelsRequest,
    Request,
    WorkflowRequest,
    WorkflowsRequest,
    decoded,
    parse_request,
)
from handler.sdk.job_slots import JobSlots
from handler.sdk.progress import Progress, has_control_plane
from handler.sdk.shutdown import JobHandle, Shutdown

_log = logging.getLogger(__name__)
_OPENAPI = {"openapi": "3.1.0", "info": {"title": "ComfyUI on this endpoint", "version": "1"}}
_QUIET_SECONDS = 0.5
_NAMED_SECONDS = 30.0
_EXAMINE_SECONDS = 120.0
_FINISH_SECONDS = 2.0
_LOG_LINES = 60
_ANSWER_SECONDS = 1.0
_NO_COMFYUI = {"running": False, "answers": False, "starts": 0, "exits": [], "log": []}
# Runpod's variables for each worker; none is secret.
_RUNPOD_NAMES = (
    "RUNPOD_POD_ID RUNPOD_ENDPOINT_ID RUNPOD_DC_ID RUNPOD_GPU_COUNT RUNPOD_VOLUME_ID "
    "RUNPOD_CPU_COUNT RUNPOD_MEM_GB RUNPOD_GPU_NAME RUNPOD_IMAGE_NAME"
).split()


class Worker:
    """Answers jobs with a boot's result, ready or not."""

    def __init__(self, runtime: Runtime, prefetch: int = 0) -> None:
        """`prefetch` jobs may wait here behind those that ComfyUI runs."""
        layout = runtime.layout
        self.calls = Calls.on(Path(os.sep) if layout is None else layout.root)
        self.slots = JobSlots(
            prefetch, lambda: self.calls.fault() is not None, max(1, len(runtime.instances))
        )
        self.shutdown = Shutdown(runtime.settings.shutdown_grace)
        self._runtime = runtime
        self._settings = runtime.settings
        self._faults_at_boot = errors_in(runtime.report.findings)
        runtime.health.watch(self.fault)
        self._diagnostics = Diagnostics(runtime)
        self._supply = _supply_for(runtime, self.calls)
        self._named = None if layout is None else NamedWorkflows(layout.root)
        kept = withheld(runtime.env, runtime.settings.comfyui_env_pass)
        self._instances = [
            WorkflowJobs(serving, self._supply, self.calls, self._faults_at_boot, kept)
            for serving in runtime.instances
        ]

    async def handle(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """The SDK's handler: always returns a reply; raises only cancellation."""
        with log.of_job(str(job.get("id") or "")):
            return await self._handle(job)

    async def _handle(self, job: Mapping[str, Any]) -> dict[str, Any]:
        if self.slots.is_cancelled(str(job.get("id"))):
            raise asyncio.CancelledError
        progress = Progress(job, quiet=_QUIET_SECONDS)
        begun = time.monotonic()
        try:
            answer = await self.shutdown.bounded(
                lambda handle: self._answer(job, progress, handle),
                computed=lambda: self.slots.computed(str(job.get("id"))),
            )
        except JobError as error:
            _log.error("failed after %.1f s: %s: %s", _since(begun), error.code, error)
            answer = reply.failed(error)
        except asyncio.CancelledError:
            _log.info("cancelled after %.1f s", _since(begun))
            raise
        except Exception as problem:  # noqa: BLE001  # the boundary: the worker goes on
            _log.exception("failed after %.1f s", _since(begun))
            answer = reply.failed(_internal(problem))
        finally:
            await progress.drain()
            if not has_control_plane():  # nothing else is waiting for it
                await self.finish()
        if answer.get("status") == "completed":
            _log.info("done in %.1f s%s", _since(begun), _summary(answer))
        shaped = in_requested_form(answer, self._settings)
        posted: dict[str, Any] = reply.postable(shaped)
        return posted

    async def _answer(
        self, job: Mapping[str, Any], progress: Progress, handle: JobHandle
    ) -> dict[str, Any]:
        request = await self._request(job)
        _log.info("started: %s", _described(request))
        if isinstance(request, DiagnosticsRequest):
            return await self._examine(lambda: self._diagnostics.examine(request))
        if isinstance(request, ModelsRequest):
            return await self._examine(lambda: self._diagnostics.models(request))
        if isinstance(request, WorkflowsRequest):
            return await self._list_workflows(request)
        faults = await self._faults()
        if isinstance(request, DownloadRequest) and self._supply is not None:
            return await self._supply.download(request, progress)
        if isinstance(request, DownloadRequest) or not self._instances:
            raise _degraded(faults)
        jobs = min(self._instances, key=lambda instance: instance.load)
        if faults and not jobs.can_retry(faults):
            raise _degraded(faults)
        try:
            return await jobs.run(request, progress, handle)
        except JobError as error:  # ignored fields of the request may be the reason
            if request.warnings:
                error.details = {**error.details, "warnings": list(request.warnings)}
            raise

    async def _request(self, job: Mapping[str, Any]) -> Request:
        """A fault of the worker takes precedence over one of the request."""
        given = decoded(job.get("input"))

        def read() -> Request:
            named = None if self._named is None else self._named.read
            job_id = str(job.get("id"))
            return parse_request(given, self._settings, job.get(S3_CONFIG), named, job_id)

        try:
            if isinstance(given, Mapping) and "workflow_name" in given:
                return await self.calls.volume.call_or_fail(read, _NAMED_SECONDS)
            return read()
        except TimeUp:
            raise _slow_volume() from None
        except JobError:
            if faults := await self._faults():
                raise _degraded(faults) from None
            raise

    async def _list_workflows(self, request: WorkflowsRequest) -> dict[str, Any]:
        try:
            listed = await self.calls.volume.call_or_fail(self.workflows, _NAMED_SECONDS)
        except TimeUp:
            raise _slow_volume() from None
        more = {"openapi": openapi(listed, dict(_OPENAPI))} if request.openapi else {}
        return reply.completed([], list(request.warnings), workflows=listed, **more)

    def workflows(self) -> list[dict[str, Any]]:
        """The volume's workflows with their parameters, JSON-ready. Blocks on the volume."""
        return [] if self._named is None else self._named.listed()

    def described(self, document: dict[str, Any]) -> dict[str, Any]:
        """The local API's OpenAPI document, with the volume's workflows if it responds."""
        try:
            return openapi(BoundedCaller(_QUIET_SECONDS * 4).one(self.workflows), document)
        except VolumeTimeout:
            return document

    async def _faults(self) -> tuple[Finding, ...]:
        """What keeps jobs from running now."""
        if not self._faults_at_boot:
            return ()
        try:
            return await self.calls.volume.call(self._runtime.faults_now, _NAMED_SECONDS)
        except (OSError, TimeUp):
            return self._faults_at_boot

    async def _examine(self, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        try:
            return await self.calls.control.run(work, _EXAMINE_SECONDS)
        except TimeUp:
            raise _slow_volume() from None

    async def finish(self) -> None:
        """Wait briefly for background work that replies do not wait for."""
        await self.calls.background.finish(_FINISH_SECONDS)

    def fault(self) -> Finding | None:
        """What keeps this worker from answering jobs, if anything. Callable from any thread."""
        looks = (self.calls.fault, self.slots.fault, self.shutdown.fault)
        return next((found for look in looks if (found := look()) is not None), None)


def _supply_for(runtime: Runtime, calls: Calls) -> ModelSupply | None:
    """None without a volume. Fetching models does not need ComfyUI."""
    layout, serving = runtime.layout, runtime.serving
    if layout is None or not layout.root_exists:
        return None
    model_dirs: tuple[Path, ...] = ()
    if serving is not None:
        model_dirs = (serving.comfyui.launch.comfyui / MODELS, serving.work.models)
    return ModelSupply(runtime.settings, layout, model_dirs, calls)


def _slow_volume() -> JobError:
    return VolumeSilentError("The volume took too long to answer.")


def _degraded(faults: tuple[Finding, ...]) -> JobError:
    """The error of a worker with faults: the first one, with all of them in the details."""
    first = faults[0]
    return JobError(
        first.code,
        f"This worker cannot run jobs: {first.message}",
        first.fix,
        findings=[fault.as_dict() for fault in faults],
        worker_id=os.environ.get("RUNPOD_POD_ID", ""),
    )


def _since(begun: float) -> float:
    return time.monotonic() - begun


def _described(request: Request) -> str:
    """For the log: what was requested."""
    if isinstance(request, WorkflowRequest):
        files = f", {pluralize(len(request.files), 'input file')}" if request.files else ""
        return f"workflow of {pluralize(len(request.workflow), 'node')}{files}"
    if isinstance(request, DownloadRequest):
        return f"download of {pluralize(len(request.models), 'model')}"
    if isinstance(request, WorkflowsRequest):
        return "list of workflows"
    return "diagnostics" if isinstance(request, DiagnosticsRequest) else "list of models"


def _summary(answer: Mapping[str, Any]) -> str:
    """For the log: durations, and where results are, in case the reply gets lost. No URLs, since
    they are signed."""
    results, timings = answer.get("results"), answer.get("timings") or {}
    took = [
        f"{words} {timings[key]:.1f} s"
        for key, words in (("execution", "ComfyUI"), ("waited", "waiting for its turn"))
        if isinstance(timings.get(key), float)
    ]
    text = f" ({', '.join(took)})" if took else ""
    if not isinstance(results, list):
        return text
    places = [str(r["path"]) for r in results if isinstance(r, Mapping) and r.get("path")]
    kept = f", on the volume: {summarize_list(places)}" if places else ""
    return f"{text}: {pluralize(len(results), 'result')}{kept}"


def _internal(problem: Exception) -> JobError:
    return JobError(
        "worker.internal",
        f"The worker failed: {type(problem).__name__}: {problem}",
        "Please report this with the worker's log; the worker itself continues.",
    )


class Diagnostics:
    """Diagnostics of one worker in any state. Calls block; use them in a thread."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._comfyuis = [serving.comfyui for serving in runtime.instances]

    def examine(self, request: DiagnosticsRequest) -> dict[str, Any]:
        """Current findings and facts, the boot, ComfyUI's state, versions, settings."""
        runtime = self._runtime
        scope = Scope(
            sections=request.sections,
            deep=request.deep,
            comfyui_running=any(comfyui.ended() is None for comfyui in self._comfyuis),
            python=runtime.python,
        )
        report = examine(runtime.settings, runtime.env, scope, runtime.node_log)
        diagnostics = {
            **report_json(report),
            "health": vars(runtime.health.now()),
            "boot": boot_json(runtime.report),
            "comfyui": _state(self._comfyuis[0]) if self._comfyuis else _NO_COMFYUI,
            "further_comfyuis": [_state(comfyui) for comfyui in self._comfyuis[1:]],
            "versions": _versions(report.facts),
            "settings": runtime.settings.masked(),
            "runpod": {n: os.environ[n] for n in _RUNPOD_NAMES if n in os.environ},
        }
        return reply.completed([], list(request.warnings), diagnostics=bounded(diagnostics))

    def models(self, request: ModelsRequest) -> dict[str, Any]:
        """The current models by category; `cached` are those that ComfyUI finds in the platform's
        cache on this machine."""
        scope = Scope(sections=frozenset({"models"}))
        facts = examine(self._runtime.settings, self._runtime.env, scope).facts.as_dict()
        serving = self._runtime.serving
        cached = cached_models(serving.work.models) if serving else []
        models = {**facts.get("models", {}), "cached": cached}
        return reply.completed([], list(request.warnings), models=bounded(models))


def _state(comfyui: ComfyUI) -> dict[str, Any]:
    running = comfyui.ended() is None
    return {
        "running": running,
        "answers": running and is_answering(comfyui, _ANSWER_SECONDS),
        "port": comfyui.port,
        "starts": comfyui.starts,
        "exits": [_exit(exit) for exit in comfyui.exits],
        "log": comfyui.log_tail(_LOG_LINES),
    }


def _exit(exit: Exit) -> dict[str, Any]:
    reason = explain_exit(exit).as_dict()
    return {"code": exit.code, "seconds": round(exit.seconds, 1), "reason": reason}


def _versions(facts: Facts) -> dict[str, str | None]:
    torch = facts.machine.torch if facts.machine else None
    return {
        "worker": bootstrap.__version__,
        "sdk": _version_of("runpod"),
        "python": platform.python_version(),
        "comfyui": facts.comfyui.version if facts.comfyui else None,
        "comfyui_python": facts.packages.version if facts.packages else None,
        "torch": torch.version if torch else None,
    }


def _version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
