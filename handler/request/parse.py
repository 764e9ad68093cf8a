"""Pure: parses a job's input into a request, or raises a `JobError` that says what to send
instead."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bootstrap.config import Settings
from bootstrap.config.bucket import S3_CONFIG, Bucket, missing_variables
from bootstrap.core.findings import Finding, errors_in
from bootstrap.core.text import BOM, joined
from bootstrap.models.manifest import VERSION, parse_manifest
from bootstrap.models.manifest_entry import ModelSpec
from handler.common.errors import JobError, check_limits, short, wrong_type
from handler.request import compatibility
from handler.request.compatibility import Envelope
from handler.request.fields import (
    InputFile,
    OutputOptions,
    ProgressOptions,
    check_model_host,
    read_bucket,
    read_files,
    read_flag,
    read_options,
    read_progress,
)
from handler.request.named_workflows import NamedWorkflow
from handler.request.references import draw_seeds
from handler.request.workflow import HOW_TO_ASK, Workflow, overridden, read_workflow, saved_as_files

SECTIONS = ("volume", "models", "comfyui", "machine", "environment")
_LISTED = 10


@dataclass(frozen=True)
class WorkflowRequest:
    """Run `workflow` (API format, overrides applied) within `max_wait` seconds, with `files` as its
    inputs; results as in `output`, to `bucket` if there is one. `retry_on_oom`: if the GPU runs out
    of memory, free it and run once more. `seeds` were drawn for it. ComfyUI also gets `extra_data`,
    and runs only what `targets` need, if there are any."""

    workflow: Workflow
    max_wait: float
    files: tuple[InputFile, ...] = ()
    warnings: tuple[str, ...] = field(default=())
    extra_data: Mapping[str, Any] = field(default_factory=dict, repr=False)  # holds a secret
    targets: tuple[str, ...] | None = None
    seeds: Mapping[str, int] = field(default_factory=dict)
    output: OutputOptions = field(default=OutputOptions())
    bucket: Bucket | None = None
    retry_on_oom: bool = False
    progress: ProgressOptions = field(default=ProgressOptions())


@dataclass(frozen=True)
class DiagnosticsRequest:
    """Report the state of this worker. `sections` (none: all) are from `SECTIONS`; `deep` also
    measures the volume, which takes time and bandwidth."""

    sections: frozenset[str] = frozenset()
    deep: bool = False
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelsRequest:
    """List the models by category."""

    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class WorkflowsRequest:
    """List the volume's workflows with their parameters; `openapi`: as an OpenAPI document too."""

    openapi: bool = False
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class DownloadRequest:
    """Fetch `models` onto the volume within `max_wait` seconds."""

    models: tuple[ModelSpec, ...]
    max_wait: float
    warnings: tuple[str, ...] = ()


Request = WorkflowRequest | DiagnosticsRequest | ModelsRequest | WorkflowsRequest | DownloadRequest


@dataclass(frozen=True)
class RequestContext:
    """The context for parsing a request: the settings, the job's own bucket (`s3Config`), a lookup
    for named workflows, and the job's id."""

    settings: Settings
    s3_config: object = None
    named_workflow: Callable[[str], NamedWorkflow] | None = None
    job_id: str = ""


def parse_request(
    given: object,
    settings: Settings,
    s3_config: object = None,
    named_workflow: Callable[[str], NamedWorkflow] | None = None,
    job_id: str = "",
) -> Request:
    """Parse a job's `input` (`decoded`); without a `type` it is a workflow. Raises JobError."""
    if given is None:
        raise JobError("request.no_input", "The job has no input.", HOW_TO_ASK)
    if not isinstance(given, Mapping):
        raise wrong_type("input", "an object", given)
    check_limits(given, settings.max_request_mb)
    name = given.get("type") or "workflow"
    if not isinstance(name, str) or name not in _READERS:
        known = ", ".join(_READERS)
        raise JobError(
            "request.unknown_type",
            f"Unknown request type {short(name)}.",
            f"Send one of the types {known}; without a type it is a workflow.",
            known=list(_READERS),
        )
    return _READERS[name](given, RequestContext(settings, s3_config, named_workflow, job_id))


def decoded(given: object) -> object:
    """A job's `input`, which may also be JSON text, as clients of worker-comfyui may send it."""
    if not isinstance(given, str):
        return given
    try:
        return json.loads(given.removeprefix(BOM))
    except (ValueError, RecursionError):
        return given


_WORKFLOW_FIELDS = {
    "workflow", "workflow_name", "params", "overrides", "images", "files", "max_wait", "output",
    S3_CONFIG, "retry_on_oom", "progress", *compatibility.BESIDE, *compatibility.KEY_FIELDS,
}  # fmt: skip


def _workflow_request(given: Mapping[str, Any], context: RequestContext) -> WorkflowRequest:
    envelope = compatibility.read_envelope(given)
    unknown = compatibility.ignored(given, _WORKFLOW_FIELDS | envelope.fields | {"type"})
    try:
        return _read_workflow_request(given, context, envelope, unknown)
    except JobError as error:
        if unknown:
            error.details = {**error.details, "warnings": list(unknown)}
        raise


def _read_workflow_request(
    given: Mapping[str, Any], context: RequestContext, envelope: Envelope, unknown: tuple[str, ...]
) -> WorkflowRequest:
    sent, params_files = _workflow(given, context, envelope)
    extra_files = (*params_files, *compatibility.file_inputs(given, sent))
    workflow, warnings = overridden(sent, given.get("overrides"))
    if given.get("params") is not None and given.get("workflow_name") is None:
        warnings.append("params are ignored: they belong to a workflow_name")
    workflow, seeds = draw_seeds(workflow)
    output, more = read_options(given.get("output"), context.settings)
    progress, notes = read_progress(given.get("progress"))
    bucket = read_bucket(given.get(S3_CONFIG, context.s3_config), context.settings)
    uploads = bucket is not None or bool(output.upload_urls)
    lacking = [] if uploads else missing_variables(context.settings)
    if output.delivery == "s3" and not uploads:
        raise JobError(
            "output.no_bucket",
            "Results should go to a bucket, but none is configured for this endpoint"
            f"{': it lacks ' if lacking else ''}{', '.join(lacking)}.",
            "Set BUCKET_ENDPOINT_URL, BUCKET_ACCESS_KEY_ID, BUCKET_SECRET_ACCESS_KEY and "
            f"BUCKET_NAME in the endpoint's environment, or send {S3_CONFIG} with the job.",
        )
    if lacking and output.delivery is None:
        more += (f"nothing goes to the bucket: {', '.join(lacking)} not set, or not valid",)
    return WorkflowRequest(
        workflow=saved_as_files(workflow),
        max_wait=_max_wait(given.get("max_wait"), context.settings.max_wait),
        files=read_files(given.get("images"), given.get("files"), extra_files),
        warnings=(*envelope.notes, *warnings, *more, *notes, *unknown),
        progress=progress,
        output=output,
        bucket=bucket and bucket.for_job(context.job_id),
        retry_on_oom=read_flag(given, "retry_on_oom"),
        extra_data={
            **({"preview_method": "auto"} if progress.previews else {}),
            **compatibility.endpoint_key(context.settings),
            **envelope.extra_data,
            **compatibility.request_key(given),
        },
        targets=envelope.targets,
        seeds=seeds,
    )


def _workflow(
    given: Mapping[str, Any], context: RequestContext, envelope: Envelope
) -> tuple[Workflow, tuple[InputFile, ...]]:
    """The workflow that was sent, or the named one on the volume, and its params' files."""
    name, sent, params = given.get("workflow_name"), envelope.workflow, given.get("params")
    if name is None:
        return read_workflow(sent), ()
    if not isinstance(name, str) or not name.strip():
        raise wrong_type("workflow_name", "the name of a file in workflows/ on the volume", name)
    if sent is not None:
        raise JobError(
            "request.wrong_type",
            "The request has both workflow and workflow_name.",
            "Send one of them.",
            field="workflow_name",
        )
    if context.named_workflow is None:
        raise JobError("workflow.name_unknown", "This worker has no volume.", "Send the workflow.")
    return _with_params(context.named_workflow(name.strip()), name.strip(), params)


def _with_params(
    named: NamedWorkflow, name: str, params: object
) -> tuple[Workflow, tuple[InputFile, ...]]:
    if named.params is None:
        if params:
            raise JobError(
                "params.none",
                f"The workflow {short(name)} declares no params.",
                "Declare them beside it (docs/workflows.md), or send overrides.",
            )
        return named.workflow, ()
    overrides, files = named.params.applied(params)
    return overridden(named.workflow, overrides)[0], files


def _diagnostics_request(given: Mapping[str, Any], _: RequestContext) -> DiagnosticsRequest:
    deep, sections = read_flag(given, "deep"), given.get("sections") or []
    wanted = f"a list of some of {', '.join(SECTIONS)}"
    if not isinstance(sections, list):
        raise wrong_type("sections", wanted, sections)
    for section in sections:
        if section not in SECTIONS:
            raise wrong_type("sections", wanted, section)
    return DiagnosticsRequest(frozenset(sections), deep, _unknown(given, {"deep", "sections"}))


def _models_request(given: Mapping[str, Any], _: RequestContext) -> ModelsRequest:
    return ModelsRequest(_unknown(given, set()))


def _workflows_request(given: Mapping[str, Any], _: RequestContext) -> WorkflowsRequest:
    return WorkflowsRequest(read_flag(given, "openapi"), _unknown(given, {"openapi"}))


def _download_request(given: Mapping[str, Any], context: RequestContext) -> DownloadRequest:
    models, notes = read_entries(given.get("models"), context.settings)
    return DownloadRequest(
        models=models,
        max_wait=_max_wait(given.get("max_wait"), context.settings.max_wait),
        warnings=(*notes, *_unknown(given, {"models", "max_wait"})),
    )


_READERS: dict[str, Callable[[Mapping[str, Any], RequestContext], Request]] = {
    "workflow": _workflow_request,
    "diagnostics": _diagnostics_request,
    "models": _models_request,
    "workflows": _workflows_request,
    "download": _download_request,
}


def _unknown(given: Mapping[str, Any], known: set[str]) -> tuple[str, ...]:
    return compatibility.ignored(given, known | {"type"})


def _max_wait(given: object, default: float) -> float:
    if given is None:
        return default
    if isinstance(given, bool) or not isinstance(given, (int, float)) or not 0 < given <= 86400:
        raise wrong_type("max_wait", "a number of seconds above 0, at most 86400", given)
    return float(given)


def read_entries(given: object, settings: Settings) -> tuple[tuple[ModelSpec, ...], list[str]]:
    """The models to fetch, and warnings. Raises JobError, also if such requests are not allowed."""
    if not settings.allow_download_requests:
        raise JobError(
            "request.download_off",
            "Download requests are off on this endpoint.",
            "Set ALLOW_DOWNLOAD_REQUESTS=true in its environment variables, or name the models "
            "in models.json at the volume's root.",
        )
    if not isinstance(given, list) or not given:
        example = '{"url": "https://…", "directory": "loras"}'
        raise wrong_type("models", f"a list of manifest entries such as {example}", given)
    http = settings.allow_private_download_urls
    manifest = parse_manifest({"version": VERSION, "models": given}, "request", http)
    faults = errors_in(manifest.findings)
    if faults:
        raise _refused(faults)
    for model in manifest.models:
        check_model_host(model.url, settings)
    return manifest.models, [f"{f.message} {f.fix}".strip() for f in manifest.findings]


def _refused(faults: Sequence[Finding]) -> JobError:
    """One error: the first fault's code, all faults in the sentence and the details."""
    first = faults[0]
    if len(faults) == 1:
        return JobError.from_finding(first)
    said = [f"({i}) {fault.message} {fault.fix}" for i, fault in enumerate(faults, 1)]
    return JobError(
        first.code,
        f"The request has {len(faults)} faults: {joined(said, _LISTED, ' ')}",
        "Correct all of them and send it again.",
        findings=[fault.as_dict() for fault in faults],
    )
