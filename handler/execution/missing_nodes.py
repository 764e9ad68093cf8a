"""Pure: node classes that a ComfyUI does not have, and the packs that have them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from bootstrap.core.text import typed
from bootstrap.nodes.node_map import EDITOR_ONLY, Origin
from handler.common.errors import JobError, nearest
from handler.request.workflow import Workflow

# Authors put anything into a class name, emoji included.
_UNKNOWN_NODE = re.compile(r"[Nn]ode '?([^\n]{1,200}?)'? (?:does not exist|not found)")
_LISTED = 5


class UnknownNode(JobError):
    """ComfyUI lacks node classes; `classes` in the details names them, unless only the editor knows
    them. A pack may have them."""

    @property
    def classes(self) -> list[str]:
        """Those that may be in a pack."""
        first = next(iter(self.details.get("problems", ())), self.details)
        return [] if first.get("editor_only") else list(first.get("classes", ()))


def unknown_class(error: Mapping[str, Any]) -> str | None:
    """The node class that ComfyUI does not know, if that is why it refused with this error."""
    if error.get("type") == "missing_node_type":
        extra = error.get("extra_info")
        if isinstance(extra, Mapping) and extra.get("class_type"):
            return str(extra["class_type"])
    match = _UNKNOWN_NODE.search(f"{error.get('message', '')} {error.get('details', '')}")
    return match[1].strip() if match else None


def unknown_nodes(
    workflow: Workflow, known: Sequence[str], named: str | None = None
) -> UnknownNode | None:
    """The error for all classes that are not `known`; `named` is one that ComfyUI named, which is
    all there is when `known` is empty. None when every class is known."""
    classes = dict.fromkeys(node["class_type"] for node in workflow.values())
    missing = [name for name in classes if name not in set(known)] if known else []
    missing = missing or ([named] if named is not None else [])
    if not missing:
        return None
    ids = [key for key, node in workflow.items() if node["class_type"] in missing]
    if any(EDITOR_ONLY.fullmatch(name) for name in missing):
        return _of_the_editor(workflow, missing, ids)
    close = {cls: nearest(cls, known) for cls in missing}
    hints = "; ".join(f"{cls}: did you mean {', '.join(n)}?" for cls, n in close.items() if n)
    return UnknownNode(
        "workflow.unknown_node",
        f"This ComfyUI has no node class {', '.join(missing)} (node {', '.join(ids) or '?'}).",
        f"{hints + ' ' if hints else ''}Install the custom node in ComfyUI/custom_nodes on the "
        "volume, and look in the worker's log for an IMPORT FAILED if it is there.",
        classes=missing,
        node_ids=ids,
        nearest=close,
    )


def _of_the_editor(workflow: Workflow, missing: list[str], ids: list[str]) -> UnknownNode:
    told_of = ", ".join(f"{k} ({workflow[k]['class_type'][:60]})" for k in ids[:_LISTED])
    return UnknownNode(
        "workflow.unknown_node",
        f"Node {told_of} is something of the editor, not a node that ComfyUI can run: a "
        "subgraph, a group node, a note, a reroute or a primitive.",
        "Export the workflow with Workflow → Export (API), which replaces these by the nodes "
        "behind them.",
        classes=missing,
        node_ids=ids,
        nearest={},
        editor_only=True,
    )


def with_origins(error: UnknownNode, date: str, origins: Mapping[str, Origin]) -> UnknownNode:
    """`error` with the packs that have the nodes, by the map of `date`; empty where no map is kept,
    and then with how to get one."""
    if not date:
        fix = (
            "To have the pack named here, fetch the map of nodes once, on a Pod with this volume: "
            "`comfyui-worker nodes map --refresh`."
        )
        return _with_fix(error, fix)
    said = [text for name, origin in origins.items() if (text := _where(name, origin))]
    if not said:
        return error
    listed = " ".join(said[:_LISTED])
    packs = {name: list(origin.packs) for name, origin in origins.items() if origin.packs}
    return _with_fix(error, f"{listed} (By the map of nodes of {date}.)", packs=packs)


def _where(name: str, origin: Origin) -> str:
    if origin.core:
        return f"{name} is ComfyUI's own: update the ComfyUI on the volume."
    if not origin.packs:
        return ""
    pack = origin.packs[0]
    if origin.installed:
        return f"{name} is in {pack}, which is in custom_nodes but was not loaded."
    add = typed("comfyui-worker", "nodes", "add", pack)
    return (
        f"{name} is in {pack}: on a Pod with this volume `{add}`, then "
        "`comfyui-worker nodes pull`, and start the workers again."
    )


def _with_fix(error: UnknownNode, fix: str, **details: Any) -> UnknownNode:
    more = {**error.details, **details}
    return UnknownNode(
        error.code, error.message, f"{fix} {error.fix}" if details else f"{error.fix} {fix}", **more
    )
