"""ComfyUI as a child process: start, log, end and restart, with a fake of a few lines."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from bootstrap.comfyui.exits import explain_exit
from bootstrap.comfyui.process import ComfyUI
from bootstrap.comfyui.readiness import wait_until_ready
from tests.support import fake_comfyui
from tests.support.waiting import wait_until
from tests.support.worker_process import free_port

Make = Callable[..., ComfyUI]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Makes fake ComfyUIs that are stopped after the test."""
    made: list[ComfyUI] = []

    def make_one(behaviour: str = "", port: int = 0) -> ComfyUI:
        made.append(fake_comfyui.write(tmp_path / "ComfyUI", tmp_path / "work", behaviour, port))
        return made[-1]

    yield make_one
    for comfyui in made:
        comfyui.stop()


def started(comfyui: ComfyUI) -> ComfyUI:
    comfyui.start()
    assert wait_until_ready(comfyui, 60).finding is None
    return comfyui


def behave(comfyui: ComfyUI, behaviour: str) -> None:
    """What the next start will be like."""
    env = {**comfyui.launch.env, "BEHAVIOUR": behaviour}
    comfyui.launch = dataclasses.replace(comfyui.launch, env=env)


def descendants() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def serving_process(comfyui: ComfyUI) -> psutil.Process:
    """The fake itself, behind the guard."""
    (process,) = [
        process
        for process in descendants()
        if (command := command_of(process))[2:3] == ["main.py"] and str(comfyui.port) in command
    ]
    return process


def command_of(process: psutil.Process) -> list[str]:
    """Empty for one that has ended meanwhile."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_it_runs_with_our_flags_and_the_users(make: Make) -> None:
    comfyui = started(make())
    wait_until(lambda: bool(comfyui.log_tail()))
    (arguments,) = [line for line in comfyui.log_tail() if line.startswith("arguments")]
    output = comfyui.launch.folders.output
    assert arguments == (
        f"arguments --listen 127.0.0.1 --port {comfyui.port} --output-directory {output} --cpu"
    )
    assert comfyui.url == f"http://127.0.0.1:{comfyui.port}"
    assert (comfyui.ended(), comfyui.generation) == (None, 1)


def test_what_is_left_of_earlier_connections_does_not_cost_the_port(make: Make) -> None:
    """The side that closes first keeps its port in TIME_WAIT for a minute."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            server.accept()[0].close()
            assert client.recv(1) == b""
    assert started(make(port=port)).port == port


def test_the_port_that_was_asked_for_is_taken_when_it_is_free(make: Make) -> None:
    port = free_port()
    assert started(make(port=port)).port == port


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_another_port_is_taken_when_someone_listens_there(make: Make, address: str) -> None:
    with socket.create_server((address, 0)) as stranger:
        port = stranger.getsockname()[1]
        assert started(make(port=port)).port != port


def test_starting_twice_starts_one_process(make: Make) -> None:
    comfyui = started(make())
    process = serving_process(comfyui)
    comfyui.start()
    assert serving_process(comfyui) == process and comfyui.generation == 1


def test_stop_leaves_no_process_not_even_one_with_a_session_of_its_own(make: Make) -> None:
    before = set(descendants())
    comfyui = started(make("family"))
    wait_until(lambda: len(set(descendants()) - before) == 3)
    comfyui.stop()
    wait_until(lambda: not set(descendants()) - before)
    exit = comfyui.ended()
    assert exit is not None and exit.code == -signal.SIGTERM


def test_stop_ends_a_comfyui_that_ignores_sigterm(make: Make) -> None:
    before = set(descendants())
    comfyui = started(make("stubborn"))
    comfyui.stop()
    assert not set(descendants()) - before
    assert comfyui.exits[-1].code == -signal.SIGKILL


def test_who_asks_whether_it_has_ended_does_not_wait_until_it_is_stopped(make: Make) -> None:
    """The event loop asks, for the jobs behind the one that stops it."""
    comfyui = started(make("stubborn"))
    stopping = threading.Thread(target=comfyui.stop)
    stopping.start()
    time.sleep(0.3)
    assert comfyui.ended() is None and stopping.is_alive()
    stopping.join()
    assert comfyui.ended() is not None


def test_stopping_what_does_not_run_is_fine(make: Make) -> None:
    comfyui = make()
    comfyui.stop()
    assert (comfyui.ended(), comfyui.generation) == (None, 0)


def test_a_crash_loop_is_counted_and_only_its_last_exits_are_kept(make: Make) -> None:
    comfyui = make("exit 3 last words")
    for _ in range(7):
        assert comfyui.start()
        wait_until(lambda: comfyui.ended() is not None)
    assert (comfyui.generation, len(comfyui.exits)) == (7, 5)


def test_exits_are_listed_while_one_more_is_recorded(make: Make) -> None:
    """A diagnostics reply explains each of them, in another thread."""
    comfyui = make("exit 3 last words")
    comfyui.start()
    wait_until(lambda: comfyui.ended() is not None)
    listed = iter(comfyui.exits)
    comfyui.start()
    wait_until(lambda: comfyui.ended() is not None)
    assert [exit.code for exit in listed] == [3]


def test_an_exit_is_known_with_code_time_and_last_lines(make: Make) -> None:
    comfyui, before = make("exit 3 last words"), time.monotonic()
    comfyui.start()
    wait_until(lambda: comfyui.ended() is not None)
    exit = comfyui.ended()
    assert exit is not None
    assert (exit.code, exit.log[-1], exit.python) == (3, "last words", Path(sys.executable))
    assert 0 < exit.seconds <= time.monotonic() - before


def test_a_killed_comfyui_is_started_again_by_the_next_start(make: Make) -> None:
    comfyui = started(make())
    os.kill(serving_process(comfyui).pid, signal.SIGKILL)
    wait_until(lambda: comfyui.ended() is not None)
    assert explain_exit(comfyui.exits[0]).code == "comfyui.killed"
    started(comfyui)
    assert (comfyui.generation, len(comfyui.exits)) == (2, 1)


def test_an_earlier_processs_last_words_do_not_explain_a_later_ones_end(make: Make) -> None:
    comfyui = make("exit 1 No space left on device")
    comfyui.start()
    wait_until(lambda: comfyui.ended() is not None)
    behave(comfyui, "exit 1 something else")
    comfyui.start()
    wait_until(lambda: len(comfyui.exits) == 2 or comfyui.ended() is None)
    wait_until(lambda: comfyui.ended() is not None and len(comfyui.exits) == 2)
    assert [explain_exit(exit).code for exit in comfyui.exits] == [
        "comfyui.disk_full",
        "comfyui.exited",
    ]
    assert "No space left on device" in comfyui.log_tail()


def test_the_log_is_cut_into_lines_at_carriage_returns_and_kept_whatever_it_holds(
    make: Make,
) -> None:
    comfyui = started(make("progress"))
    wait_until(lambda: "� bytes" in comfyui.log_tail())
    log = comfyui.log_tail()
    assert log[1:4] == ["10%", "50%", "100%"]
    assert sum(line.count("@") for line in log) == 70_000


def test_the_log_goes_to_ours_with_a_prefix(make: Make, capfd: pytest.CaptureFixture[str]) -> None:
    comfyui = make("exit 0 hello there")
    comfyui.start()
    wait_until(lambda: comfyui.ended() is not None)
    written = capfd.readouterr()
    assert "[comfyui] hello there\n" in written.err
    assert written.out == ""


def test_colours_of_a_comfyui_since_may_2026_hide_nothing_from_the_worker(
    make: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    comfyui = make("exit 1 \x1b[32m[INFO]\x1b[0m \x1b[32mPrompt executed in 1 seconds\x1b[0m")
    comfyui.start()
    wait_until(lambda: comfyui.ended() is not None)
    assert comfyui.prompts_ended == 1
    assert comfyui.exits[-1].log[-1] == "Prompt executed in 1 seconds"
    behave(comfyui, "exit 1 \x1b[1m\x1b[33m[WARNING]\x1b[0m slow")
    comfyui.start()
    wait_until(lambda: comfyui.ended() is not None)
    assert "[comfyui] WARN: slow\n" in capfd.readouterr().err


def test_a_traceback_that_does_not_end_is_shown_soon(
    make: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    make("unfinished").start()
    seen = [""]

    def look() -> bool:
        seen.append(capfd.readouterr().err)
        return "File a" in "".join(seen)

    wait_until(look)
    assert "[comfyui] Traceback (most recent call last):" in "".join(seen)


def test_an_interpreter_that_is_not_there_is_an_exit_that_names_it(make: Make) -> None:
    comfyui = make()
    comfyui.launch = dataclasses.replace(comfyui.launch, python=Path("/no/such/python"))
    comfyui.start()
    wait_until(lambda: comfyui.ended() is not None)
    assert "/no/such/python" in explain_exit(comfyui.exits[-1]).message


def test_a_comfyui_folder_that_is_gone_cannot_be_started(make: Make) -> None:
    comfyui = make()
    comfyui.launch = dataclasses.replace(comfyui.launch, comfyui=Path("/no/such/folder"))
    with pytest.raises(OSError, match="/no/such/folder"):
        comfyui.start()
    assert comfyui.ended() is None


def test_what_comfyui_says_of_addresses_is_masked(
    make: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    secret = "marker-5e1f"
    comfyui = make(f"exit 3 failed: https://me:{secret}@h.org/x?token={secret}")
    comfyui.start()
    assert wait_until_ready(comfyui, 60).finding is not None
    (exit,) = comfyui.exits
    assert "failed: https://***@h.org/x?token=***" in exit.log
    reported = repr([exit, explain_exit(exit), comfyui.log_tail(), capfd.readouterr()])
    assert secret not in reported
