"""Pure: request and reply formats of other clients.

A workflow may come as `workflow`, as ComfyUI's own `/prompt` body, as the result of its editor's
`graphToPrompt`, or in another worker's field, all with the same meaning. Clients of
runpod-workers/worker-comfyui (5.x) send requests like ours, and a key for Comfy.org's API nodes;
with RESPONSE_FORMAT=worker-comfyui replies have its format too. docs/migration.md lists the
differences.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from bootstrap.config import Settings
from bootstrap.core.text import joined
from bootstrap.net.addresses import without_query
from handler.common.errors import JobError, short, wrong_type
from handler.request.fields import InputFile, checked_name
from handler.request.workflow import Workflow, unwrapped

# Other workers' fields for the workflow, if there is no `workflow`.
_OTHER_FIELDS = ("prompt", "workflow_json", "workflow_api", "payload")
# Other workers' fields, and the equivalent here.
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
FORMAT = "worker-comfyui"
# Its README has the first, its configuration page the second.
KEY_FIELDS = ("comfy_org_api_key", "api_key_comfy_org")


@dataclass(frozen=True)
class Envelope:
    """What was sent as the workflow, and the extra data for ComfyUI. `fields` of the input were
    used for that; `notes` name those with another name here."""

    workflow: object
    extra_data: dict[str, Any] = field(default_factory=dict, repr=False)  # may hold a key
    targets: tuple[str, ...] | None = None
    fields: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


def read_envelope(given: Mapping[str, Any]) -> Envelope:
    """Open a request's envelope. Raises JobError if something beside the workflow has the wrong
    type."""
    sent, taken = given.get("workflow"), "workflow"
    if sent is None or (isinstance(sent, str) and not sent.lstrip().startswith(("{", "["))):
        other = next((name for name in _OTHER_FIELDS if isinstance(given.get(name), Mapping)), None)
        if other is not None:
            sent, taken = given[other], other
    body = sent if isinstance(sent, Mapping) else {}
    inner = unwrapped(sent)
    beside = [given] if inner is sent else [body, given]
    notes = () if taken == "workflow" else (f"the workflow was taken from `{taken}`",)
    return Envelope(
        inner,
        _extra_data(beside, {} if inner is sent else body),
        _targets(beside),
        frozenset({taken, *BESIDE}),
        notes,
    )


def file_inputs(given: Mapping[str, Any], workflow: Workflow) -> tuple[InputFile, ...]:
    """comfy-gen's `{"NODE": {"url": …, "filename": …, "field": …}}`; the workflow then names the
    files. Raises JobError."""
    return tuple(_file_inputs(given.get("file_inputs"), workflow))


def ignored(given: Mapping[str, Any], known: set[str]) -> tuple[str, ...]:
    """A warning about fields that this worker does not read, with the equivalents here."""
    unknown = sorted(without_query(str(key)) for key in given if key not in known)
    if not unknown:
        return ()
    texts = [
        f"{n} (here: {EQUIVALENTS[n]})" if n in EQUIVALENTS else short(n).strip('"')
        for n in unknown
    ]
    return (f"ignored unknown fields of the input: {joined(texts, 20)}",)


def _extra_data(places: list[Mapping[str, Any]], body: Mapping[str, Any]) -> dict[str, Any]:
    """The extra data beside the workflow; the editor's own format of it becomes `extra_pnginfo`,
    which nodes read and ComfyUI writes into pictures."""
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
        fields = item if isinstance(item, Mapping) else {}
        parts = [fields.get(name) for name in ("url", "filename", "field")]
        if not all(isinstance(part, str) and part for part in parts):
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


def request_key(given: Mapping[str, Any]) -> dict[str, str]:
    """A request's Comfy.org key, in the form that ComfyUI gets. It is secret. Raises JobError."""
    for name in KEY_FIELDS:
        key = given.get(name)
        if key is not None and not isinstance(key, str):
            raise wrong_type(name, "the API key as a string", "something else")
        if key:
            return {"api_key_comfy_org": key}
    return {}


def endpoint_key(settings: Settings) -> dict[str, str]:
    """The same, of the endpoint."""
    own = settings.comfy_org_api_key
    return {"api_key_comfy_org": own.reveal()} if own else {}


def in_requested_form(reply: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """A reply in the endpoint's configured format, with REFRESH_WORKER's request to Runpod."""
    asked = dict(reply)
    if settings.response_format == FORMAT:
        asked = _failed(reply) if "error" in reply else _completed(reply)
    if settings.refresh_worker:
        asked["refresh_worker"] = True
    return asked


def _completed(reply: Mapping[str, Any]) -> dict[str, Any]:
    """`images` has every file, as there for SaveVideo too; our additional fields stay."""
    images: list[dict[str, Any]] = []
    errors = [str(warning) for warning in reply.get("warnings", ())]
    texts: list[str] = []
    kept: list[str] = []
    for entry in reply.get("results", ()):
        if "text" in entry:
            texts.append(entry["text"])
        elif image := _image(entry):
            images.append(image)
        elif "path" in entry:
            kept.append(entry["path"])
    ours = ("status", "results", "warnings", "url")
    more = {name: value for name, value in reply.items() if name not in ours}
    if texts:
        more["texts"] = texts
    if kept:
        more["kept"] = kept
    if not reply.get("results") and errors and not set(more) - {"timings"}:
        return {"error": "Job processing failed", "details": errors}
    shaped: dict[str, Any] = {"images": images, **more}
    if not images:
        shaped["status"] = "success_no_images"
    if errors:
        shaped["errors"] = errors
    return shaped


def _image(entry: Mapping[str, Any]) -> dict[str, Any] | None:
    """An entry of `images`; None for a file that has only a path."""
    if "url" in entry:
        return {"filename": entry["filename"], "type": "s3_url", "data": entry["url"]}
    content = entry.get("image", entry.get("data"))
    if content is None:
        return None
    return {"filename": entry["filename"], "type": "base64", "data": content}


def _failed(reply: Mapping[str, Any]) -> dict[str, Any]:
    """`error` and a list of strings; our stable code and its link stay."""
    details = reply.get("details") or {}
    shaped: dict[str, Any] = {"error": reply["error"], "details": list(_lines(details))}
    return shaped | {name: reply[name] for name in ("error_code", "docs") if name in reply}


def _lines(details: Mapping[str, Any]) -> Iterable[str]:
    for name, value in details.items():
        for item in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(item, Mapping) and "message" in item:
                yield f"{item.get('code', name)}: {item['message']}"
            else:
                yield f"{name}: {item}"
