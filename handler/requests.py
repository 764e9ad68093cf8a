"""Pure: what came in -> a request, or a `JobError` that says what to send instead."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bootstrap.manifest_entry import ModelSpec
from bootstrap.settings import Settings
from handler import worker_comfyui
from handler.download_entries import read_entries
from handler.errors import JobError
from handler.words import refuse_unreasonable, short, wrong_type
from handler.workflow import HOW_TO_ASK, Workflow, overridden, read_workflow

_WORKFLOW_FIELDS = {"workflow", "images", "overrides", "max_wait", *worker_comfyui.KEY_FIELDS}
SECTIONS = ("volume", "models", "comfyui", "machine", "environment")


@dataclass(frozen=True)
class InputImage:
    """An image that comes with the request; `data` is base64, with or without a data URI head."""

    name: str
    data: str


@dataclass(frozen=True)
class WorkflowRequest:
    """Run `workflow` (API format, overrides applied) within `max_wait` seconds."""

    workflow: Workflow
    max_wait: float
    images: tuple[InputImage, ...] = ()
    warnings: tuple[str, ...] = field(default=())
    extra_data: Mapping[str, str] = field(default_factory=dict, repr=False)  # holds a secret


@dataclass(frozen=True)
class DiagnosticsRequest:
    """Say how this worker is. `sections` (none: all) are names of `SECTIONS`; `deep` also measures
    the volume, which takes a while and its bandwidth."""

    sections: frozenset[str] = frozenset()
    deep: bool = False
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelsRequest:
    """List the models by category."""

    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class DownloadRequest:
    """Fetch `models` onto the volume within `max_wait` seconds."""

    models: tuple[ModelSpec, ...]
    max_wait: float
    warnings: tuple[str, ...] = ()


Request = WorkflowRequest | DiagnosticsRequest | ModelsRequest | DownloadRequest


def parse_request(given: object, settings: Settings) -> Request:
    """Read a job's `input`; without a `type` it asks for a workflow. Raises JobError."""
    if given is None:
        raise JobError("request.no_input", "The job has no input.", HOW_TO_ASK)
    if isinstance(given, str):
        given = _parsed(given)
    if not isinstance(given, Mapping):
        raise wrong_type("input", "an object", given)
    refuse_unreasonable(given, settings.max_request_mb)
    name = given.get("type") or "workflow"
    if not isinstance(name, str) or name not in _READERS:
        known = ", ".join(_READERS)
        raise JobError(
            "request.unknown_type",
            f"There is no request of type {short(name)}.",
            f"Send one of the types {known}; without a type it is a workflow.",
            known=list(_READERS),
        )
    return _READERS[name](given, settings)


def _parsed(text: str) -> object:
    """An input that is JSON text, which clients of worker-comfyui may send; else the text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _workflow_request(given: Mapping[str, Any], settings: Settings) -> WorkflowRequest:
    workflow, warnings = overridden(read_workflow(given.get("workflow")), given.get("overrides"))
    return WorkflowRequest(
        workflow=workflow,
        max_wait=_max_wait(given.get("max_wait"), settings.max_wait),
        images=_images(given.get("images")),
        warnings=(*warnings, *_unknown(given, _WORKFLOW_FIELDS)),
        extra_data=worker_comfyui.extra_data(given, settings),
    )


def _diagnostics_request(given: Mapping[str, Any], _: Settings) -> DiagnosticsRequest:
    deep, sections = given.get("deep", False), given.get("sections") or []
    if not isinstance(deep, bool):
        raise wrong_type("deep", "true or false", deep)
    wanted = f"a list of some of {', '.join(SECTIONS)}"
    if not isinstance(sections, list):
        raise wrong_type("sections", wanted, sections)
    for section in sections:
        if section not in SECTIONS:
            raise wrong_type("sections", wanted, section)
    return DiagnosticsRequest(frozenset(sections), deep, _unknown(given, {"deep", "sections"}))


def _models_request(given: Mapping[str, Any], _: Settings) -> ModelsRequest:
    return ModelsRequest(_unknown(given, set()))


def _download_request(given: Mapping[str, Any], settings: Settings) -> DownloadRequest:
    models, notes = read_entries(given.get("models"), settings)
    return DownloadRequest(
        models=models,
        max_wait=_max_wait(given.get("max_wait"), settings.max_wait),
        warnings=(*notes, *_unknown(given, {"models", "max_wait"})),
    )


_READERS: dict[str, Callable[[Mapping[str, Any], Settings], Request]] = {
    "workflow": _workflow_request,
    "diagnostics": _diagnostics_request,
    "models": _models_request,
    "download": _download_request,
}


def _unknown(given: Mapping[str, Any], known: set[str]) -> tuple[str, ...]:
    unknown = sorted(str(key) for key in given if key not in known | {"type"})
    if not unknown:
        return ()
    return (f"ignored unknown fields of the input: {', '.join(unknown)[:500]}",)


def _images(given: object) -> tuple[InputImage, ...]:
    if given is None:
        return ()
    if not isinstance(given, list):
        raise wrong_type("images", 'a list of {"name", "image"} objects', given)
    return tuple(_image(index, image) for index, image in enumerate(given))


def _image(index: int, given: object) -> InputImage:
    if not isinstance(given, Mapping):
        raise wrong_type(f"images[{index}]", 'an object with "name" and "image"', given)
    name, data = given.get("name"), given.get("image")
    if not isinstance(name, str) or not name:
        raise JobError(
            "image.no_name",
            f"images[{index}] has no name.",
            'Give it the name the workflow\'s LoadImage uses: {"name": "photo.png", "image": "…"}.',
        )
    if not isinstance(data, str) or not data:
        raise JobError(
            "image.no_data",
            f"images[{index}] ({short(name)}) has no data.",
            'Put the file\'s content, base64 encoded, into its "image" field.',
        )
    return InputImage(name, data)


def _max_wait(given: object, default: float) -> float:
    if given is None:
        return default
    if isinstance(given, bool) or not isinstance(given, (int, float)) or not 0 < given <= 86400:
        raise wrong_type("max_wait", "a number of seconds above 0, at most 86400", given)
    return float(given)
