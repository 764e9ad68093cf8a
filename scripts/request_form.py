"""Turns the client's arguments into a job's input. Raises UsageError for what cannot be sent."""

from __future__ import annotations

import base64
import json
import struct
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from bootstrap.core.terminal import nearest
from bootstrap.core.text import size_text, summarize_list, trailing_comma
from handler.common.errors import JobError
from handler.request.workflow import Workflow, holds_nodes, read_workflow, unwrapped
from scripts.errors import UsageError

# https://docs.runpod.io/serverless/endpoints/send-requests: /run takes 10 MB
RUN_LIMIT_BYTES = 10_000_000
_MOST_BYTES = 256 << 20  # a larger file is a model or a video
_EXPORT = "In ComfyUI choose Workflow → Export (API)."
_PNG = b"\x89PNG\r\n\x1a\n"
_OTHER_PICTURES = {b"\xff\xd8\xff": "a JPEG picture", b"RIFF": "a WebP picture"}
_UTF16 = (b"\xff\xfe", b"\xfe\xff")  # PowerShell's `>` writes it


def workflow_input(
    source: str, assignments: Iterable[str], images: Iterable[str], max_wait: float | None
) -> dict[str, Any]:
    """The input for a workflow file in API format (`-`: standard input), or for a whole request,
    with or without `{"input": …}` around it, which keeps its other fields."""
    request = _request(_read_json(source))
    workflow = _workflow(request, source)
    overrides = {**_object(request.get("overrides"))}
    for node, name, text in map(_assignment, assignments):
        values = {
            **_object(overrides.get(node)),
            name: _value(text, _present(workflow, node, name)),
        }
        overrides[node] = values
    if overrides:
        request["overrides"] = overrides
    return _with_more(request, images, max_wait)


def named_input(
    name: str, params: Iterable[str], images: Iterable[str], max_wait: float | None
) -> dict[str, Any]:
    """The input for a workflow on the endpoint's volume."""
    request: dict[str, Any] = {"workflow_name": name, "params": dict(map(_param, params))}
    return _with_more(request, images, max_wait)


def _with_more(
    request: dict[str, Any], images: Iterable[str], max_wait: float | None
) -> dict[str, Any]:
    if sent := list(map(_image, images)):
        present = request.get("images") or []
        if not isinstance(present, list):
            raise UsageError("The request's images are not a list, so --image cannot be added.")
        request["images"] = [*present, *sent]
    if max_wait is not None:
        request["max_wait"] = max_wait
    return request


def _request(given: Any) -> dict[str, Any]:
    """The job's input from a file in any accepted form."""
    inner = _object(given).get("input")
    if isinstance(inner, dict) and "class_type" not in inner:
        return dict(inner)
    if holds_nodes(_object(given).get("workflow")) and not holds_nodes(given):
        return dict(given)
    return {"workflow": given}


def _workflow(request: dict[str, Any], source: str) -> Workflow | None:
    """The request's workflow; None if it is on the volume, or in another worker's field."""
    if "workflow" not in request:
        return None
    try:
        return read_workflow(unwrapped(request["workflow"]))
    except JobError as problem:
        raise UsageError(f"{source}: {problem.message}", problem.fix) from None


def _param(text: str) -> tuple[str, Any]:
    """`steps=20` → ("steps", 20); invalid JSON is a string."""
    name, equals, value = text.partition("=")
    if not (equals and name):
        raise UsageError(f'--param {text!r} is not of the form NAME=VALUE, as prompt="a cat".')
    return name, _value(value, None)


def check_sendable(
    request: dict[str, Any], limit: float = RUN_LIMIT_BYTES, source: str = ""
) -> None:
    """Raises UsageError for a request over `limit` bytes, which Runpod would refuse with less
    explanation, and for one that is not valid JSON. Its workflow is from the file `source`.
    """
    try:
        size = len(json.dumps({"input": request}, allow_nan=False))
    except ValueError:
        raise UsageError(
            "The request holds a number that is not finite, which JSON cannot represent."
        ) from None
    if size > limit:
        name = Path(source).stem if source not in ("", "-") else "NAME"
        fix = "Put large files into ComfyUI/input/ on the volume, and send their names."
        if len(json.dumps(request.get("workflow"))) > limit / 2:
            fix = f"Put the workflow on the volume as workflows/{name}.json, and send --name {name}"
            fix += " instead of it."
        said = f"The request is {size / 1e6:.1f} MB; Runpod accepts at most 10 MB."
        raise UsageError(said, fix)


def _read_json(source: str) -> Any:
    if source == "-":
        return _decoded(sys.stdin.buffer.read(), "standard input")
    return read_file(Path(source))


def read_file(path: Path) -> Any:
    """What a workflow's file holds, or a picture that ComfyUI saved. Raises UsageError."""
    return _decoded(_content(path, str(path)), str(path))


def _decoded(content: bytes, name: str) -> Any:
    constant = None
    if content.startswith(_PNG):
        content, constant = _workflow_in(content, name), _as_null
    text = _text(content, name)
    if not text.strip():
        raise UsageError(f"{name} is empty.", _EXPORT)
    try:
        return json.loads(text, parse_constant=constant)
    except json.JSONDecodeError as problem:
        why = _mistake(problem)
    except RecursionError:
        why = "it is nested too deeply"
    except ValueError as problem:
        why = str(problem)
    raise UsageError(
        f"{name} is not valid JSON: {why}.", f"Correct it, or export it again. {_EXPORT}"
    )


def _as_null(_: str) -> None:
    """ComfyUI writes NaN into pictures as a node's `is_changed`, which is not an input."""


def _content(path: Path, name: str) -> bytes:
    """The bytes of the file at a path."""
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as problem:
        _refuse(path, name, problem)
    if len(content) > _MOST_BYTES:
        raise UsageError(f"{name} is larger than {size_text(_MOST_BYTES)}, too large to be sent.")
    return content


def _refuse(path: Path, name: str, problem: OSError) -> NoReturn:
    if isinstance(problem, IsADirectoryError):
        files = sorted(file.name for file in path.glob("*.json"))
        inside = f": {summarize_list(files)}" if files else ""
        raise UsageError(f"{name} is a folder.", f"Name a file in it{inside}.") from None
    if isinstance(problem, FileNotFoundError) and path.parent.is_dir():
        there = {file.stem: file.name for file in path.parent.iterdir() if file.is_file()}
        guess = there.get(nearest(path.stem, list(there)), "")
        meant = f"Did you mean {path.with_name(guess)}?" if guess else ""
        raise UsageError(f"{name} does not exist.", meant) from None
    raise UsageError(f"{name} cannot be read: {problem.strerror}.") from None


def _text(content: bytes, name: str) -> str:
    encoding = "utf-16" if content.startswith(_UTF16) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        text = "\0"
    if "\0" not in text:
        return text
    for head, kind in _OTHER_PICTURES.items():
        if content.startswith(head):
            raise UsageError(f"{name} is {kind}; only a PNG's workflow can be used.", _EXPORT)
    raise UsageError(f"{name} is not a text file, so it cannot be a workflow.", _EXPORT)


def _mistake(problem: json.JSONDecodeError) -> str:
    """What is wrong with a text, and where; a trailing comma is named as such."""
    found = trailing_comma(problem)
    if found is None:
        return f"line {problem.lineno}, column {problem.colno}: {problem.msg}"
    line, column, bracket = found
    return f"line {line}, column {column}: there must be no comma before {bracket}"


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
            f"{name} is a picture with {has} in it.",
            "Open it in ComfyUI (drop it on the page), and choose Workflow → Export (API).",
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
    """An input's current value; None if unknown here."""
    if workflow is None:
        return None
    if node not in workflow:
        known = ", ".join(f"{key} ({value['class_type']})" for key, value in workflow.items())
        raise UsageError(f"--set names node {node}; the workflow has {known[:500]}.")
    inputs = workflow[node]["inputs"]
    if name not in inputs:
        guess = nearest(name, list(inputs))
        meant = f"Did you mean {node}.{guess}?" if guess else ""
        has = ", ".join(inputs) or "none"
        kind = workflow[node]["class_type"]
        raise UsageError(
            f"--set names input {name!r} of node {node} ({kind}); it has {has}.", meant
        )
    return inputs[name]


def _value(text: str, present: Any) -> Any:
    """`text` as JSON if it is valid JSON, unless the input is a string now."""
    if isinstance(present, str):
        return text
    try:
        return json.loads(text, parse_constant=_not_json)
    except (ValueError, RecursionError):
        return text


def _not_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _image(text: str) -> dict[str, str]:
    """`photo.png=~/cat.png`, or a path alone, whose last part is the name."""
    name, equals, place = text.partition("=")
    path = Path(place if equals else text).expanduser()
    return {
        "name": name if equals else path.name,
        "image": base64.b64encode(_content(path, f"--image {path}")).decode("ascii"),
    }


def _object(given: Any) -> dict[str, Any]:
    return given if isinstance(given, dict) else {}
