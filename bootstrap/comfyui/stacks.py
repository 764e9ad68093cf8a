"""Pure: what a process is at, from the stacks of its threads as faulthandler writes them.

Current thread 0x00007f… (most recent call first):
  File "/v/ComfyUI/custom_nodes/slow/__init__.py", line 3 in <module>
  File "<frozen importlib._bootstrap>", line 241 in _call_with_frames_removed
  File "/v/ComfyUI/nodes.py", line 2223 in load_custom_node
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_THREAD = re.compile(r"^(Current thread|Thread) 0x")
_CALL = re.compile(r'^\s*File "(?P<file>.+)", line (?P<line>\d+) in (?P<function>.+)$')
_NODE = re.compile(r"^(?P<folder>.*/custom_nodes/(?P<name>[^/]+))")
# What runs a custom node's code while ComfyUI starts: nodes.py, main.py.
_IMPORTING = frozenset({"load_custom_node", "execute_prestartup_script", "init_custom_nodes"})


@dataclass(frozen=True)
class Node:
    """A custom node at `folder`, and the innermost place in it (`file:line in function`)."""

    name: str
    folder: str
    place: str


def importing_node(stacks: Sequence[str]) -> Node | None:
    """The custom node that is being imported, by the thread that imports it; None without one."""
    for calls in _threads(stacks):
        if not any(call["function"] in _IMPORTING for call in calls):
            continue
        for call in calls:
            found = _NODE.match(call["file"])
            if found is not None:
                return Node(found["name"], found["folder"], _place(call))
    return None


def innermost_call(stacks: Sequence[str]) -> str | None:
    """Where the main thread is, which faulthandler writes last; in a file that can be looked at."""
    for calls in reversed(_threads(stacks)):
        for call in calls:
            if not call["file"].startswith("<"):
                return _place(call)
    return None


def _place(call: re.Match[str]) -> str:
    return f"{call['file']}:{call['line']} in {call['function']}"


def _threads(stacks: Sequence[str]) -> list[list[re.Match[str]]]:
    threads: list[list[re.Match[str]]] = []
    for line in stacks:
        if _THREAD.match(line):
            threads.append([])
        elif threads and (call := _CALL.match(line)):
            threads[-1].append(call)
    return threads
