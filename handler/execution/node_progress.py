"""Sans I/O: a prompt's progress by ComfyUI's socket messages and queue.

The socket can fall silent, drop, or be replaced by a stale connection with the same client id, and
nothing is replayed, so only history.py decides how a prompt ended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from handler.request.workflow import Workflow

QUEUED, RUNNING = "queued", "running"


@dataclass(frozen=True)
class ProgressUpdate:
    """The stage, percent of it done (None: unknown), and further fields."""

    stage: str
    percent: float | None = None
    more: Mapping[str, Any] = field(default_factory=dict)


class NodeProgress:
    """One prompt's progress. `node` is the id of the last node reported as running."""

    def __init__(self, workflow: Workflow) -> None:
        self._workflow = workflow
        self._done: set[str] = set()
        self._share = 0.0  # of the running node
        self._percent = 0.0
        self.node: str | None = None
        self.started = False

    def on_message(self, message: Mapping[str, Any], prompt_id: str) -> ProgressUpdate | None:
        """The update for a socket message; None if nothing changes."""
        data = message.get("data")
        if not isinstance(data, Mapping) or data.get("prompt_id", prompt_id) != prompt_id:
            return None
        kind = message.get("type")
        if kind == "execution_start":
            return self._update()
        if kind == "execution_cached" and isinstance(data.get("nodes"), list):
            self._done |= {str(node) for node in data["nodes"]}
            return self._update()
        if kind == "executing" and data.get("node") is not None:
            self._begin(str(data["node"]))
            return self._update()
        if kind == "progress":
            return self._progress(data)
        return None

    def on_queue(self, running: bool, ahead: int) -> ProgressUpdate | None:
        """The update for the queue: `ahead` prompts are before this one."""
        if running:
            return None if self.started else self._update()
        return ProgressUpdate(QUEUED, None, {"position": ahead + 1})

    def current_node(self) -> dict[str, Any]:
        """The last node reported as running, for an error's details."""
        return {} if self.node is None else {"node_id": self.node, "node_type": self._class()}

    def _begin(self, node: str) -> None:
        if self.node is not None and self.node != node:
            self._done.add(self.node)
        self.node, self._share = node, 0.0

    def _progress(self, data: Mapping[str, Any]) -> ProgressUpdate | None:
        step, steps = _number(data.get("value")), _number(data.get("max"))
        if step is None or not steps:
            return None
        if data.get("node") is not None and str(data["node"]) != self.node:
            self._begin(str(data["node"]))
        self._share = min(max(step / steps, 0.0), 1.0)
        return self._update(step=step, steps=steps)

    def _update(self, **more: Any) -> ProgressUpdate:
        self.started = True
        done = len(self._done & set(self._workflow)) + self._share
        # A node that expands into others, or is reported twice, must not move the bar back.
        self._percent = max(self._percent, 100 * min(done / max(len(self._workflow), 1), 1.0))
        if self.node is not None:
            more = {"node": self.node, "class_type": self._class(), **more}
        return ProgressUpdate(
            RUNNING, self._percent, {k: v for k, v in more.items() if v is not None}
        )

    def _class(self) -> str | None:
        """Nodes from an expansion have ids such as `5.0.1`: reported as the original node."""
        node = self._workflow.get((self.node or "").partition(".")[0])
        return None if node is None else node.get("class_type")


def position(prompt_id: str, running: Sequence[str], pending: Sequence[str]) -> tuple[bool, int]:
    """(is it running, number of prompts before it) in a queue, with `pending` in order."""
    if prompt_id in pending:
        return False, len(running) + pending.index(prompt_id)
    return prompt_id in running, 0


def announces_end(message: Mapping[str, Any], prompt_id: str) -> bool:
    """Does a socket message mean that the history now has this prompt? `execution_success` comes a
    moment too early."""
    data = message.get("data")
    if not isinstance(data, Mapping) or data.get("prompt_id") != prompt_id:
        return False
    return message.get("type") == "executing" and data.get("node") is None


def node_outputs(message: Mapping[str, Any], prompt_id: str) -> dict[str, Any] | None:
    """The outputs that a finished node of this prompt reports, in the history's form; None for
    other messages."""
    data = message.get("data")
    if message.get("type") != "executed" or not isinstance(data, Mapping):
        return None
    if data.get("prompt_id") != prompt_id or not data.get("output"):
        return None
    return {str(data.get("node")): data["output"]}


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        return None
    return value
