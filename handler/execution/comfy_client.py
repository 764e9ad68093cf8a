"""ComfyUI over HTTP and WebSocket. aiohttp's exceptions are translated here."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import aiohttp

from bootstrap.comfyui import ComfyUI, prompt_hooks
from handler.common.blocking import VolumeWatchdog
from handler.common.errors import Deadline
from handler.execution.history import read_entry

_Socket = Any  # aiohttp's class is generic in some versions and not in others
_ANSWER_SECONDS = 30.0
_SOCKET_CLOSE = aiohttp.ClientWSTimeout(ws_close=0.0)  # does not wait for the server's close frame
_QUEUE_SECONDS = 10.0
# ComfyUI validates a large workflow before it answers; /object_info starts scans of all models.
_SLOW_ANSWER_SECONDS = 120.0
# CPU time is not measured for answers within this time.
_AT_ONCE = 0.2
# ComfyUI is frozen if it gives no answer in so many seconds and uses less CPU time meanwhile,
# several times in a row, since a host or a volume may stall for a while. If it computes, each check
# gets twice the time.
_LOOK_SECONDS, _IDLE_CPU_SECONDS, _IDLE_LOOKS = 3.0, 0.05, 3
_PATIENT_LOOKS, _LONGEST_LOOK = 6, 30.0
# A volume may stall for a while, and the job has already cost something, so this many checks in a
# row, at least two seconds apart; answering them costs ComfyUI a little CPU time.
STALL_LOOKS, _ASKED_CPU_SECONDS = 8, 0.1
# All nodes' states, again at each step of one; `progress` says what is reported.
_UNUSED = '{"type": "progress_state"'
# How long a cancelled prompt may take to end; the rest of two seconds is for killing ComfyUI.
_LET_GO_SECONDS = 1.5
# The same for prompts that its nodes queued, and theirs; if there are still more, ComfyUI is
# killed.
_GENERATIONS = 4


class Unreachable(Exception):
    """ComfyUI did not answer: no connection, cut off, or too slow."""


class Refused(Exception):
    """ComfyUI answered with a status other than 200, or `body` is not a JSON object."""

    def __init__(self, status: int, body: Any) -> None:
        super().__init__(f"status {status}: {str(body)[:300]}")
        self.status = status
        self.body = body


class ComfyClient:
    """A client for the ComfyUI at `url`, for one job: nothing stays open between jobs. All calls
    raise `Unreachable` or `Refused`.
    """

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self._url = url
        self._session = session

    async def submit(
        self,
        workflow: Any,
        client_id: str,
        prompt_id: str,
        extra_data: Mapping[str, Any],
        targets: Sequence[str] | None = None,
        rerun: Sequence[str] = (),
    ) -> tuple[str, Mapping[str, Any]]:
        """Queue a workflow; returns (prompt id, errors of nodes that were left out)."""
        mark = {prompt_hooks.MARK: {"rerun": list(rerun)}}
        body = {"prompt": workflow, "client_id": client_id, "prompt_id": prompt_id}
        body["extra_data"] = {**extra_data, **mark}
        if targets is not None:
            body["partial_execution_targets"] = list(targets)
        answer = await self._call("POST", "/prompt", body, _SLOW_ANSWER_SECONDS)
        return str(answer["prompt_id"]), answer.get("node_errors") or {}

    async def history(self, prompt_id: str, seconds: float = _ANSWER_SECONDS) -> Any | None:
        """The history entry of a finished prompt; None if it has not finished, or is unknown."""
        return (await self._call("GET", f"/history/{prompt_id}", None, seconds)).get(prompt_id)

    async def queued(self) -> tuple[list[str], list[str]]:
        """Prompt ids (running, pending), the pending ones in their order."""
        queue = await self._call("GET", "/queue", None, _QUEUE_SECONDS)
        running, pending = queue.get("queue_running", []), queue.get("queue_pending", [])
        pending.sort(key=lambda item: item[0])  # it is returned as a heap
        return [str(item[1]) for item in running], [str(item[1]) for item in pending]

    async def interrupt(self, prompt_id: str) -> None:
        """Interrupt the running prompt; versions before 0.3.57 interrupt any running prompt."""
        await self._call("POST", "/interrupt", {"prompt_id": prompt_id})

    async def remove_pending(self, prompt_ids: Sequence[str]) -> None:
        """Remove pending prompts from the queue."""
        await self._call("POST", "/queue", {"delete": list(prompt_ids)})

    async def free(self) -> None:
        """Unload models and drop cached results; ComfyUI does so after the running prompt."""
        await self._call("POST", "/free", {"unload_models": True, "free_memory": True})

    async def node_classes(self) -> list[str]:
        """All node classes of this ComfyUI. Slow: it scans all model folders."""
        return list(await self._call("GET", "/object_info", None, _SLOW_ANSWER_SECONDS))

    async def input_configs(self, class_type: str) -> dict[str, Any]:
        """How a node class declares its inputs, their lists of choices included; empty if ComfyUI
        does not say."""
        path = f"/object_info/{quote(class_type, safe='')}"
        try:
            info = await self._call("GET", path, None, _QUEUE_SECONDS)
            configs: dict[str, Any] = {}
            for group in info[class_type]["input"].values():
                configs = {**group, **configs}
            return configs
        except (Refused, Unreachable, LookupError, TypeError, AttributeError):
            return {}

    async def listen(self, client_id: str) -> AsyncIterator[dict[str, Any] | bytes] | None:
        """Open the socket; yields its messages until it ends for any reason, binary ones as bytes.
        None if it does not open."""
        address = f"{self._url}/ws?clientId={client_id}"
        try:
            socket = await self._session.ws_connect(address, max_msg_size=0, timeout=_SOCKET_CLOSE)
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError):
            return None
        return _messages(socket)

    async def _call(
        self, method: str, path: str, body: Any = None, seconds: float = _ANSWER_SECONDS
    ) -> Any:
        limit = aiohttp.ClientTimeout(total=seconds)
        try:
            async with self._session.request(
                method, self._url + path, json=body, timeout=limit
            ) as answer:
                content = _content(await answer.read())
                if answer.status != 200 or not isinstance(content, dict):
                    raise Refused(answer.status, content)
                return content
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as problem:
            raise Unreachable(f"{method} {path}: {problem or type(problem).__name__}") from problem


class VolumeStallDetector:
    """Detects a ComfyUI that waits for a volume that has stopped responding: a node that opens a
    model there hangs in the kernel, while ComfyUI's server answers and its log is quiet."""

    def __init__(self, cpu_seconds: Callable[[], float | None], volume: VolumeWatchdog) -> None:
        """`cpu_seconds` is what ComfyUI has used so far; None if unknown."""
        self._cpu_seconds = cpu_seconds
        self._volume = volume
        self._used: float | None = None
        self._seen = 0

    async def is_stalled(self) -> bool:
        """Call it every few seconds while a prompt runs: has ComfyUI computed nothing, and the
        volume not responded, for too long?"""
        used, before = self._cpu_seconds(), self._used
        self._used = used
        idle = used is not None and before is not None and used - before <= _ASKED_CPU_SECONDS
        waits = idle and not await self._volume.responds()
        self._seen = self._seen + 1 if waits else 0
        return self._seen >= STALL_LOOKS


class KnownClasses:
    """The node classes of a ComfyUI, requested once per process because that is slow."""

    def __init__(self) -> None:
        self._generation: int | None = None
        self._names: list[str] = []

    async def names(self, client: ComfyClient, generation: int) -> list[str]:
        """All of them; empty if ComfyUI does not answer. `generation` changes with the process."""
        if self._generation != generation or not self._names:
            try:
                self._names = await client.node_classes()
                self._generation = generation
            except (Refused, Unreachable):
                return []
        return self._names


async def _messages(socket: _Socket) -> AsyncIterator[dict[str, Any] | bytes]:
    async with socket:
        async for message in socket:
            if message.type is aiohttp.WSMsgType.TEXT:
                if not message.data.startswith(_UNUSED):
                    yield json.loads(message.data)
            elif message.type is aiohttp.WSMsgType.BINARY:
                yield message.data


@asynccontextmanager
async def connect(url: str) -> AsyncIterator[ComfyClient]:
    """A client for one job. Proxies from the environment are not used."""
    # The address is numeric. aiohttp's default resolver would start a thread each time.
    connector = aiohttp.TCPConnector(resolver=aiohttp.ThreadedResolver())
    async with aiohttp.ClientSession(trust_env=False, connector=connector) as session:
        yield ComfyClient(url, session)


def _content(raw: bytes) -> Any:
    """JSON (ComfyUI's may contain bare NaN) if it is JSON, else text."""
    if not raw:
        return {}
    try:
        return json.loads(raw)
    except ValueError:
        return raw.decode("utf-8", "replace")


async def fetch_history(
    comfyui: ComfyUI, client: ComfyClient, prompt_id: str, deadline: Deadline
) -> Any | None:
    """The prompt's entry; None while there is none. Raises Refused, and Unreachable if ComfyUI is
    frozen: it neither answers nor uses CPU time. One that computes may hold the GIL, and gets more
    time."""
    seconds, idle = _LOOK_SECONDS, 0
    for last in (False,) * (_PATIENT_LOOKS - 1) + (True,):
        before = None
        limit = min(seconds, max(deadline.remaining, 1.0))
        asking = asyncio.ensure_future(client.history(prompt_id, limit))
        try:
            await asyncio.wait({asking}, timeout=_AT_ONCE)
            before = None if asking.done() else comfyui.cpu_seconds()
            return await asking
        except Unreachable:
            if deadline.expired:
                return None
            after = comfyui.cpu_seconds()
            works = before is None or after is None or after - before > _IDLE_CPU_SECONDS
            idle = 0 if works else idle + 1
            if last or idle == _IDLE_LOOKS:
                raise
            seconds = min(2 * seconds, _LONGEST_LOOK) if works else seconds
        finally:
            asking.cancel()
    raise AssertionError("the last look returns or raises")


async def remove_prompts(client: ComfyClient, prompt_ids: Sequence[str]) -> bool:
    """Remove or interrupt the prompts in ComfyUI, and those that their nodes queued (known once
    they have ended); are they gone?"""
    ours = list(prompt_ids)
    try:
        for _ in range(_GENERATIONS):
            await asyncio.wait_for(_removed(client, ours), _LET_GO_SECONDS)
            ours = [queued for one in ours for queued in await _queued_by(client, one)]
            if not ours:
                return True
    except (Unreachable, Refused, asyncio.TimeoutError):
        pass
    return False


async def _removed(client: ComfyClient, prompt_ids: Sequence[str]) -> None:
    """Poll until they are gone; a node checks the interrupt flag only now and then."""
    while True:
        running, pending = await client.queued()
        if waiting := [one for one in prompt_ids if one in pending]:
            await client.remove_pending(waiting)
        elif runs := next((one for one in prompt_ids if one in running), None):
            await client.interrupt(runs)
        else:
            return
        await asyncio.sleep(0.1)


async def _queued_by(client: ComfyClient, prompt_id: str) -> Sequence[str]:
    try:
        ended = read_entry(await client.history(prompt_id, _LET_GO_SECONDS))
    except Refused:
        return ()  # its outputs cannot be written as JSON
    return () if ended is None else ended.queued
