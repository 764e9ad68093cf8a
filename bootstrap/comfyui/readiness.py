"""Is ComfyUI ready? A pure decision, and a thin polling loop.

Ready means: the process lives *and* `GET /system_stats` answers 200. faulthandler's stacks of its
threads show where it hangs.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from bootstrap.comfyui.exits import StartFault, explain_exit
from bootstrap.comfyui.process import ComfyUI, not_startable
from bootstrap.core.findings import Finding, Severity

_log = logging.getLogger(__name__)

CODES = {
    "comfyui.start_timeout": "ComfyUI is running, but did not answer in time",
    "comfyui.node_hangs": "A custom node hangs during its import",
}
POLL_SECONDS = 0.03
_REPORT_SECONDS = 15.0
_ANSWER_SECONDS = 5.0
_MOST_PORTS = 3
# Unauthorized, forbidden, and redirects to a page; ComfyUI's own server answers none of them here.
_NO_ENTRY = frozenset((301, 302, 303, 307, 308, 401, 403))


class Readiness(Enum):
    """The state of a starting ComfyUI."""

    READY = "ready"
    ENDED = "ended"
    TOO_LATE = "too late"
    WAIT = "wait"


def readiness_of(ended: bool, answers: bool, elapsed: float, limit: float) -> Readiness:
    """Pure: an ended process is never ready, even if something answers on its port."""
    if ended:
        return Readiness.ENDED
    if answers:
        return Readiness.READY
    return Readiness.TOO_LATE if elapsed >= limit else Readiness.WAIT


@dataclass(frozen=True)
class WaitResult:
    """`finding` is None when ComfyUI is ready."""

    seconds: float
    finding: Finding | None


def wait_until_ready(comfyui: ComfyUI, limit: float, since: float | None = None) -> WaitResult:
    """Wait until `limit` seconds after `since` (monotonic; None: now); returns within one poll if
    the process ends. Logs every 15 s what ComfyUI is doing. If its port was taken after it had been
    found free, as when two workers start at once, ComfyUI is restarted on another port.
    """
    start = time.monotonic() if since is None else since
    next_report = _REPORT_SECONDS
    ports_left = _MOST_PORTS - 1
    while True:
        answers = is_answering(comfyui)
        elapsed = time.monotonic() - start
        ended = comfyui.ended()
        decided = readiness_of(ended is not None, answers, elapsed, limit)
        if decided is Readiness.READY:
            comfyui.was_ready = True
            return WaitResult(elapsed, None)
        if ended is not None:
            finding = explain_exit(ended)
            if not finding.port_taken or not ports_left or elapsed >= limit:
                return WaitResult(elapsed, finding)
            ports_left -= 1
            _log.warning(
                "port %d was taken while ComfyUI started; it is started on another", comfyui.port
            )
            if (refused := _start_again(comfyui)) is not None:
                return WaitResult(elapsed, refused)
            continue
        if decided is Readiness.TOO_LATE:
            return WaitResult(elapsed, _too_late(comfyui, elapsed))
        if elapsed >= next_report:
            _log.info(
                "ComfyUI is starting, %.0f s so far; it last said: %s", elapsed, _last(comfyui)
            )
            next_report = elapsed + _REPORT_SECONDS
        time.sleep(POLL_SECONDS)


def _start_again(comfyui: ComfyUI) -> Finding | None:
    try:
        comfyui.start()
    except OSError as problem:
        return not_startable(problem)
    return None


def is_answering(comfyui: ComfyUI, seconds: float = _ANSWER_SECONDS) -> bool:
    """Does *this* ComfyUI answer `GET /system_stats` with 200 within `seconds`?

    Newer versions return their command line; one with other folders is another program on the port.
    """
    status, content = _ask(comfyui, seconds)
    if status != 200:
        return False
    try:
        argv = json.loads(content)["system"].get("argv")
        return not argv or str(comfyui.launch.folders.output) in argv
    except (ValueError, TypeError, KeyError, AttributeError):
        return False


def _ask(comfyui: ComfyUI, seconds: float) -> tuple[int, bytes]:
    """The status and content of `/system_stats`; 0 if there is no answer."""
    import http.client  # takes 15 ms, which ComfyUI's start need not wait for

    connection = http.client.HTTPConnection("127.0.0.1", comfyui.port, timeout=max(seconds, 0.1))
    try:
        connection.request("GET", "/system_stats")
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()


def _last(comfyui: ComfyUI) -> str:
    return (comfyui.log_tail(1) or ["nothing yet"])[0]


def _too_late(comfyui: ComfyUI, elapsed: float) -> StartFault:
    last, log = _last(comfyui), comfyui.log_tail()
    stacks = comfyui.stacks()
    node, place = importing_node(stacks), innermost_call(stacks)
    if node is not None:
        return StartFault(
            "comfyui.node_hangs",
            Severity.ERROR,
            f"The custom node {node.name} keeps ComfyUI from starting: after {elapsed:.0f} s it is "
            f"still at {node.place}.",
            f"Disable it on a Pod (mv '{node.folder}' '{node.folder}.disabled'), or start ComfyUI "
            "there once, if it fetches something; if it is only slow, raise BOOT_TIMEOUT.",
            details={"node": node.name, "log": [*log, *stacks]},
        )
    status, _ = _ask(comfyui, _ANSWER_SECONDS)
    if status in _NO_ENTRY:
        return StartFault(
            "comfyui.start_timeout",
            Severity.ERROR,
            f"ComfyUI is running, but answers the worker with status {status}: a custom node asks "
            "for a login.",
            "Disable that node on a Pod (mv NODE NODE.disabled in ComfyUI/custom_nodes); on "
            "Serverless only the worker reaches ComfyUI.",
            details={"status": status, "log": log},
        )
    at = f"it last said: {last}" + (f"; it is at {place}" if place else "")
    return StartFault(
        "comfyui.start_timeout",
        Severity.ERROR,
        f"ComfyUI is running, but did not answer within {elapsed:.0f} s; {at}",
        "If it is only slow, raise BOOT_TIMEOUT; if a custom node hangs, rule it out with "
        "COMFYUI_ARGS=--disable-all-custom-nodes.",
        details={"log": [*log, *stacks]},
    )


_THREAD = re.compile(r"^(Current thread|Thread) 0x")
_CALL = re.compile(r'^\s*File "(?P<file>.+)", line (?P<line>\d+) in (?P<function>.+)$')
_NODE = re.compile(r"^(?P<folder>.*/custom_nodes/(?P<name>[^/]+))")
# The functions that run custom nodes' code while ComfyUI starts: nodes.py, main.py.
_IMPORTING = frozenset({"load_custom_node", "execute_prestartup_script", "init_custom_nodes"})


@dataclass(frozen=True)
class Node:
    """A custom node at `folder`, and the innermost place in it (`file:line in function`)."""

    name: str
    folder: str
    place: str


def importing_node(stacks: Sequence[str]) -> Node | None:
    """The custom node that is being imported, by its thread's stack; None if there is none."""
    for calls in _threads(stacks):
        if not any(call["function"] in _IMPORTING for call in calls):
            continue
        for call in calls:
            found = _NODE.match(call["file"])
            if found is not None:
                return Node(found["name"], found["folder"], _place(call))
    return None


def innermost_call(stacks: Sequence[str]) -> str | None:
    """Where the main thread is, which faulthandler writes last, in a file that exists."""
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
