"""Pure: what clients of runpod-workers/worker-comfyui (5.x) send and expect.

Its requests are ours but for the key of Comfy.org's API nodes; with RESPONSE_FORMAT=worker-comfyui
replies have its form, too. docs/migration.md lists the differences.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from bootstrap.config import Settings
from handler.common.errors import wrong_type

FORMAT = "worker-comfyui"
# Its README names the first, its configuration page the second.
KEY_FIELDS = ("comfy_org_api_key", "api_key_comfy_org")


def request_key(given: Mapping[str, Any]) -> dict[str, str]:
    """The Comfy.org key of a request, as ComfyUI gets it beside the workflow. It is a secret.
    Raises JobError."""
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


def as_asked(reply: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """A reply in the form the endpoint is set to, with REFRESH_WORKER's request to Runpod."""
    asked = dict(reply)
    if settings.response_format == FORMAT:
        asked = _failed(reply) if "error" in reply else _completed(reply)
    if settings.refresh_worker:
        asked["refresh_worker"] = True
    return asked


def _completed(reply: Mapping[str, Any]) -> dict[str, Any]:
    """`images` holds every file, as its SaveVideo is there too; our further fields stay."""
    images: list[dict[str, Any]] = []
    errors = [str(warning) for warning in reply.get("warnings", ())]
    texts: list[str] = []
    for entry in reply.get("results", ()):
        if "text" in entry:
            texts.append(entry["text"])
        elif image := _image(entry):
            images.append(image)
    ours = ("status", "results", "warnings")
    more = {name: value for name, value in reply.items() if name not in ours}
    if texts:
        more["texts"] = texts
    if not images and errors and not set(more) - {"timings"}:
        return {"error": "Job processing failed", "details": errors}
    shaped: dict[str, Any] = {"images": images, **more}
    if not images:
        shaped["status"] = "success_no_images"
    if errors:
        shaped["errors"] = errors
    return shaped


def _image(entry: Mapping[str, Any]) -> dict[str, Any] | None:
    """An entry of `images`; None for a file that is only named, as a warning says."""
    if "url" in entry:
        return {"filename": entry["filename"], "type": "s3_url", "data": entry["url"]}
    content = entry.get("image") or entry.get("data")
    if content is None:
        return None
    return {"filename": entry["filename"], "type": "base64", "data": content}


def _failed(reply: Mapping[str, Any]) -> dict[str, Any]:
    """`error` and a list of strings; our stable code stays beside them."""
    details = reply.get("details") or {}
    shaped: dict[str, Any] = {"error": reply["error"], "details": list(_lines(details))}
    if "error_code" in reply:
        shaped["error_code"] = reply["error_code"]
    return shaped


def _lines(details: Mapping[str, Any]) -> Iterable[str]:
    for name, value in details.items():
        for item in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(item, Mapping) and "message" in item:
                yield f"{item.get('code', name)}: {item['message']}"
            else:
                yield f"{name}: {item}"
