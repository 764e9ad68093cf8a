"""A worker whose loop is blocked reports it, and one that was frozen does not look blocked."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from bootstrap import healthcheck
from bootstrap.boot import health
from bootstrap.boot.health import EventLoopWatchdog, health_of
from tests.bootstrap.boot.test_health import checked
from tests.support import blocking_worker
from tests.support.control_plane import ControlPlane
from tests.support.sources import ROOT
from tests.support.waiting import Clock, wait_until
from tests.support.worker_process import WorkerProcess

ALLOWED = 10.0


@contextmanager
def beating(watchdog: EventLoopWatchdog) -> Iterator[asyncio.AbstractEventLoop]:
    """A loop in a thread, that it watches."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    loop.call_soon_threadsafe(watchdog.begin)
    wait_until(lambda: watchdog._last is not None)
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


def test_a_loop_that_never_began_has_no_fault() -> None:
    assert EventLoopWatchdog().fault() is None


def test_a_loop_that_moves_has_none_and_a_blocked_one_is_reported_with_its_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, release, blocked = [0.0], threading.Event(), threading.Event()
    monkeypatch.setattr(health, "time", SimpleNamespace(monotonic=lambda: now[0]))
    watchdog = EventLoopWatchdog()

    def block() -> None:
        blocked.set()
        release.wait(30)

    with beating(watchdog) as loop:
        assert watchdog.fault() is None
        loop.call_soon_threadsafe(block)
        assert blocked.wait(10)
        now[0] = ALLOWED
        assert watchdog.fault() is None, "it may take a while"
        now[0] = ALLOWED + 20
        fault = watchdog.fault()
        assert fault is not None and fault.code == "worker.loop_stuck"
        assert re.search(r"has been blocked for 30 s; it is at .*threading\.py:", fault.message)
        reported = health_of(None, (), fault)
        assert not reported.healthy and reported.text.startswith("worker.loop_stuck: ")
        assert "docker restart" in reported.text
        release.set()
        wait_until(lambda: watchdog.fault() is None)


def test_the_first_look_after_a_thaw_gives_the_loop_the_time_to_move(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(health, "_SECOND_CHANCE", 30.0)
    clock = Clock()
    monkeypatch.setattr(health, "time", clock)
    watchdog = EventLoopWatchdog()
    with beating(watchdog) as loop:
        thaw = threading.Event()
        loop.call_soon_threadsafe(thaw.wait, 30)
        clock.ahead = 3600.0
        threading.Timer(0.2, thaw.set).start()
        assert watchdog.fault() is None


@pytest.fixture(scope="module")
def temp() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="watchdog-") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def served(temp: Path) -> Iterator[tuple[ControlPlane, WorkerProcess]]:
    """A worker of the real SDK whose jobs block its loop; it needs no ComfyUI for that."""
    with ControlPlane() as plane:
        env = {**plane.worker_env(), "TMPDIR": str(temp), "VOLUME_PATH": "/not/there"}
        command = [sys.executable, "-m", "tests.support.blocking_worker"]
        with WorkerProcess(command, env=env, cwd=ROOT) as worker:
            plane.wait_for("ready", timeout=90)
            yield plane, worker


def test_a_handler_that_blocks_the_loop_is_found_out(
    served: tuple[ControlPlane, WorkerProcess], temp: Path
) -> None:
    plane, _ = served
    assert checked(temp)[0] == 0
    os.mkfifo(temp / "fifo")
    job = plane.submit({"fifo": str(temp / "fifo")})
    stuck = re.compile(r"^worker\.loop_stuck: .*blocking_worker\.py:\d+ in block")
    wait_until(lambda: stuck.search(checked(temp)[1]) is not None)
    (temp / "fifo").write_text("enough")
    assert plane.result(job, 30)["output"] == {
        "blocked": "enough",
        "collects_garbage": True,  # it was off while modules were imported
    }
    wait_until(lambda: checked(temp)[0] == 0)  # it moves again


def test_the_first_answer_after_a_thaw_is_not_an_alarm(
    served: tuple[ControlPlane, WorkerProcess], temp: Path
) -> None:
    _, worker = served
    (path,) = temp.glob("comfyui-health-*.sock")
    os.kill(worker.pid, signal.SIGSTOP)
    time.sleep(blocking_worker.ALLOWED + 1)
    with socket.socket(socket.AF_UNIX) as asking:  # it waits there when the worker wakes
        asking.settimeout(5)
        asking.connect(str(path))
        os.kill(worker.pid, signal.SIGCONT)
        assert healthcheck._answer(asking)[0]
