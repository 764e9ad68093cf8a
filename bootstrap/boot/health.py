"""The worker's health, answered on a local socket to `bootstrap/healthcheck.py`.

The live process answers, not a file: a killed or stopped worker cannot look healthy, and ComfyUI's
port after a restart is known. A blocked event loop takes no jobs, answers none and sees no cancel,
while the process, ComfyUI and Runpod's pings (a separate process) look normal.
"""

from __future__ import annotations

import errno
import json
import logging
import socket
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bootstrap.boot.report import BootReport
from bootstrap.comfyui import ComfyUI, explain_exit, is_answering
from bootstrap.core.findings import Finding, Outcome, error, errors_in
from bootstrap.healthcheck import connected, socket_path, socket_paths

if TYPE_CHECKING:
    import asyncio

_log = logging.getLogger(__name__)

CODES = {"worker.loop_stuck": "The worker's event loop is stuck: no job is taken or answered"}
_EVERY = 1.0
_ALLOWED = 10.0
_SECOND_CHANCE = 1.0
_ANSWER_SECONDS = 0.5
# Too many open files, while models are read; no memory; a client that went away.
_TRANSIENT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.ECONNABORTED)
_IDLE_CPU_SECONDS = 0.05  # that much CPU time is also used by an idle ComfyUI


class EventLoopWatchdog:
    """Started in the loop, asked from any other thread. Reports no fault before it is started."""

    def __init__(self) -> None:
        self._last: float | None = None
        self._thread = 0
        self._moved = threading.Event()

    def begin(self) -> None:
        """Call it in the loop, which records its time from now on."""
        import asyncio  # the SDK has by now; ComfyUI's start need not wait for it

        self._thread = threading.get_ident()
        self._beat(asyncio.get_running_loop())

    def fault(self) -> Finding | None:
        """The finding about a loop that has been blocked for more than ten seconds. Blocks for at
        most a second, in which a worker that was frozen (SIGSTOP, FlashBoot) moves again."""
        last = self._last
        if last is None or time.monotonic() - last <= _ALLOWED:
            return None
        self._moved.clear()
        if self._last != last or self._moved.wait(_SECOND_CHANCE):
            return None
        return _stuck(time.monotonic() - last, _place_of(self._thread))

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        self._last = time.monotonic()
        self._moved.set()
        loop.call_later(_EVERY, self._beat, loop)


def _place_of(thread: int) -> str:
    """A thread's position: `file:line in function`."""
    frame = sys._current_frames().get(thread)
    if frame is None:
        return "nowhere: its thread has ended"
    (at,) = traceback.extract_stack(frame, limit=1)
    return f"{at.filename}:{at.lineno} in {at.name}"


def _stuck(seconds: float, place: str) -> Finding:
    return error(
        "worker.loop_stuck",
        f"The worker's loop has been blocked for {seconds:.0f} s; it is at {place}.",
        "Restart this worker (docker restart, or terminate it in Runpod's console), and report "
        "where it is blocked.",
        seconds=round(seconds),
        place=place,
    )


@dataclass(frozen=True)
class Health:
    """`text` is one line for people."""

    healthy: bool
    text: str


def health_of(
    report: BootReport | None, comfyuis: Sequence[ComfyUI] = (), stuck: Finding | None = None
) -> Health:
    """The health of a worker with the boot `report` (None: still booting) and a blocked loop
    (`stuck`: `EventLoopWatchdog.fault`). Blocks for at most half a second for each ComfyUI; one
    healthy ComfyUI is enough. *Degraded* is healthy: such a worker tells each job what is wrong and
    how to fix it, and restarting the container would not help. A ComfyUI that has worked before is
    asked.
    """
    if stuck is not None:
        return Health(False, f"{stuck.code}: {stuck.message} {stuck.fix}")
    if report is None:
        return Health(False, "starting: no jobs are taken yet")
    if report.outcome is Outcome.READY:
        return _best(comfyuis)
    first = errors_in(report.findings)[0]
    verdict = f"{report.outcome.value}: {first.code}: {first.message}"
    if report.outcome is Outcome.UNFIT:
        return Health(False, verdict)
    if worked := [comfyui for comfyui in comfyuis if comfyui.was_ready]:
        now = _best(worked)
        return Health(now.healthy, f"{now.text}; when it started: {verdict}")
    return Health(True, verdict)


def _best(comfyuis: Sequence[ComfyUI]) -> Health:
    found = [_serving(comfyui) for comfyui in comfyuis]
    return max(found, key=lambda health: health.healthy)


def _serving(comfyui: ComfyUI) -> Health:
    ended = comfyui.ended()
    if ended is not None:
        why = explain_exit(ended)
        return Health(False, f"ComfyUI is not running: {why.code}: {why.message}")
    before = comfyui.cpu_seconds()
    if is_answering(comfyui, _ANSWER_SECONDS):
        return Health(True, "ready: ComfyUI answers")
    after = comfyui.cpu_seconds()
    if not comfyui.was_ready:
        return Health(False, "ComfyUI is being restarted")
    if before is not None and after is not None and after - before > _IDLE_CPU_SECONDS:
        return Health(True, "ready: ComfyUI computes, and does not answer meanwhile")
    return Health(False, "ComfyUI is alive, but neither answers nor computes")


class HealthMonitor:
    """The worker's health at any moment; `report` and `comfyuis` are set once they exist."""

    def __init__(self) -> None:
        self.loop_watchdog = EventLoopWatchdog()
        self.report: BootReport | None = None
        self.comfyuis: tuple[ComfyUI, ...] = ()
        self._watches: list[Callable[[], Finding | None]] = [self.loop_watchdog.fault]
        self._socket = HealthSocket(self.now)

    def open(self) -> None:
        """Start answering health checks on this machine."""
        self._socket.open()

    def close(self) -> None:
        """Stop answering."""
        self._socket.close()

    def watch(self, fault: Callable[[], Finding | None]) -> None:
        """Also ask `fault` about what serves the jobs, from any thread."""
        self._watches.append(fault)

    def now(self) -> Health:
        """Blocks like `health_of`, and a second more if the loop is blocked."""
        stuck = next((found for look in self._watches if (found := look()) is not None), None)
        return health_of(self.report, self.comfyuis, stuck)


class HealthSocket:
    """Answers each connection with the current result of `look`, from `open` to `close`."""

    def __init__(self, look: Callable[[], Health]) -> None:
        self._look = look
        self._path = socket_path(uuid.uuid4().hex)
        self._server: socket.socket | None = None

    def open(self) -> None:
        """Listen. If that fails, the worker logs it and goes on."""
        try:
            _sweep()
            self._server = _listening(self._path)
        except OSError as problem:
            why = problem.strerror or problem
            _log.warning("health checks will find no worker: %s: %s", self._path, why)
            return
        serve = threading.Thread(target=self._serve, args=(self._server,), name="health")
        serve.daemon = True
        serve.start()

    def close(self) -> None:
        """Stop listening, if it was."""
        if self._server is None:
            return
        self._path.unlink(missing_ok=True)
        try:
            self._server.shutdown(socket.SHUT_RDWR)  # wakes the thread, which close alone does not
        except OSError:
            pass
        self._server = None

    def _serve(self, server: socket.socket) -> None:
        with server:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError as problem:
                    if problem.errno not in _TRANSIENT:
                        return  # closed
                    time.sleep(_EVERY)
                    continue
                with connection:
                    self._tell(connection)

    def _tell(self, connection: socket.socket) -> None:
        try:
            now = self._look()
        except Exception as problem:  # noqa: BLE001  # the next client needs an answer too
            now = Health(False, f"the worker cannot tell: {type(problem).__name__}: {problem}")
        try:
            connection.sendall(json.dumps(vars(now)).encode() + b"\n")
        except OSError:
            pass  # the client did not wait


def _sweep() -> None:
    """Remove sockets of killed workers."""
    for path in socket_paths():
        connection = connected(path)
        if connection is None:
            with suppress(OSError):  # another user's
                path.unlink()
        else:
            connection.close()


def _listening(path: Path) -> socket.socket:
    """It gets its name once it listens: another worker's sweep must not take it for a leftover."""
    early = path.with_suffix(".new")
    server = socket.socket(socket.AF_UNIX)
    try:
        server.bind(str(early))
        early.chmod(0o600)
        server.listen()
        early.rename(path)
    except OSError:
        server.close()
        early.unlink(missing_ok=True)
        raise
    return server
