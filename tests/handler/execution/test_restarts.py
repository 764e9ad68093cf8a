"""ComfyUI restarted, a limited number of times; the fake is a real process."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from bootstrap.comfyui import ComfyUI
from bootstrap.config import Settings
from handler.common.blocking import Pool
from handler.common.errors import Deadline, JobError
from handler.execution import restarts
from handler.execution.restarts import ComfyRecovery, MemoryRelief
from tests.bootstrap.comfyui.test_process import behave
from tests.support import fake_comfyui
from tests.support.waiting import wait_until
from tests.support.worker_process import free_port

BROKEN = "exit 1 ModuleNotFoundError: No module named 'torchsde'"


@dataclass
class Bench:
    """A fake ComfyUI under a recovery whose clock is ours."""

    comfyui: ComfyUI
    now: float = 0.0

    def __post_init__(self) -> None:
        settings, _ = Settings.from_env({})
        relief = MemoryRelief(settings, lambda: 0.0)
        self.recovery = ComfyRecovery(self.comfyui, relief, Pool("control", 4, 4))

    def ready(self, seconds: float = 60) -> JobError | None:
        """The error a job gets; None when ComfyUI is ready for it."""
        try:
            asyncio.run(self.recovery.ensure_ready(Deadline(seconds)))
        except JobError as error:
            return error
        return None


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    comfyui = fake_comfyui.write(tmp_path / "ComfyUI", tmp_path / "work")
    bench = Bench(comfyui)
    monkeypatch.setattr(restarts, "time", SimpleNamespace(monotonic=lambda: bench.now))
    yield bench
    comfyui.stop()


def code(error: JobError | None) -> str:
    return "" if error is None else error.code


def test_a_start_that_keeps_failing_is_reported_at_once_and_tried_again_later(bench: Bench) -> None:
    behave(bench.comfyui, BROKEN)
    reported = [bench.ready() for _ in range(3)]
    assert [code(error) for error in reported] == [
        "comfyui.module_missing", "comfyui.module_missing", "comfyui.keeps_failing",
    ]  # fmt: skip
    starts = bench.comfyui.generation
    error = bench.ready()
    assert code(error) == "comfyui.keeps_failing"
    assert "3 times" in str(error) and "30 s" in str(error) and "torchsde" in str(error)
    assert bench.comfyui.generation == starts, "left alone"
    bench.now = 31
    assert "4 times" in str(bench.ready()) and bench.comfyui.generation == starts + 1
    bench.now = 31 + 59
    assert "4 times" in str(bench.ready()), "the rest doubles"
    behave(bench.comfyui, "")
    bench.now = 31 + 61
    assert bench.ready() is None
    bench.comfyui.stop()
    behave(bench.comfyui, BROKEN)
    assert code(bench.ready()) == "comfyui.module_missing", "the count starts again"


def test_a_restart_beside_the_reply_keeps_the_rest_too(bench: Bench) -> None:
    behave(bench.comfyui, BROKEN)
    for _ in range(3):
        bench.ready()
    starts = bench.comfyui.generation
    bench.recovery.restart_in_background()
    assert bench.comfyui.generation == starts


def test_a_start_that_only_takes_long_is_not_a_failure(bench: Bench) -> None:
    behave(bench.comfyui, "hang")
    for _ in range(4):
        assert code(bench.ready(0.3)) == "job.timeout"
    assert bench.comfyui.generation == 1


def test_a_folder_that_is_gone_is_reported(bench: Bench, tmp_path: Path) -> None:
    bench.comfyui.launch = replace(bench.comfyui.launch, comfyui=tmp_path / "gone")
    error = bench.ready()
    assert code(error) == "comfyui.not_startable"


def test_a_port_that_is_taken_while_comfyui_starts_costs_no_job(bench: Bench) -> None:
    port = free_port()
    bench.comfyui.launch = replace(bench.comfyui.launch, port=port)
    behave(bench.comfyui, "waiting")

    def take() -> None:
        wait_until(lambda: bench.comfyui.generation == 1)
        with socket.socket() as other:
            other.bind(("127.0.0.1", port))
            fake_comfyui.let_go(bench.comfyui)
            wait_until(lambda: bench.comfyui.generation == 2 and bench.comfyui.was_ready)

    taking = threading.Thread(target=take)
    taking.start()
    assert bench.ready() is None
    taking.join()
    assert bench.comfyui.port != port and bench.comfyui.generation == 2


def test_a_process_that_is_replaced_is_another(bench: Bench) -> None:
    assert bench.ready() is None
    asyncio.run(bench.recovery.end("The GPU failed"))
    bench.recovery.restart_in_background()
    wait_until(lambda: bench.comfyui.generation == 2)
    assert bench.ready() is None
    assert len(bench.comfyui.exits) == 1
