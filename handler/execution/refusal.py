"""Pure: explains why ComfyUI refused a workflow, in one `JobError` with everything, including the
packs of missing node classes.

Faults known in advance (missing files, broken links) only explain: ComfyUI decides, and runs the
good branches of a partly broken workflow. `hints` are such explanations, each with `node_id` and
`input` in its details.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bootstrap.core.text import joined, shell_quote
from bootstrap.nodes.node_map import EDITOR_ONLY, Origin
from bootstrap.volume.categories import GGUF, PT_EXTENSIONS, extension_of
from handler.common.errors import JobError, NodeFailed, combined, described, nearest
from handler.request.workflow import NodeInput, Workflow, bad_links, needed_by

_TYPES = {
    "INT": "a whole number",
    "FLOAT": "a number",
    "STRING": "a text",
    "BOOLEAN": "true or false",
}
_LIST_LENGTH = re.compile(r"\(list of length (\d+)\)")
_OUTPUT_NODES = "SaveImage, SaveVideo, SaveAudio, SaveAnimatedWEBP or PreviewAny"
_LISTED, _GUESSES = 5, 20
# ComfyUI checks a node within the check of the next one: Python's limit allows about 980 in a row.
_RECURSION = "maximum recursion depth exceeded"
# Class names may contain anything, even emoji.
_UNKNOWN_NODE = re.compile(r"[Nn]ode '?([^\n]{1,200}?)'? (?:does not exist|not found)")
_MISSPELT = 0.75  # similarity: FaceDetailer is not a misspelt VAEDecodeTiled (0.62)


def explain(
    body: Any,
    workflow: Workflow,
    known_classes: Sequence[str],
    models: Path,
    hints: Sequence[JobError],
) -> JobError:
    """The error for a refused prompt. `models` is ComfyUI's models folder; `known_classes` may be
    empty if no class is unknown."""
    error = _error_of(body)
    hints = [*hints, *bad_links(workflow)]
    name = unknown_class(body)
    if name is not None:
        return combined([unknown_nodes(workflow, known_classes, name), *hints])
    if error.get("type") == "prompt_no_outputs":
        return _no_output(workflow)
    problems = list(_node_problems(body, workflow, models, hints)) or hints
    if not problems:
        said, details = error.get("message") or str(body), str(error.get("details", ""))
        return JobError(
            "workflow.invalid",
            f"ComfyUI refused the workflow: {str(said)[:500]} {details[:500]}".strip() + ".",
            "Run it once in ComfyUI's editor, then export it again.",
        )
    return combined(problems)


def without_choices(body: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """The node class and `extra_info` of each value whose list is too long for ComfyUI to report;
    `/object_info` has it."""
    reports = body.get("node_errors") if isinstance(body, Mapping) else None
    for report in reports.values() if isinstance(reports, Mapping) else ():
        errors = report.get("errors") if isinstance(report, Mapping) else None
        for error in errors if isinstance(errors, list) else ():
            extra = error.get("extra_info") if isinstance(error, Mapping) else None
            if not isinstance(extra, dict) or error.get("type") != "value_not_in_list":
                continue
            if not _choices(extra.get("input_config")):
                yield str(report.get("class_type")), extra


def left_out_warnings(
    node_errors: Mapping[str, Any],
    workflow: Workflow,
    models: Path,
    hints: Sequence[JobError],
) -> list[str]:
    """Warnings for branches that ComfyUI left out although it accepted the rest."""
    hints = [*hints, *bad_links(workflow)]
    return [
        f"left out of this run: {problem.message}"
        for problem in _node_problems({"node_errors": node_errors}, workflow, models, hints)
    ]


def hint_for(hints: Sequence[JobError], error: JobError) -> JobError:
    """The hint about the node that raised `error`, if any, with the node's message."""
    node_id = error.details.get("node_id")
    found = [hint for hint in hints if hint.details.get("node_id") == node_id]
    if not isinstance(error, NodeFailed) or not found:
        return error
    first = combined(found)
    return JobError(first.code, first.message, first.fix, **{**error.details, **first.details})


def _error_of(body: Any) -> Mapping[str, Any]:
    error = body.get("error") if isinstance(body, Mapping) else None
    return error if isinstance(error, Mapping) else {"message": str(error or body)[:500]}


def _extra_of(error: Mapping[str, Any]) -> Mapping[str, Any]:
    extra = error.get("extra_info")
    return extra if isinstance(extra, Mapping) else {}


def _no_output(workflow: Workflow) -> JobError:
    classes = ", ".join(dict.fromkeys(node["class_type"] for node in workflow.values()))
    return JobError(
        "workflow.no_output",
        f"No node of the workflow produces anything (it has {classes[:300]}).",
        f"Add an output node such as {_OUTPUT_NODES}.",
    )


def _node_problems(
    body: Any, workflow: Workflow, models: Path, hints: Sequence[JobError]
) -> Iterator[JobError]:
    node_errors = body.get("node_errors") if isinstance(body, Mapping) else None
    if not isinstance(node_errors, Mapping):
        return
    for node_id, report in node_errors.items():
        errors = report.get("errors") if isinstance(report, Mapping) else None
        for error in errors if isinstance(errors, list) else []:
            if isinstance(error, Mapping):
                known = _hints_for(str(node_id), error, workflow, hints)
                if known:
                    yield from known
                else:
                    name = str(_extra_of(error).get("input_name", ""))
                    at = NodeInput(str(node_id), str(report.get("class_type")), name)
                    yield _node_problem(at, error, models)


def _hints_for(
    node_id: str, error: Mapping[str, Any], workflow: Workflow, hints: Sequence[JobError]
) -> list[JobError]:
    """The hints about the input that ComfyUI names, or, if ComfyUI itself failed on it, about
    everything that an output needs."""
    name = _extra_of(error).get("input_name")
    if str(error.get("type")).startswith("exception_during"):
        nodes = needed_by(workflow, node_id)
        return [hint for hint in hints if hint.details.get("node_id") in nodes]
    wanted = (node_id, name)
    return [h for h in hints if (h.details.get("node_id"), h.details.get("input")) == wanted]


def _node_problem(at: NodeInput, error: Mapping[str, Any], models: Path) -> JobError:
    kind, extra, node = error.get("type"), _extra_of(error), f"Node {at.node_id} ({at.class_type})"
    if kind == "value_not_in_list":
        length = _LIST_LENGTH.search(str(error.get("details")))
        return _not_in_list(at, extra, length[1] if length else "", models)
    if kind in ("value_smaller_than_min", "value_bigger_than_max"):
        fix = "Send a value within the range"
        return JobError(
            "workflow.value_out_of_range",
            f"{at.where} is out of range: {error.get('message')}.",
            fix + (', or "random" to have one drawn.' if "seed" in at.input.lower() else "."),
            **at.details,
        )
    if kind == "required_input_missing":
        return JobError(
            "workflow.input_missing",
            f"{node} lacks its required input {at.input}.",
            "Add it to the workflow, or export the workflow again.",
            **at.details,
        )
    said = f"{error.get('message')}: {error.get('details')}"
    if _RECURSION in said:
        return JobError(
            "workflow.too_deep",
            f"After node {at.node_id} ({at.class_type}) come more nodes in a row than ComfyUI can "
            f"check ({said[:200]}).",
            "Split the workflow in two: save what a node about halfway produces, and load that in "
            "the second.",
            **at.details,
        )
    sentence, fix = f"{node}: {said[:500]}.", "Correct that input, or export the workflow again."
    if kind == "invalid_input_type" and (wanted := _wanted_type(extra)) is not None:
        given = described(extra.get("received_value"))
        sentence, fix = f"{at.where} is {given}.", f"Send {wanted}."
    return JobError("workflow.invalid", sentence, fix, type=kind, **at.details)


def _wanted_type(extra: Mapping[str, Any]) -> str | None:
    config = extra.get("input_config")
    first = config[0] if isinstance(config, (list, tuple)) and config else config
    return _TYPES.get(first) if isinstance(first, str) else None


def _not_in_list(at: NodeInput, extra: Mapping[str, Any], length: str, models: Path) -> JobError:
    """ComfyUI reports only the `length` of a list with more than 20 items; see
    `without_choices`."""
    value = str(extra.get("received_value"))
    choices = _choices(extra.get("input_config"))
    close = nearest(value, choices)
    shown = f"nearest: {', '.join(close)}" if close else f"there are: {joined(choices, 10)}"
    if not choices:
        shown = f"there are {length or 'none'}"
    if extension_of(value) not in PT_EXTENSIONS | {GGUF}:
        return JobError(
            "workflow.value_not_allowed",
            f"{at.where} is {value!r}, which is not in its list ({shown}).",
            f"Send {close[0]!r} if you mean that." if close else "Send a value of its list.",
            nearest=close,
            **at.details,
        )
    return JobError(
        "workflow.missing_model",
        f"{at.where} names {value!r}, which is not among the files that ComfyUI finds for it "
        f"({shown}). It was looked for in {models}.",
        f"{f'Send {close[0]!r} if you mean that, or put' if close else 'Put'} the file into the "
        "matching folder below models/ on the volume.",
        model=value,
        nearest=close,
        **at.details,
    )


def _choices(config: Any) -> list[str]:
    """An input's allowed values: the first item of its config, or newer nodes' `options`."""
    if not isinstance(config, list) or not config:
        return []
    if isinstance(config[0], list):
        return [str(choice) for choice in config[0]]
    options = (
        config[1].get("options") if len(config) > 1 and isinstance(config[1], Mapping) else None
    )
    return [str(choice) for choice in options or []]


class UnknownNode(JobError):
    """ComfyUI lacks node classes; `classes` in the details lists them, except those that only the
    editor knows. A pack may have them."""

    @property
    def classes(self) -> list[str]:
        """The classes that may be in a pack."""
        first = next(iter(self.details.get("problems", ())), self.details)
        return [] if first.get("editor_only") else list(first.get("classes", ()))


def unknown_class(body: Any) -> str | None:
    """The node class that ComfyUI does not know, if that is why it refused."""
    error = _error_of(body)
    name = _extra_of(error).get("class_type")
    if error.get("type") == "missing_node_type" and name:
        return str(name)
    match = _UNKNOWN_NODE.search(f"{error.get('message', '')} {error.get('details', '')}")
    return match[1].strip() if match else None


def unknown_nodes(workflow: Workflow, known: Sequence[str], reported: str) -> UnknownNode:
    """The error for all classes that are not `known`; if none is, or `known` is empty, for the one
    that ComfyUI `reported`."""
    classes = dict.fromkeys(node["class_type"] for node in workflow.values())
    there = set(known or classes)
    missing = [name for name in classes if name not in there] or [reported]
    lacking = set(missing)
    ids = [key for key, node in workflow.items() if node["class_type"] in lacking]
    if any(EDITOR_ONLY.fullmatch(name) for name in missing):
        return _of_the_editor(workflow, missing, ids)
    # Each takes milliseconds of the event loop.
    close = {cls: nearest(cls, known, _MISSPELT) for cls in missing[:_GUESSES]}
    return UnknownNode(
        "workflow.unknown_node",
        f"This ComfyUI has no node class {', '.join(missing)} (node {', '.join(ids) or '?'}).",
        f"{_did_you_mean(close)} the custom node in ComfyUI/custom_nodes on the volume; if it is "
        "there, look in the worker's log for an IMPORT FAILED.",
        classes=missing,
        node_ids=ids,
        nearest=close,
    )


def _did_you_mean(close: Mapping[str, list[str]]) -> str:
    """A sentence for each probably misspelt class, and the first word of the other advice."""
    guesses = {name: " or ".join(guess) for name, guess in close.items() if guess}
    if guesses and len(close) == 1:
        return f"Did you mean {next(iter(guesses.values()))}? If not, install"
    said = [f"{name}: did you mean {guess}?" for name, guess in guesses.items()]
    return " ".join([*said, "Install"])


def _of_the_editor(workflow: Workflow, missing: list[str], ids: list[str]) -> UnknownNode:
    listed = ", ".join(f"{k} ({workflow[k]['class_type'][:60]})" for k in ids[:_LISTED])
    return UnknownNode(
        "workflow.unknown_node",
        f"Node {listed} belongs to the editor and is not a node that ComfyUI can run: a "
        "subgraph, a group node, a note, a reroute or a primitive.",
        "Export the workflow with Workflow → Export (API), which replaces these by the nodes "
        "behind them.",
        classes=missing,
        node_ids=ids,
        nearest={},
        editor_only=True,
    )


def with_origins(error: UnknownNode, date: str, origins: Mapping[str, Origin]) -> UnknownNode:
    """`error` with the packs that have the nodes, by the map of `date`; without a map (empty), with
    how to get one."""
    if not date:
        fix = (
            "To have the pack named here, fetch the map of nodes once, on a Pod with this volume: "
            "`comfyui-worker nodes map --refresh`."
        )
        return _with_fix(error, fix)
    said = [text for name, origin in origins.items() if (text := _origin_text(name, origin))]
    if not said:
        return error
    listed = f"{' '.join(said[:_LISTED])} (By the map of nodes of {date}.)"
    packs = {name: list(origin.packs) for name, origin in origins.items() if origin.packs}
    installed = any(origin.installed for origin in origins.values())
    if len(said) == len(error.details["classes"]) and not installed:  # that is all to be done
        return UnknownNode(error.code, error.message, listed, **error.details, packs=packs)
    return _with_fix(error, listed, packs=packs)


def _origin_text(name: str, origin: Origin) -> str:
    if origin.core:
        return f"{name} is ComfyUI's own: update the ComfyUI on the volume."
    if not origin.packs:
        return ""
    pack = origin.packs[0]
    if origin.installed:
        return f"{name} is in {pack}, which is in custom_nodes but was not loaded."
    add = shell_quote("comfyui-worker", "nodes", "add", pack)
    return (
        f"{name} is in {pack}: on a Pod with this volume `{add}`, then "
        "`comfyui-worker nodes pull`, and start the workers again."
    )


def _with_fix(error: UnknownNode, fix: str, **details: Any) -> UnknownNode:
    more = {**error.details, **details}
    return UnknownNode(
        error.code, error.message, f"{fix} {error.fix}" if details else f"{error.fix} {fix}", **more
    )
