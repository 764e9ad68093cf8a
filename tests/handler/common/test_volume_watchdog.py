"""Work on a volume that goes silent is abandoned in time; a slow one may take its time."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from handler.common import blocking
from handler.common.blocking import NoResponse, Pool, TimeUp, VolumeWatchdog
from handler.common.errors import JobError
from tests.support.waiting import Clock, Hang, wait_until

T = TypeVar("T")


def watchdog(root: Path) -> VolumeWatchdog:
    return VolumeWatchdog(root, Pool("volume", 4, 4))


def call(volume: VolumeWatchdog, work: Callable[[], T], seconds: float = 30) -> T:
    return asyncio.run(volume.call(work, seconds))


@pytest.fixture
def silence(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Looks at the volume block until this is set, as calls into a dead mount do."""
    over = threading.Event()

    def lexists(_: object) -> bool:
        assert over.wait(30)
        return False

    monkeypatch.setattr(os.path, "lexists", lexists)
    monkeypatch.setattr(blocking, "_LOOK_EVERY", 0.1)
    monkeypatch.setattr(blocking, "RESPONSE_SECONDS", 0.2)
    yield over
    over.set()


def test_what_work_returns_and_raises_comes_through(tmp_path: Path) -> None:
    volume = watchdog(tmp_path)
    assert asyncio.run(volume.responds())
    assert call(volume, lambda: 7) == 7
    with pytest.raises(FileNotFoundError):
        call(volume, lambda: os.stat(tmp_path / "nothing"))
    with pytest.raises(TimeoutError, match="its own"):
        call(volume, late)


def late() -> None:
    raise TimeoutError("its own")


def test_slow_work_on_a_volume_that_answers_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocking, "_LOOK_EVERY", 0.05)
    started = time.monotonic()
    call(watchdog(tmp_path), lambda: time.sleep(0.5))
    assert time.monotonic() - started >= 0.5


def test_work_that_takes_longer_than_its_limit_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    over, volume, clock = threading.Event(), watchdog(tmp_path), Clock()
    monkeypatch.setattr(blocking, "time", clock)

    async def scene() -> None:
        with pytest.raises(TimeUp):
            await volume.call(Hang(over, clock), 50)

    asyncio.run(scene())
    assert volume.pool.hanging == 1
    over.set()


def test_a_silent_volume_is_given_up_and_asked_by_one_thread_only(
    tmp_path: Path, silence: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume, before = watchdog(tmp_path), set(threading.enumerate())
    with pytest.raises(NoResponse, match="does not respond"):
        call(volume, silence.wait)
    begun = threading.Event()
    for _ in range(20):
        with pytest.raises(NoResponse):
            call(volume, begun.set)
    assert not begun.is_set(), "not even tried while it is known"
    assert len(set(threading.enumerate()) - before) == 2, "the first work, and the one look"
    silence.set()
    wait_until(lambda: not volume.pool.hanging)
    monkeypatch.setattr(blocking, "RESPONSE_SECONDS", 30.0)
    assert call(volume, lambda: "back") == "back"


def test_a_job_is_reported_what_to_do(tmp_path: Path, silence: threading.Event) -> None:
    with pytest.raises(JobError) as caught:
        asyncio.run(watchdog(tmp_path).call_or_fail(silence.wait, 30))
    assert caught.value.code == "volume.silent" and "Send the job again" in caught.value.fix
    assert str(tmp_path) in caught.value.message
