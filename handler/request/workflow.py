"""Pure: checks a workflow in API format, and applies overrides."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bootstrap.core.text import BOM
from handler.common.errors import (
    JobError,
    check_limits,
    described,
    short,
    wrong_type,
)

Workflow = dict[str, dict[str, Any]]
_MOST_WARNINGS = 20
_PREFIX = "filename_prefix"
HOW_TO_ASK = 'Send {"input": {"workflow": {…}}} with a workflow in API format.'
_EXPORT_FIX = (
    "In ComfyUI choose Workflow → Export (API) (older versions: enable Dev mode in the settings, "
    "then Save (API Format)) and send that file's content."
)


@dataclass(frozen=True)
class NodeInput:
    """A node's input, for errors."""

    node_id: str
    class_type: str
    input: str

    @property
    def where(self) -> str:
        """Its place in the workflow, for people."""
        return f"{self.input} of node {self.node_id} ({self.class_type})"

    @property
    def details(self) -> dict[str, str]:
        """The same for an error's details."""
        return {"node_id": self.node_id, "class_type": self.class_type, "input": self.input}


def read_workflow(given: object) -> Workflow:
    """A workflow in API format, with its shape checked. Raises JobError."""
    if given is None:
        raise JobError("workflow.missing", "The input has no workflow.", HOW_TO_ASK)
    if isinstance(given, str):
        given = _parsed(given)
    if not isinstance(given, Mapping):
        raise JobError(
            "workflow.not_an_object",
            f"The workflow is {described(given)}, not an object.",
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
    return {str(key): _node(str(key), node) for key, node in given.items()}


def holds_nodes(value: object) -> bool:
    """Is it an object with at least one node in it?"""
    return isinstance(value, Mapping) and any(
        isinstance(node, Mapping) and "class_type" in node for node in value.values()
    )


def unwrapped(sent: object) -> object:
    """The nodes in ComfyUI's own `/prompt` body (`{"prompt": …}`), or in what its editor's
    `graphToPrompt` returns (`{"output": …}`); anything else as it is."""
    if not isinstance(sent, Mapping) or holds_nodes(sent):
        return sent
    return next((sent[n] for n in ("prompt", "output") if holds_nodes(sent.get(n))), sent)


def _parsed(text: str) -> object:
    try:
        given = json.loads(text.removeprefix(BOM))
    except (ValueError, RecursionError) as problem:
        raise JobError(
            "workflow.not_json",
            f"The workflow is a string that is not valid JSON: {problem}.",
            _EXPORT_FIX,
        ) from None
    check_limits(given, math.inf)
    return given


def _node(node_id: str, node: object) -> dict[str, Any]:
    shape = 'Each entry is a node: {"class_type": "…", "inputs": {…}}. ' + _EXPORT_FIX
    if not isinstance(node, Mapping):
        raise JobError(
            "workflow.bad_node",
            f"Node {short(node_id)} is {described(node)}.",
            shape,
            node_id=node_id,
        )
    if not isinstance(node.get("class_type"), str) or not node["class_type"]:
        message = f"Node {short(node_id)} has no class_type."
        raise JobError("workflow.bad_node", message, shape, node_id=node_id)
    inputs = node.get("inputs", {})
    if not isinstance(inputs, Mapping):
        message = f"The inputs of node {short(node_id)} are {described(inputs)}."
        raise JobError("workflow.bad_node", message, shape, node_id=node_id)
    return {**node, "inputs": dict(inputs)}


def bad_links(workflow: Workflow) -> list[JobError]:
    """An error for each link to a missing node. ComfyUI refuses them only if an output node needs
    them, so they only explain its refusal."""
    return [
        _bad_link(node_id, name, value[0], workflow)
        for node_id, node in workflow.items()
        for name, value in node["inputs"].items()
        if is_link(value) and str(value[0]) not in workflow
    ]


def _bad_link(node_id: str, name: object, target: object, workflow: Workflow) -> JobError:
    return JobError(
        "workflow.bad_link",
        f"Input {short(name)} of node {_list_nodes({node_id: workflow[node_id]})} is linked to "
        f"node {short(target)}, which is not in the workflow.",
        f"Add node {short(target)}, or link {short(name)} to one of the nodes "
        f"{', '.join(list(workflow)[:20])[:300]}.",
        node_id=node_id,
        input=str(name),
        linked_to=str(target),
    )


def needed_by(workflow: Workflow, node_id: str) -> set[str]:
    """The ids of a node and of all nodes that it needs, directly or indirectly."""
    needed: set[str] = set()
    pending = [node_id]
    while pending:
        here = pending.pop()
        if here in needed or here not in workflow:
            continue
        needed.add(here)
        pending += [str(v[0]) for v in workflow[here]["inputs"].values() if is_link(v)]
    return needed


def is_link(value: object) -> bool:
    """Is an input's value a link to another node's output?"""
    return (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str)
        and isinstance(value[1], int)
        and not isinstance(value[1], bool)
    )


def saved_as_files(workflow: Workflow) -> Workflow:
    """Replace SaveImageWebsocket, which sends its pictures over the socket and reports none, with
    SaveImage, so that they are returned like others. A Windows prefix (`set\\cat`) names a folder,
    as it does there."""
    for node_id, node in workflow.items():
        prefix = node["inputs"].get(_PREFIX)
        if isinstance(prefix, str) and "\\" in prefix and ".." not in prefix:
            node["inputs"][_PREFIX] = prefix.replace("\\", "/")
        if node["class_type"] == "SaveImageWebsocket":
            inputs = {**node["inputs"], "filename_prefix": "ComfyUI"}
            workflow[node_id] = {**node, "class_type": "SaveImage", "inputs": inputs}
    return workflow


def overridden(workflow: Workflow, given: object) -> tuple[Workflow, list[str]]:
    """The workflow with replaced inputs, and a warning for each input that it did not have."""
    warnings: list[str] = []
    if given is None:
        return workflow, warnings
    for node_id, values in _override_items(given):
        if node_id not in workflow:
            raise JobError(
                "overrides.unknown_node",
                f"overrides names node {short(node_id)}, which the workflow does not have.",
                f"Its nodes are: {_list_nodes(workflow)}.",
                node_id=node_id,
            )
        inputs = workflow[node_id]["inputs"]
        for name in values:
            if name not in inputs:
                has = ", ".join(map(str, inputs))[:300] or "none"
                warnings.append(
                    f"overrides: node {node_id[:60]} had no input {short(name)} (it has {has})"
                )
        workflow[node_id]["inputs"] = {**inputs, **values}
    return workflow, warnings[:_MOST_WARNINGS]


def _override_items(given: object) -> Iterator[tuple[str, Mapping[str, Any]]]:
    shape = 'an object such as {"6": {"text": "a cat"}}'
    if not isinstance(given, Mapping):
        raise wrong_type("overrides", shape, given)
    for node_id, values in given.items():
        if not isinstance(values, Mapping):
            raise wrong_type(f"overrides[{short(node_id)}]", shape, values)
        yield str(node_id), {str(name): value for name, value in values.items()}


def _list_nodes(workflow: Mapping[str, Mapping[str, Any]]) -> str:
    first = list(workflow.items())[:20]
    shown = [f"{key[:60]} ({node['class_type'][:60]})" for key, node in first]
    return ", ".join(shown) + (" …" if len(workflow) > 20 else "")
