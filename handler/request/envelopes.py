"""Pure: where clients put a workflow, and what they send beside it.

A workflow comes as `workflow`, as ComfyUI's own `/prompt` body, as what its editor's
`graphToPrompt` returns, or in a field that another worker's clients know. All mean the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from handler.common.errors import JobError, short, wrong_type
from handler.request.fields import InputFile, checked_name
from handler.request.workflow import Workflow

# Fields of other workers that hold the workflow where `workflow` does not.
_OTHER_FIELDS = ("prompt", "workflow_json", "workflow_api", "payload")
# Fields of other workers, and what says the same here.
EQUIVALENTS = {
    "command": '`type` ("download", "models", "diagnostics")',
    "timeout": "`max_wait`",
    "webhook": "`webhook` beside `input`, which is Runpod's own",
    "input_images": "`images`",
    "image": "`images`",
    "s3": "`s3Config`",
    "client_id": "nothing: each job has its own",
    "prompt_id": "nothing: the job's id is Runpod's",
    "modifications": "`overrides`",
    "file_path_list": "`files`",
}
BESIDE = ("extra_data", "extra_pnginfo", "partial_execution_targets", "file_inputs")


@dataclass(frozen=True)
class Envelope:
    """What was sent as the workflow, and what goes to ComfyUI beside it. `fields` of the input were
    taken for that; `notes` tell of those that have another name here."""

    workflow: object
    extra_data: dict[str, Any] = field(default_factory=dict, repr=False)  # may hold a key
    targets: tuple[str, ...] | None = None
    fields: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


def opened(given: Mapping[str, Any]) -> Envelope:
    """What a request holds. Raises JobError where something beside it has a wrong type."""
    sent, taken = given.get("workflow"), "workflow"
    if sent is None or (isinstance(sent, str) and not sent.lstrip().startswith(("{", "["))):
        other = next((name for name in _OTHER_FIELDS if isinstance(given.get(name), Mapping)), None)
        if other is not None:
            sent, taken = given[other], other
    body = sent if isinstance(sent, Mapping) else {}
    inner = next((body[n] for n in ("prompt", "output") if _holds_nodes(body.get(n))), None)
    beside = [given]
    if inner is not None and not _holds_nodes(body):
        sent = inner
        beside = [body, given]
    notes = () if taken == "workflow" else (f"the workflow was taken from `{taken}`",)
    return Envelope(
        sent,
        _extra_data(beside, body if sent is inner else {}),
        _targets(beside),
        frozenset({taken, *BESIDE}),
        notes,
    )


def file_inputs(given: Mapping[str, Any], workflow: Workflow) -> tuple[InputFile, ...]:
    """comfy-gen's `{"NODE": {"url": …, "filename": …, "field": …}}`; the workflow then names the
    files. Raises JobError."""
    return tuple(_file_inputs(given.get("file_inputs"), workflow))


def ignored(given: Mapping[str, Any], known: set[str]) -> tuple[str, ...]:
    """A warning about fields that this worker does not read, with what says the same here."""
    unknown = sorted(str(key) for key in given if key not in known)
    if not unknown:
        return ()
    told = [f"{n} (here: {EQUIVALENTS[n]})" if n in EQUIVALENTS else short(n) for n in unknown[:20]]
    plain = [text.strip('"') for text in told]
    more = f" and {len(unknown) - 20} more" if len(unknown) > 20 else ""
    return (f"ignored unknown fields of the input: {', '.join(plain)}{more}",)


def _holds_nodes(value: object) -> bool:
    return isinstance(value, Mapping) and any(
        isinstance(node, Mapping) and "class_type" in node for node in value.values()
    )


def _extra_data(places: list[Mapping[str, Any]], body: Mapping[str, Any]) -> dict[str, Any]:
    """Beside the workflow, in the body that held it first; the editor's own form of it becomes
    `extra_pnginfo`, which nodes read and ComfyUI writes into pictures."""
    found: dict[str, Any] = {}
    drawn = body.get("workflow")
    if isinstance(drawn, Mapping) and isinstance(drawn.get("nodes"), list):
        found["extra_pnginfo"] = {"workflow": drawn}
    for place in reversed(places):
        extra = place.get("extra_data")
        if extra is not None and not isinstance(extra, Mapping):
            raise wrong_type("extra_data", "an object, as ComfyUI's /prompt takes it", extra)
        found |= extra or {}
        info = place.get("extra_pnginfo")
        if info is not None and not isinstance(info, Mapping):
            raise wrong_type("extra_pnginfo", 'an object such as {"workflow": {…}}', info)
        found |= {"extra_pnginfo": info} if info is not None else {}
    return found


def _targets(places: list[Mapping[str, Any]]) -> tuple[str, ...] | None:
    for place in places:
        targets = place.get("partial_execution_targets")
        if targets is None:
            continue
        if not isinstance(targets, list):
            raise wrong_type("partial_execution_targets", "a list of node ids", targets)
        return tuple(str(target) for target in targets)
    return None


def _file_inputs(given: object, workflow: Workflow) -> Iterator[InputFile]:
    shape = 'an object such as {"12": {"url": "https://…", "filename": "a.png", "field": "image"}}'
    if given is None:
        return
    if not isinstance(given, Mapping):
        raise wrong_type("file_inputs", shape, given)
    for node_id, item in given.items():
        parts = [item.get(n) for n in ("url", "filename", "field")] if _is_object(item) else []
        if not parts or not all(isinstance(part, str) and part for part in parts):
            raise wrong_type(f"file_inputs[{short(node_id)}]", shape, item)
        url, filename, name = map(str, parts)
        if str(node_id) not in workflow:
            raise JobError(
                "overrides.unknown_node",
                f"file_inputs names node {short(node_id)}, which the workflow does not have.",
                "Name a node of the workflow.",
                node_id=str(node_id),
            )
        plain = checked_name(filename)
        workflow[str(node_id)]["inputs"][name] = plain
        yield InputFile(plain, url=url)


def _is_object(item: object) -> bool:
    return isinstance(item, Mapping)
