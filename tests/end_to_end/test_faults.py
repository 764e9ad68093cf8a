"""Faults under a job on a real ComfyUI: the reason is reported, the next job works."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from bootstrap.boot import Boot
from bootstrap.config import Settings
from demo.volume import DemoVolume
from handler.common.blocking import Pool
from handler.common.errors import Deadline
from handler.execution import ComfyRecovery, MemoryRelief, restarts
from tests.conftest import BootedWorker, environment, furnished
from tests.end_to_end.test_worker import assert_refused, plain
from tests.support.secret_names import secret_names
from tests.support.waiting import until, wait_until

Boots = Callable[[Mapping[str, str]], BootedWorker]


@pytest.fixture(scope="module")
def booted(demo: DemoVolume, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BootedWorker]:
    """A worker that these tests hurt, one after the other; each leaves it working again."""
    volume = furnished(demo, tmp_path_factory.mktemp("faults") / "volume")
    env = environment(demo, volume, tmp_path_factory.mktemp("work"))
    settings, problems = Settings.from_env(env)
    booted = BootedWorker(Boot(settings, problems, env))
    yield booted
    booted.boot.stop()


def through(class_type: str, **inputs: Any) -> dict[str, dict[str, Any]]:
    """EmptyImage → a node of the tests → SaveImage."""
    nodes = plain()
    nodes["3"] = {"class_type": class_type, "inputs": {"image": ["1", 0], **inputs}}
    nodes["2"]["inputs"]["images"] = ["3", 0]
    return nodes


def comfyui_process(worker: BootedWorker) -> psutil.Process:
    """The ComfyUI process itself, behind its guard."""
    work = worker.serving.work
    assert work is not None
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if (
            "main.py" in line
            and str(work.output) in line
            and "child_guard.py" not in " ".join(line)
        ):
            return process
    raise AssertionError("no ComfyUI runs")


def is_busy(worker: BootedWorker) -> bool:
    """Does its ComfyUI run a prompt?"""
    comfyui = worker.serving.comfyui
    assert comfyui is not None
    with urllib.request.urlopen(f"{comfyui.url}/queue", timeout=30) as answer:
        return bool(json.load(answer)["queue_running"])


def assert_works(worker: BootedWorker) -> None:
    """An ordinary job succeeds."""
    reply = worker.ask({"workflow": plain(), "max_wait": 60})
    assert reply["status"] == "completed", reply


@pytest.mark.parametrize(
    ("way", "cause", "said"),
    [("SIGKILL", "comfyui.killed", "memory"), ("exit 3", "comfyui.exited", "code 3")],
)
def test_comfyui_dying_in_a_job_gives_the_reason_and_the_next_job_works(
    booted: BootedWorker, way: str, cause: str, said: str
) -> None:
    start = time.monotonic()
    reply = booted.ask({"workflow": through("TestDie", way=way), "max_wait": 60})
    answered = time.monotonic() - start
    assert_refused(reply, "comfyui.died", said)
    assert reply["details"]["cause"] == cause
    assert any("about to die" in line for line in reply["details"]["log"])
    assert answered < 30, "not at max_wait"
    assert_works(booted)


def test_a_node_that_ends_the_prompt_thread_is_named_and_the_next_job_works(
    booted: BootedWorker,
) -> None:
    """Python ignores SystemExit in a thread, and ComfyUI would wait forever."""
    start = time.monotonic()
    reply = booted.ask({"workflow": through("TestRaise", what="SystemExit"), "max_wait": 60})
    assert time.monotonic() - start < 20, "not at max_wait"
    assert_refused(reply, "comfyui.died", "SystemExit: 3", "node 3 (TestRaise)")
    assert reply["details"]["cause"] == "comfyui.prompt_thread_ended"
    assert any("faulty_nodes" in line for line in reply["details"]["log"])
    assert_works(booted)


@pytest.mark.parametrize(
    ("quietly", "code"), [(False, "comfyui.died"), (True, "comfyui.history_unreadable")]
)
def test_a_result_that_is_not_json_is_reported_and_the_next_job_works(
    booted: BootedWorker, quietly: bool, code: str
) -> None:
    """Sent to the socket it ends ComfyUI; kept in the history it makes that unreadable."""
    nodes = plain()
    nodes["3"] = {"class_type": "TestNotJson", "inputs": {"image": ["1", 0], "quietly": quietly}}
    start = time.monotonic()
    reply = booted.ask({"workflow": nodes, "max_wait": 60})
    assert time.monotonic() - start < 20, "not at max_wait"
    assert_refused(reply, code, "not JSON", "(TestNotJson)")
    if code == "comfyui.died":
        assert reply["details"]["cause"] == "comfyui.output_not_json"
    assert_works(booted)


def test_gpu_memory_that_ran_out_is_reported_and_leaves_comfyui_running(
    booted: BootedWorker,
) -> None:
    before = comfyui_process(booted).pid
    reply = booted.ask({"workflow": through("TestRaise", what="OutOfMemoryError")})
    assert_refused(reply, "job.out_of_memory", "20.00 GiB")
    assert_works(booted)
    assert comfyui_process(booted).pid == before


def test_gpu_memory_is_freed_and_the_job_run_once_more_where_the_request_says_so(
    booted: BootedWorker,
) -> None:
    nodes = through("TestRaise", what="OutOfMemoryError", once="first try")
    reply = booted.ask({"workflow": nodes, "retry_on_oom": True})
    assert reply["status"] == "completed", reply
    assert any("second run" in warning for warning in reply["warnings"])
    nodes = through("TestRaise", what="OutOfMemoryError")
    reply = booted.ask({"workflow": nodes, "retry_on_oom": True})
    assert_refused(reply, "job.out_of_memory")


def test_a_gpu_error_that_poisons_the_process_is_reported_and_comfyui_replaced(
    booted: BootedWorker,
) -> None:
    before = comfyui_process(booted)
    said = "CUDA error: an illegal memory access was encountered"
    reply = booted.ask({"workflow": through("TestRaise", what="RuntimeError", said=said)})
    assert_refused(reply, "job.cuda_failed", "illegal memory access", "restarted")
    assert not before.is_running()
    assert_works(booted)


@pytest.mark.parametrize(
    ("levels", "restarted", "said"),
    [
        ((50.0,), False, ""),
        ((92.0, 92.0, 60.0), False, "asking ComfyUI to free"),
        ((97.0,), True, "still in use; restarting ComfyUI"),
    ],
)
def test_a_container_near_its_memory_limit_is_relieved_between_jobs(
    booted: BootedWorker,
    levels: tuple[float, ...],
    restarted: bool,
    said: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The last level stays."""
    rest = list(levels)

    def percent() -> float:
        return rest.pop(0) if len(rest) > 1 else rest[0]

    comfyui = booted.serving.comfyui
    assert comfyui is not None
    before = comfyui_process(booted)
    recovery = ComfyRecovery(
        comfyui, MemoryRelief(booted.runtime.settings, percent), Pool("control", 4, 4)
    )
    asyncio.run(recovery.ensure_ready(Deadline(60)))
    assert before.is_running() is not restarted
    assert said in capfd.readouterr().err
    assert_works(booted)


def test_no_memory_is_freed_under_a_running_prompt(booted: BootedWorker) -> None:
    comfyui = booted.serving.comfyui
    assert comfyui is not None
    job = threading.Thread(target=booted.ask, args=({"workflow": through("TestSleep", seconds=6)},))
    job.start()
    wait_until(lambda: is_busy(booted))
    relief = MemoryRelief(booted.runtime.settings, lambda: 99.0)
    assert asyncio.run(relief.ensure_memory(comfyui.url)) is True
    job.join()


def test_comfyui_frozen_in_a_job_is_reported_within_seconds(booted: BootedWorker) -> None:
    frozen = comfyui_process(booted)

    def freeze() -> None:
        wait_until(lambda: is_busy(booted))
        frozen.send_signal(signal.SIGSTOP)

    threading.Thread(target=freeze).start()
    start = time.monotonic()
    reply = booted.ask({"workflow": through("TestSleep", seconds=120), "max_wait": 100})
    assert time.monotonic() - start < 30, "not at max_wait"
    assert_refused(reply, "comfyui.unreachable", "is running but does not answer")
    assert not frozen.is_running()
    assert_works(booted)


def test_comfyui_that_computes_and_cannot_answer_meanwhile_is_left_to_it(
    booted: BootedWorker,
) -> None:
    before = comfyui_process(booted)
    reply = booted.ask({"workflow": through("TestHoldLock", seconds=14.0), "max_wait": 100})
    assert reply["status"] == "completed", reply
    assert before.is_running()


def test_comfyui_killed_between_jobs_is_back_for_the_next(booted: BootedWorker) -> None:
    comfyui_process(booted).kill()
    assert_works(booted)


def test_a_node_that_does_not_listen_is_ended_with_comfyui(booted: BootedWorker) -> None:
    nodes = through("TestSleep", seconds=120, obedient=False)
    reply = booted.ask({"workflow": nodes, "max_wait": 1})
    assert_refused(reply, "job.timeout")
    assert_works(booted)


def test_a_frozen_comfyui_is_replaced(booted: BootedWorker) -> None:
    frozen = comfyui_process(booted)
    frozen.send_signal(signal.SIGSTOP)
    reply = booted.ask({"workflow": plain(), "max_wait": 3})
    assert_refused(reply, "job.timeout")
    assert_works(booted)
    assert not frozen.is_running()


def test_cancel_stops_the_prompt_on_comfyui(booted: BootedWorker) -> None:
    nodes = through("TestSleep", seconds=120)

    async def cancelled() -> None:
        job = asyncio.create_task(booted.worker.handle({"id": "c", "input": {"workflow": nodes}}))
        await until(lambda: is_busy(booted))
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job

    asyncio.run(cancelled())
    before = comfyui_process(booted).pid
    assert_works(booted)
    assert comfyui_process(booted).pid == before, "interrupted, not killed"


def test_a_marker_token_reaches_neither_comfyui_nor_a_reply(
    demo: DemoVolume,
    worker_env: dict[str, str],
    boot_worker: Boots,
    capfd: pytest.CaptureFixture[str],
) -> None:
    marker = "marker-7f3a9c"
    worker = boot_worker(worker_env | dict.fromkeys(secret_names(), marker))
    nodes = {"1": {"class_type": "TestShowEnvironment", "inputs": {}}}
    reply = worker.ask({"workflow": nodes, "comfy_org_api_key": f"{marker}-too"})
    assert "VOLUME_PATH" in reply["results"][0]["text"]
    broken = worker.ask({"workflow": {"1": {"class_type": "Nope", "inputs": {}}}})
    out, err = capfd.readouterr()
    for text in (
        repr(reply),
        repr(broken),
        repr(worker.report),
        repr(worker.runtime.settings),
        out,
        err,
    ):
        assert marker not in text


def test_a_comfyui_that_did_not_start_with_the_worker_is_tried_again_later(
    worker_env: dict[str, str],
    boot_worker: Boots,
    volume: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Reported at once meanwhile; a job after the pause finds that it starts now."""
    breaking = volume / "breaking"
    breaking.touch()
    pack = volume / "ComfyUI" / "custom_nodes" / "breaks_the_start"
    pack.mkdir()
    (pack / "__init__.py").write_text(
        f"import os\nif os.path.exists({str(breaking)!r}):\n    os._exit(9)\n"
        "NODE_CLASS_MAPPINGS = {}\n"
    )
    worker = boot_worker(worker_env)
    assert_refused(worker.ask({"workflow": plain()}), "comfyui.exited", "This worker cannot run")
    assert worker.serving.comfyui.generation == 1
    breaking.unlink()
    later = SimpleNamespace(monotonic=lambda: time.monotonic() + 60)
    monkeypatch.setattr(restarts, "time", later)
    assert_works(worker)
    assert_works(worker)


def test_a_full_volume_costs_no_result(
    demo: DemoVolume, worker_env: dict[str, str], boot_worker: Boots, volume: Path
) -> None:
    """`ComfyUI/output` is a file: nothing can be kept, the reply still has the picture."""
    output = volume / "ComfyUI" / "output"
    for leftover in output.iterdir():
        leftover.unlink()
    output.rmdir()
    output.write_text("in the way")
    reply = boot_worker(worker_env).ask({"workflow": plain()})
    assert reply["status"] == "completed"
    assert reply["results"][0]["image"]
    assert any("could not be kept" in warning for warning in reply["warnings"])
    assert os.path.isfile(output)


def test_a_job_keeps_its_reason_though_no_thread_is_free_to_look_at_the_volume(
    booted: BootedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handler.jobs.workflow_job.GRACE_SECONDS", 0.2)
    released = threading.Event()

    async def fails() -> dict[str, Any]:
        for _ in range(6):
            booted.worker.calls.control.submit(released.wait)
        nodes = through("TestRaise", what="RuntimeError", said="the reason")
        return await booted.worker.handle({"id": "busy", "input": {"workflow": nodes}})

    try:
        assert_refused(asyncio.run(fails()), "job.node_failed", "the reason")
    finally:
        released.set()
    assert_works(booted)
