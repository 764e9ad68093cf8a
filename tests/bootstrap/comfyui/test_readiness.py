"""When ComfyUI counts as ready: it is alive, and it is the one that answers."""

from __future__ import annotations

import http.server
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bootstrap.comfyui.process import ComfyUI
from bootstrap.comfyui.readiness import (
    Readiness,
    WaitResult,
    is_answering,
    readiness_of,
    wait_until_ready,
)
from tests.support import fake_comfyui
from tests.support.fake_comfyui import behaving
from tests.support.waiting import wait_until
from tests.support.worker_process import free_port


@pytest.fixture
def comfyui(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[ComfyUI]:
    """A fake ComfyUI with the behaviour that the test's parameter names; not started."""
    behaviour = getattr(request, "param", "")
    made = fake_comfyui.write(tmp_path / "ComfyUI", tmp_path / "work", behaviour)
    yield made
    made.stop()


def wait(comfyui: ComfyUI, limit: float = 60) -> WaitResult:
    comfyui.start()
    return wait_until_ready(comfyui, limit)


@contextmanager
def stranger(status: int, body: bytes) -> Iterator[int]:
    """A server with one answer for everything; its port."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("ended", "answers", "elapsed", "expected"),
    [
        (False, False, 1, Readiness.WAIT),
        (False, True, 1, Readiness.READY),
        (False, True, 99, Readiness.READY),
        (False, False, 10, Readiness.TOO_LATE),
        (True, False, 1, Readiness.ENDED),
        (True, True, 1, Readiness.ENDED),
        (True, False, 99, Readiness.ENDED),
    ],
)
def test_the_verdict(ended: bool, answers: bool, elapsed: float, expected: Readiness) -> None:
    assert readiness_of(ended, answers, elapsed, 10) is expected


def test_a_comfyui_that_answers_is_ready(comfyui: ComfyUI) -> None:
    assert wait(comfyui).finding is None
    assert is_answering(comfyui)


@behaving("waiting")
def test_one_that_binds_late_is_waited_for(comfyui: ComfyUI) -> None:
    late = threading.Timer(0.3, fake_comfyui.let_go, [comfyui])
    late.start()
    assert wait(comfyui).finding is None
    assert not late.is_alive()


@behaving("exit 2 main.py: error: unrecognized arguments: --nope")
def test_an_exit_is_reported_with_its_cause_and_not_waited_for(comfyui: ComfyUI) -> None:
    waited = wait(comfyui, 600)
    assert waited.seconds < 60
    assert waited.finding is not None and waited.finding.code == "comfyui.bad_flag"


@behaving("exit 0")
def test_an_exit_with_code_0_is_not_ready_either(comfyui: ComfyUI) -> None:
    finding = wait(comfyui).finding
    assert finding is not None and finding.code == "comfyui.exited"


@behaving("hang")
def test_one_that_hangs_is_reported_when_the_time_is_up(comfyui: ComfyUI) -> None:
    comfyui.start()
    wait_until(lambda: bool(comfyui.log_tail()))
    waited = wait_until_ready(comfyui, 0.5)
    assert 0.5 <= waited.seconds < 30
    assert waited.finding is not None and waited.finding.code == "comfyui.start_timeout"
    assert "arguments --listen" in waited.finding.message
    assert waited.finding.details["log"] == comfyui.log_tail()


@behaving("hang")
def test_one_that_was_started_long_ago_does_not_flood_the_log(
    comfyui: ComfyUI, caplog: pytest.LogCaptureFixture
) -> None:
    """As the second of several, which is waited for once the first has answered."""
    comfyui.start()
    wait_until(lambda: bool(comfyui.log_tail()))
    with caplog.at_level("INFO", "bootstrap.comfyui.readiness"):
        wait_until_ready(comfyui, 102, since=time.monotonic() - 100)
    lines = [record.getMessage() for record in caplog.records]
    assert sum(line.startswith("ComfyUI is starting, 10") for line in lines) == 1


@behaving("login")
def test_a_node_that_asks_for_a_login_is_not_said_to_be_silent(comfyui: ComfyUI) -> None:
    comfyui.start()
    wait_until(lambda: accepts(comfyui.port))
    finding = wait_until_ready(comfyui, 0.5).finding
    assert finding is not None and finding.code == "comfyui.start_timeout"
    assert "status 401: a custom node asks for a login" in finding.message


@behaving("accept only")
def test_one_that_takes_connections_and_says_nothing_is_not_ready(comfyui: ComfyUI) -> None:
    comfyui.start()
    wait_until(lambda: accepts(comfyui.port))
    start = time.monotonic()
    assert not is_answering(comfyui, 0.3)
    assert time.monotonic() - start < 30, "it would say nothing for a minute"


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_two_that_start_at_once_on_one_port_both_come_up(tmp_path: Path) -> None:
    """Both find the port free; the later one to bind it is restarted on another."""
    port = free_port()
    both = [
        fake_comfyui.write(tmp_path / n / "ComfyUI", tmp_path / n, "waiting", port) for n in "ab"
    ]
    try:
        for comfyui in both:
            comfyui.start()
        assert [comfyui.port for comfyui in both] == [port, port]
        for comfyui in both:
            fake_comfyui.let_go(comfyui)
        assert [wait_until_ready(comfyui, 60).finding for comfyui in both] == [None, None]
        assert len({comfyui.port for comfyui in both}) == 2
        assert sorted(len(comfyui.exits) for comfyui in both) == [0, 1]
    finally:
        for comfyui in both:
            comfyui.stop()


@behaving("exit 1 address already in use")
def test_a_port_that_is_taken_each_time_is_reported_after_three_starts(comfyui: ComfyUI) -> None:
    comfyui.start()
    finding = wait_until_ready(comfyui, 60).finding
    assert finding is not None and finding.code == "comfyui.port_taken"
    assert comfyui.generation == 3
    assert "Remove COMFYUI_PORT" not in finding.fix


@behaving("hang")
@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, json.dumps({"system": {"argv": ["main.py", "--output-directory", "/x"]}}).encode()),
        (200, json.dumps({"system": {"argv": 5}}).encode()),
        (200, b"<html>hello</html>"),
        (200, b"[]"),
        (200, b"\xff"),
        (404, b"{}"),
        (500, json.dumps({"system": {}}).encode()),
    ],
)
def test_another_program_on_the_port_does_not_count(
    comfyui: ComfyUI, status: int, body: bytes
) -> None:
    comfyui.start()
    with stranger(status, body) as comfyui.port:
        assert not is_answering(comfyui)


@behaving("hang")
def test_an_old_version_without_its_arguments_is_accepted(comfyui: ComfyUI) -> None:
    comfyui.start()
    with stranger(200, json.dumps({"system": {"os": "posix"}}).encode()) as comfyui.port:
        assert is_answering(comfyui)
