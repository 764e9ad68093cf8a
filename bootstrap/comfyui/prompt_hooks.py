"""Inside ComfyUI's process: what the worker needs for a prompt beyond ComfyUI's API.

- A saver whose result is cached reports the file that it wrote back then, which may be gone. Nodes
  that `rerun` names run although they are cached; their inputs, and all other nodes, stay as they
  are, so that loaders and samplers keep their results.
- A node that has expanded into nodes that save is answered from the cache without a word of them;
  the history then reports what they reported.
- ComfyUI tells only the socket, once, why a node was blocked; the history says it as well.
- A prompt that a node queues runs right after the one that queued it, whose history names it.

Also, Python's cyclic garbage collector is off until ComfyUI has imported all nodes: a fifth of the
start's processor time would go into passes over hundreds of thousands of objects, few of them
garbage. These are then left out of all later passes: ComfyUI's own after a prompt would take a
quarter of a second, during which its server does not answer.

`run_main.py` installs this before ComfyUI imports its `execution`. `PromptExecutor.execute` and
`PromptQueue.put` have been there with these arguments since 2023; whatever else is missing in a
version is left out. Standard library only, and nothing of the project.
"""

from __future__ import annotations

import functools
import gc
import importlib.abc
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

# In `extra_data` of a worker's own prompts, which no node sees: {"rerun": [node ids]}.
MARK = "comfyui_worker"
BLOCKED, QUEUED = "node_blocked", "prompts_queued"  # messages in the history's status
_READS, _WRITES = ("get", "get_local"), ("set", "set_local")
_RIGHT_AFTER = 1e-6
_ABSENT = object()


def install() -> None:
    """Hook into ComfyUI's import of `execution`."""
    gc.disable()
    sys.meta_path.insert(0, _WhenImported())


class _WhenImported(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: object = None, target: object = None) -> Any:
        if name != "execution":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            load(module)
            _quietly(attach, module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def attach(execution: Any) -> None:
    """Wrap the functions of ComfyUI's module `execution` that run and queue prompts."""
    queued: dict[str, list[str]] = {}  # by the prompt that ran then
    executor = execution.PromptExecutor
    executor.__init__ = _collecting(executor.__init__)
    queue = execution.PromptQueue
    executor.execute = _observed(executor.execute, queued)
    queue.put = _followed(queue.put, queued)


def _collecting(begin: Callable[..., None]) -> Callable[..., None]:
    """The thread that runs prompts makes its executor once the nodes have been imported."""

    @functools.wraps(begin)
    def begun(*given: Any, **named: Any) -> None:
        if not gc.isenabled():
            gc.freeze()
            gc.enable()
        begin(*given, **named)

    return begun


def _observed(execute: Callable[..., Any], queued: dict[str, list[str]]) -> Callable[..., Any]:
    expanded: dict[Any, dict[str, Any]] = {}  # by the key that a node is cached under

    @functools.wraps(execute)
    def observed(
        self: Any, prompt: Any, prompt_id: str, extra_data: Any = None, *rest: Any, **named: Any
    ) -> Any:
        targets = rest[0] if rest else named.get("execute_outputs", ())
        extra_data = dict(extra_data or {})
        mark = extra_data.pop(MARK, {})
        blocked: list[dict[str, Any]] = []
        with ExitStack() as stack:
            _quietly(_hide, stack, self, mark.get("rerun", ()))
            _quietly(_listen, stack, self.server, blocked)
            result = execute(self, prompt, prompt_id, extra_data, *rest, **named)
        self.status_messages = getattr(self, "status_messages", [])
        self.status_messages += [(BLOCKED, each) for each in blocked]
        if prompt_id in queued:
            self.status_messages.append((QUEUED, {"prompt_ids": queued.pop(prompt_id)}))
        _quietly(_recall, self, prompt, targets, expanded)
        return result

    return observed


def _quietly(work: Callable[..., None], *arguments: Any) -> None:
    """A different ComfyUI inside must not make prompts fail."""
    try:
        work(*arguments)
    except Exception as problem:  # noqa: BLE001
        print(f"{work.__name__.strip('_')}: {type(problem).__name__}: {problem}", file=sys.stderr)


def _hide(stack: ExitStack, executor: Any, node_ids: Any) -> None:
    """Hide these nodes' cached results until they have run."""
    for name in ("outputs", "outputs_ui"):  # before August 2024
        for node_id in node_ids:
            getattr(executor, name, {}).pop(node_id, None)
    outputs = getattr(getattr(executor, "caches", None), "outputs", None)
    # A node from an expansion has the original's id, a dot and more.
    parts = [node_id.split(".") for node_id in node_ids]
    hidden = {".".join(part[: n + 1]) for part in parts for n in range(len(part))}
    if outputs is None or not hidden:
        return
    for name in _READS + _WRITES:
        method = getattr(outputs, name, None)
        if method is not None:
            make = _read if name in _READS else _write
            stack.enter_context(_replaced(outputs, name, make(method, hidden)))


def _read(method: Callable[..., Any], hidden: set[str]) -> Callable[..., Any]:
    async def later(node_id: str) -> Any:
        return None if node_id in hidden else await method(node_id)

    def now(node_id: str) -> Any:
        return None if node_id in hidden else method(node_id)

    return later if inspect.iscoroutinefunction(method) else now


def _write(method: Callable[..., Any], hidden: set[str]) -> Callable[..., Any]:
    def write(node_id: str, value: Any) -> Any:
        hidden.discard(node_id)
        return method(node_id, value)

    return write


def _listen(stack: ExitStack, server: Any, blocked: list[dict[str, Any]]) -> None:
    send = server.send_sync

    def send_sync(event: Any, data: Any, *rest: Any, **named: Any) -> Any:
        if event == "execution_error" and data.get("exception_type") == "ExecutionBlocked":
            known = ("node_id", "node_type", "exception_message")
            blocked.append({name: data.get(name) for name in known})
        return send(event, data, *rest, **named)

    stack.enter_context(_replaced(server, "send_sync", send_sync))


def _recall(executor: Any, prompt: Any, targets: Any, expanded: dict[Any, dict[str, Any]]) -> None:
    """Report what cached nodes needed for `targets` once expanded into."""
    outputs: Any = getattr(getattr(executor, "caches", None), "outputs", None)
    if not hasattr(outputs, "cache_key_set"):  # with --cache-none, and before August 2024
        return
    made, about = executor.history_result["outputs"], executor.history_result["meta"]
    keys = {node_id: outputs.cache_key_set.get_data_key(node_id) for node_id in prompt}
    now = {each["real_node_id"] for each in about.values() if each["parent_node"] is not None}
    for node_id in now:
        inner = {n: (made[n], about[n]) for n in made if about[n]["real_node_id"] == node_id}
        expanded[keys[node_id]] = {n[len(node_id) :]: both for n, both in inner.items()}
    for key in [key for key in expanded if key not in outputs.cache]:
        del expanded[key]
    for node_id in _needed(prompt, targets) - now:
        for rest, (ui, meta) in expanded.get(keys[node_id], {}).items():
            made.setdefault(node_id + rest, ui)
            about.setdefault(node_id + rest, {**meta, "real_node_id": node_id})


def _needed(prompt: Any, targets: Any) -> set[str]:
    needed: set[str] = set()
    pending = list(targets)
    while pending:
        node_id = pending.pop()
        if node_id in prompt and node_id not in needed:
            needed.add(node_id)
            inputs = prompt[node_id]["inputs"].values()
            pending += [str(v[0]) for v in inputs if isinstance(v, list) and len(v) == 2]
    return needed


@contextmanager
def _replaced(holder: Any, name: str, value: Any) -> Iterator[None]:
    before = vars(holder).get(name, _ABSENT)
    setattr(holder, name, value)
    try:
        yield
    finally:
        if before is _ABSENT:
            delattr(holder, name)
        else:
            setattr(holder, name, before)


def _followed(put: Callable[..., Any], queued: dict[str, list[str]]) -> Callable[..., Any]:
    @functools.wraps(put)
    def followed(self: Any, item: Any, *rest: Any, **named: Any) -> Any:
        try:
            running = next(iter(self.currently_running.values()), None)
            if running is not None and MARK not in item[3]:
                before = queued.setdefault(running[1], [])
                before.append(item[1])
                item = (running[0] + _RIGHT_AFTER * len(before), *item[1:])
        except (AttributeError, IndexError, TypeError) as problem:
            print(f"a prompt that a node queued: {problem!r}", file=sys.stderr)
        return put(self, item, *rest, **named)

    return followed
