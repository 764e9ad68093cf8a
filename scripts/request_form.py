"""From the client's arguments to a job's input. Raises UsageError for what cannot be sent."""

from __future__ import annotations

import base64
import json
import struct
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bootstrap.core.terminal import nearest
from handler.common.errors import JobError
from handler.request.workflow import Workflow, read_workflow

# https://docs.runpod.io/serverless/endpoints/send-requests: /run takes 10 MB
RUN_LIMIT_BYTES = 10_000_000


_PNG = b"\x89PNG\r\n\x1a\n"


class UsageError(Exception):
    """An argument or a file cannot be used; `str()` says why and what to give instead."""


def workflow_input(
    source: str, assignments: Iterable[str], images: Iterable[str], max_wait: float | None
) -> dict[str, Any]:
    """The input for a workflow file in API format (`-`: standard input), or for a whole request
    `{"input": {…}}`, which keeps its other fields."""
    given = _read_json(source)
    request: dict[str, Any] = {"workflow": given}
    if isinstance(given, dict) and isinstance(given.get("input"), dict):
        request = dict(given["input"])
    try:
        workflow = read_workflow(request["workflow"]) if "workflow" in request else None
    except JobError as problem:
        raise UsageError(f"{source}: {problem}") from None
    overrides = {**_object(request.get("overrides"))}
    for node, name, text in map(_assignment, assignments):
        values = {
            **_object(overrides.get(node)),
            name: _value(text, _present(workflow, node, name)),
        }
        overrides[node] = values
    if overrides:
        request["overrides"] = overrides
    sent = [*(request.get("images") or []), *map(_image, images)]
    if sent:
        request["images"] = sent
    if max_wait is not None:
        request["max_wait"] = max_wait
    return request


def named_input(
    name: str, params: Iterable[str], images: Iterable[str], max_wait: float | None
) -> dict[str, Any]:
    """The input for a workflow that lies on the endpoint's volume."""
    request: dict[str, Any] = {"workflow_name": name, "params": dict(map(_param, params))}
    if sent := list(map(_image, images)):
        request["images"] = sent
    if max_wait is not None:
        request["max_wait"] = max_wait
    return request


def _param(text: str) -> tuple[str, Any]:
    """`steps=20` → ("steps", 20); what is not JSON is a text."""
    name, equals, value = text.partition("=")
    if not (equals and name):
        raise UsageError(f'--param {text!r} is not of the form NAME=VALUE, as prompt="a cat".')
    return name, _value(value, None)


def refuse_too_large(request: dict[str, Any]) -> None:
    """Runpod would refuse it with less of an explanation. Raises UsageError."""
    size = len(json.dumps({"input": request}))
    if size > RUN_LIMIT_BYTES:
        raise UsageError(
            f"The request has {size / 1e6:.1f} MB; Runpod takes 10 MB. Send smaller images, or put "
            "large files on the volume in ComfyUI/input/ and name them in the workflow."
        )


def _read_json(source: str) -> Any:
    name = "standard input" if source == "-" else source
    try:
        content = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
        if content.startswith(_PNG):
            content = _workflow_in(content, name)
        return json.loads(content.decode("utf-8-sig"))
    except OSError as problem:
        raise UsageError(f"{name} cannot be read: {problem.strerror}.") from None
    except ValueError as problem:
        raise UsageError(
            f"{name} is not JSON: {problem}. In ComfyUI choose Workflow → Export (API)."
        ) from None


def _workflow_in(picture: bytes, name: str) -> bytes:
    """The workflow that ComfyUI's SaveImage wrote into a PNG: a text chunk `prompt` in API format,
    beside `workflow` in the form of its page."""
    texts: dict[bytes, bytes] = {}
    place = len(_PNG)
    while place + 8 <= len(picture):
        length, kind = struct.unpack(">I4s", picture[place : place + 8])
        if kind == b"tEXt":
            key, _, value = picture[place + 8 : place + 8 + length].partition(b"\0")
            texts[key] = value
        place += 12 + length
    if b"prompt" not in texts:
        has = "only the page's form of its workflow" if b"workflow" in texts else "no workflow"
        raise UsageError(
            f"{name} is a picture with {has} in it. Open it in ComfyUI (drop it on the page), and "
            "choose Workflow → Export (API)."
        )
    return texts[b"prompt"]


def _assignment(text: str) -> tuple[str, str, str]:
    """`6.text=a cat` → ("6", "text", "a cat")."""
    target, equals, value = text.partition("=")
    node, dot, name = target.partition(".")
    if not (equals and dot and node and name):
        raise UsageError(f'--set {text!r} is not of the form NODE.INPUT=VALUE, as 6.text="a cat".')
    return node, name, value


def _present(workflow: Workflow | None, node: str, name: str) -> Any:
    """What an input is now; None where that cannot be known from here."""
    if workflow is None:
        return None
    if node not in workflow:
        known = ", ".join(f"{key} ({value['class_type']})" for key, value in workflow.items())
        raise UsageError(f"--set names node {node}; the workflow has {known[:500]}.")
    inputs = workflow[node]["inputs"]
    if name not in inputs:
        guess = nearest(name, list(inputs))
        meant = f" Did you mean {node}.{guess}?" if guess else ""
        has = ", ".join(inputs) or "none"
        kind = workflow[node]["class_type"]
        raise UsageError(
            f"--set names input {name!r} of node {node} ({kind}); it has {has}.{meant}"
        )
    return inputs[name]


def _value(text: str, present: Any) -> Any:
    """`text` as JSON where it is JSON, but for an input that is a text now."""
    if isinstance(present, str):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def _image(text: str) -> dict[str, str]:
    """`photo.png=~/cat.png`, or a path alone, whose last part is the name."""
    name, equals, place = text.partition("=")
    path = Path(place if equals else text).expanduser()
    try:
        content = path.read_bytes()
    except OSError as problem:
        raise UsageError(f"--image {text}: {path} cannot be read: {problem.strerror}.") from None
    return {
        "name": name if equals else path.name,
        "image": base64.b64encode(content).decode("ascii"),
    }


def _object(given: Any) -> dict[str, Any]:
    return given if isinstance(given, dict) else {}
