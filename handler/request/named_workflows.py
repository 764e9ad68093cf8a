"""Workflows on the volume by name, with their declared parameters."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bootstrap.core.files import read_regular
from bootstrap.models.manifest_file import Unreadable, read_data
from handler.common.errors import JobError, nearest, short
from handler.request.params import SUFFIX, Params, read_params
from handler.request.workflow import Workflow, read_workflow

FOLDER = "workflows"
_ENDINGS = (".json", ".JSON")
_MAX_BYTES = 20_000_000
_LISTED = 200


@dataclass(frozen=True)
class NamedWorkflow:
    """A workflow on the volume. `params` None: it declares none."""

    workflow: Workflow
    params: Params | None = None


class NamedWorkflows:
    """The `.json` files in `workflows/` at the volume's root, subfolders included. All methods
    block on the volume."""

    def __init__(self, root: Path) -> None:
        self._folder = root / FOLDER

    def read(self, name: str) -> NamedWorkflow:
        """The workflow of that name, with or without `.json`. Raises JobError."""
        stem = name[: -len(".json")] if name.lower().endswith(".json") else name
        names = [*([name] if name != stem else []), *(f"{stem}{ending}" for ending in _ENDINGS)]
        file = next(filter(None, map(self._file, names)), None)
        if file is None:
            raise self._unknown(name)
        workflow = read_workflow(self._text(file))
        declared = self._file(f"{stem}{SUFFIX}")
        if declared is None:
            return NamedWorkflow(workflow)
        try:
            data = read_data(declared)
        except Unreadable as problem:
            raise JobError(
                "params.file_wrong", problem.message, f"Correct {declared.name}."
            ) from None
        except ValueError as problem:  # a number or date that Python cannot hold
            raise _not_declared(declared, problem) from None
        try:
            return NamedWorkflow(workflow, read_params(data, workflow))
        except ValueError as problem:
            raise _not_declared(declared, problem) from None

    def listed(self) -> list[dict[str, Any]]:
        """JSON-ready: every workflow with its parameters as JSON Schema, or with its mistake."""
        return [self._entry(name) for name in self._names()]

    def _entry(self, name: str) -> dict[str, Any]:
        try:
            params = self.read(name).params
        except JobError as problem:
            return {"name": name, "error_code": problem.code, "error": str(problem)}
        if params is None:
            return {"name": name, "params": None}
        return {"name": name, "description": params.description, "params": params.schema()}

    def _text(self, file: Path) -> str:
        try:
            return read_regular(file, _MAX_BYTES).decode("utf-8", "replace")
        except OSError as problem:
            raise JobError(
                "workflow.name_unknown",
                f"{FOLDER}/{file.name} on the volume cannot be read: {problem.strerror}.",
                "Export it from ComfyUI again: Workflow → Export (API).",
            ) from None

    def _file(self, relative: str) -> Path | None:
        """The file, if it is inside the folder with links resolved; else None."""
        try:
            root = Path(os.path.realpath(self._folder))
            file = Path(os.path.realpath(root / relative))
            return file if file.is_relative_to(root) and file.is_file() else None
        except (OSError, ValueError):
            return None

    def _unknown(self, name: str) -> JobError:
        there = list(self._names())
        close = nearest(name, there)
        hint = f"nearest: {', '.join(close)}" if close else f"there are: {', '.join(there[:10])}"
        if not there:
            hint = "empty" if os.path.isdir(self._folder) else "the folder does not exist"
        return JobError(
            "workflow.name_unknown",
            f"There is no workflow {short(name)} in {self._folder} ({hint}).",
            "Export it from ComfyUI (Workflow → Export (API)) into that folder, or name one that "
            "is there.",
            nearest=close,
        )

    def _names(self) -> list[str]:
        return sorted(set(self._found()))[:_LISTED]

    def _found(self) -> Iterator[str]:
        count = 0
        for parent, _, names in os.walk(self._folder):
            for name in names:
                if name.endswith(_ENDINGS) and not name.startswith("."):  # macOS writes ._name
                    path = os.path.relpath(os.path.join(parent, name), self._folder)
                    yield os.path.splitext(path)[0]
                    count += 1
            if count >= _LISTED:
                return


def _not_declared(file: Path, problem: ValueError) -> JobError:
    return JobError(
        "params.file_wrong", f"{file.name} cannot be read: {problem}.", f"Correct {file.name}."
    )


def openapi(workflows: list[dict[str, Any]], base: dict[str, Any]) -> dict[str, Any]:
    """An OpenAPI document with a schema for each workflow with declared parameters, as the body of
    `/runsync` and `/run`. `base` is the local server's document."""
    bodies = {
        f"workflow_{number}": _body(entry)
        for number, entry in enumerate(workflows)
        if entry.get("params") is not None
    }
    components = base.get("components", {})
    schemas = {**components.get("schemas", {}), **bodies}
    references = [{"$ref": f"#/components/schemas/{name}"} for name in bodies]
    paths = dict(base.get("paths", {}))
    for path in ("/runsync", "/run"):
        if references:
            paths[path] = _with_body(paths.get(path, {}), [*references, _ANY_JOB])
    return {**base, "components": {**components, "schemas": schemas}, "paths": paths}


_ANY_JOB = {"type": "object", "title": "any other job", "required": ["input"]}


def _body(entry: dict[str, Any]) -> dict[str, Any]:
    params = entry["params"]
    required = ["workflow_name", *(["params"] if params.get("required") else [])]
    given = {
        "type": "object",
        "required": required,
        "properties": {"workflow_name": {"const": entry["name"]}, "params": params},
    }
    return {
        "type": "object",
        "title": entry["name"],
        "description": entry.get("description", ""),
        "required": ["input"],
        "properties": {"input": given},
    }


def _with_body(path: dict[str, Any], schemas: list[dict[str, Any]]) -> dict[str, Any]:
    post = dict(path.get("post", {"responses": {"200": {"description": "The job's state"}}}))
    content = {"application/json": {"schema": {"anyOf": schemas}}}
    return {**path, "post": {**post, "requestBody": {"required": True, "content": content}}}
