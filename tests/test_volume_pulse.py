"""Work on a volume that falls silent is given up in time; a slow one may take its time."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from handler import volume_pulse
from handler.errors import JobError
from handler.volume_pulse import Pulse, VolumeSilent


@pytest.fixture
def silence(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Looks at the volume block until this is set, as calls into a dead mount do."""
    over = threading.Event()

    def lexists(_: object) -> bool:
        assert over.wait(30)
        return False

    monkeypatch.setattr(os.path, "lexists", lexists)
    monkeypatch.setattr(volume_pulse, "_LOOK_EVERY", 0.1)
    monkeypatch.setattr(volume_pulse, "_PATIENCE", 0.2)
    yield over
    over.set()


def test_what_work_returns_and_raises_comes_through(tmp_path: Path) -> None:
    pulse = Pulse(tmp_path)
    assert pulse.beats()
    assert pulse.attended(lambda: 7) == 7
    with pytest.raises(FileNotFoundError):
        pulse.attended(lambda: os.stat(tmp_path / "nothing"))
    with pytest.raises(TimeoutError, match="its own"):
        pulse.attended(late)


def late() -> None:
    raise TimeoutError("its own")


def test_slow_work_on_a_volume_that_answers_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volume_pulse, "_LOOK_EVERY", 0.05)
    started = time.monotonic()
    Pulse(tmp_path).attended(lambda: time.sleep(0.5))
    assert time.monotonic() - started >= 0.5


def test_a_silent_volume_is_given_up_and_asked_by_one_thread_only(
    tmp_path: Path, silence: threading.Event
) -> None:
    pulse, before = Pulse(tmp_path), threading.active_count()
    with pytest.raises(VolumeSilent, match="does not answer"):
        pulse.attended(silence.wait)
    begun = threading.Event()
    for _ in range(20):
        with pytest.raises(VolumeSilent):
            pulse.attended(begun.set)
    assert not begun.is_set(), "not even tried while it is known"
    assert threading.active_count() == before + 2, "the first work, and the one look"
    silence.set()
    while threading.active_count() > before:
        time.sleep(0.01)
    assert pulse.attended(lambda: "back") == "back"


def test_a_job_is_told_what_to_do(tmp_path: Path, silence: threading.Event) -> None:
    with pytest.raises(JobError) as caught:
        Pulse(tmp_path).needed(silence.wait)
    assert caught.value.code == "volume.silent" and "Send the job again" in caught.value.fix
    assert str(tmp_path) in caught.value.message
