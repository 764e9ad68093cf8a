"""Pure: what came in -> a request, or a `JobError` that says what to send instead."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from bootstrap.settings import Settings
from handler.errors import JobError

Workflow = dict[str, dict[str, Any]]

MAX_DEPTH = 100
_FIELDS = frozenset({"workflow", "images", "overrides", "max_wait"})
_EXPORT_FIX = (
    "In ComfyUI choose Workflow → Export (API) (older versions: enable Dev mode in the settings, "
    "then Save (API Format)) and send that file's content."
)


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


def parse_request(given: object, settings: Settings) -> WorkflowRequest:
    """Read a job's `input`. Raises JobError."""
    if given is None:
        raise JobError("request.no_input", "The job has no input.", _HOW_TO_ASK)
    if not isinstance(given, Mapping):
        raise _wrong_type("input", "an object", given)
    _refuse_unreasonable(given, settings.max_request_mb)
    workflow = _workflow(given.get("workflow"))
    workflow, warnings = _overridden(workflow, given.get("overrides"))
    unknown = sorted(str(key) for key in given if key not in _FIELDS)
    if unknown:
        warnings.append(f"ignored unknown fields of the input: {', '.join(unknown)[:500]}")
    return WorkflowRequest(
        workflow=workflow,
        max_wait=_max_wait(given.get("max_wait"), settings.max_wait),
        images=_images(given.get("images")),
        warnings=tuple(warnings),
    )


_HOW_TO_ASK = 'Send {"input": {"workflow": {…}}} with a workflow in API format.'


def _refuse_unreasonable(given: object, max_mb: float) -> None:
    """One walk, without recursion, over everything: depth, size, and what JSON cannot say."""
    size = 0
    pending: list[tuple[object, int]] = [(given, 0)]
    while pending:
        value, depth = pending.pop()
        if depth > MAX_DEPTH:
            raise JobError(
                "request.too_deep",
                f"The request is nested more than {MAX_DEPTH} levels deep.",
                "A workflow in API format needs no more than five.",
            )
        size += len(value) if isinstance(value, str) else 8
        if isinstance(value, float) and not math.isfinite(value):
            raise JobError(
                "request.not_json", f"The request holds {value}.", "Send a finite number instead."
            )
        if isinstance(value, Mapping):
            size += sum(len(str(key)) for key in value)
            pending.extend((v, depth + 1) for v in value.values())
        elif isinstance(value, (list, tuple)):
            pending.extend((v, depth + 1) for v in value)
    if size > max_mb * 1_000_000:
        raise JobError(
            "request.too_large",
            f"The request has {size / 1e6:.1f} MB; this worker takes {max_mb:g} MB.",
            "Send smaller images, put large files on the volume in ComfyUI/input/ and name them, "
            "or raise MAX_REQUEST_MB (Runpod itself takes 10 MB for /run, 20 MB for /runsync).",
            bytes=size,
        )


def _workflow(given: object) -> Workflow:
    if given is None:
        raise JobError("workflow.missing", "The input has no workflow.", _HOW_TO_ASK)
    if isinstance(given, str):
        given = _parsed(given)
    if not isinstance(given, Mapping):
        raise JobError(
            "workflow.not_an_object",
            f"The workflow is {_kind(given)}, not an object.",
            _EXPORT_FIX,
        )
    if isinstance(given.get("nodes"), list):
        raise JobError(
            "workflow.ui_format",
            "The workflow is in the editor's own format, which ComfyUI cannot run.",
            _EXPORT_FIX,
        )
    if not given:
        raise JobError("workflow.empty", "The workflow has no nodes.", _EXPORT_FIX)
    nodes = {str(key): _node(str(key), node) for key, node in given.items()}
    for node_id, node in nodes.items():
        _check_links(node_id, node, nodes)
    return nodes


def _parsed(text: str) -> object:
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise JobError(
            "workflow.not_json", f"The workflow is a text that is not JSON: {problem}.", _EXPORT_FIX
        ) from None
    _refuse_unreasonable(given, math.inf)
    return given


def _node(node_id: str, node: object) -> dict[str, Any]:
    shape = 'Each entry is a node: {"class_type": "…", "inputs": {…}}. ' + _EXPORT_FIX
    if not isinstance(node, Mapping):
        raise JobError(
            "workflow.bad_node", f"Node {_short(node_id)} is {_kind(node)}.", shape, node_id=node_id
        )
    if not isinstance(node.get("class_type"), str) or not node["class_type"]:
        message = f"Node {_short(node_id)} has no class_type."
        raise JobError("workflow.bad_node", message, shape, node_id=node_id)
    inputs = node.get("inputs", {})
    if not isinstance(inputs, Mapping):
        message = f"The inputs of node {_short(node_id)} are {_kind(inputs)}."
        raise JobError("workflow.bad_node", message, shape, node_id=node_id)
    return {**node, "inputs": dict(inputs)}


def _check_links(node_id: str, node: Mapping[str, Any], nodes: Mapping[str, Any]) -> None:
    """A link is `[node id, output number]`; other lists are values."""
    for name, value in node["inputs"].items():
        if not is_link(value) or str(value[0]) in nodes:
            continue
        raise JobError(
            "workflow.bad_link",
            f"Input {_short(name)} of node {_nodes_in_words({node_id: node})} is linked to node "
            f"{_short(value[0])}, which is not in the workflow.",
            f"Add node {_short(value[0])}, or link {_short(name)} to one of the nodes "
            f"{', '.join(list(nodes)[:20])[:300]}.",
            node_id=node_id,
            input=str(name),
            linked_to=str(value[0]),
        )


def is_link(value: object) -> bool:
    """Does an input's value have the shape of a link to another node's output?"""
    return (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str)
        and isinstance(value[1], int)
        and not isinstance(value[1], bool)
    )


def _overridden(workflow: Workflow, given: object) -> tuple[Workflow, list[str]]:
    """The workflow with inputs replaced, and a warning for each input it did not have."""
    warnings: list[str] = []
    if given is None:
        return workflow, warnings
    for node_id, values in _override_items(given):
        if node_id not in workflow:
            raise JobError(
                "overrides.unknown_node",
                f"overrides names node {_short(node_id)}, which the workflow does not have.",
                f"Its nodes are: {_nodes_in_words(workflow)}.",
                node_id=node_id,
            )
        inputs = workflow[node_id]["inputs"]
        for name in values:
            if name not in inputs:
                has = ", ".join(map(str, inputs))[:300] or "none"
                warnings.append(
                    f"overrides: node {node_id[:60]} had no input {_short(name)} (it has {has})"
                )
        workflow[node_id]["inputs"] = {**inputs, **values}
    for node_id, node in workflow.items():
        _check_links(node_id, node, workflow)
    return workflow, warnings


def _override_items(given: object) -> Iterator[tuple[str, Mapping[str, Any]]]:
    shape = 'an object such as {"6": {"text": "a cat"}}'
    if not isinstance(given, Mapping):
        raise _wrong_type("overrides", shape, given)
    for node_id, values in given.items():
        if not isinstance(values, Mapping):
            raise _wrong_type(f"overrides[{_short(node_id)}]", shape, values)
        yield str(node_id), {str(name): value for name, value in values.items()}


def _images(given: object) -> tuple[InputImage, ...]:
    if given is None:
        return ()
    if not isinstance(given, list):
        raise _wrong_type("images", 'a list of {"name", "image"} objects', given)
    return tuple(_image(index, image) for index, image in enumerate(given))


def _image(index: int, given: object) -> InputImage:
    if not isinstance(given, Mapping):
        raise _wrong_type(f"images[{index}]", 'an object with "name" and "image"', given)
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
            f"images[{index}] ({_short(name)}) has no data.",
            'Put the file\'s content, base64 encoded, into its "image" field.',
        )
    return InputImage(name, data)


def _max_wait(given: object, default: float) -> float:
    if given is None:
        return default
    if isinstance(given, bool) or not isinstance(given, (int, float)) or not 0 < given <= 86400:
        raise _wrong_type("max_wait", "a number of seconds above 0, at most 86400", given)
    return float(given)


def _wrong_type(name: str, wanted: str, given: object) -> JobError:
    return JobError(
        "request.wrong_type", f"{name} is {_kind(given)}.", f"Send {wanted}.", field=name
    )


def _kind(value: object) -> str:
    """A value in a few words: what it is, and what it says when that is short."""
    if value is None:
        return "null"
    names = {str: "the text", bool: "the value", int: "the number", float: "the number"}
    if type(value) in names:
        return f"{names[type(value)]} {_short(value)}"
    return "a list" if isinstance(value, (list, tuple)) else "an object"


def _short(value: object) -> str:
    text = json.dumps(value) if isinstance(value, (str, bool)) else str(value)
    return text if len(text) <= 60 else text[:57] + '…"'


def _nodes_in_words(workflow: Mapping[str, Mapping[str, Any]]) -> str:
    first = list(workflow.items())[:20]
    shown = [f"{key[:60]} ({node['class_type'][:60]})" for key, node in first]
    return ", ".join(shown) + (" …" if len(workflow) > 20 else "")
