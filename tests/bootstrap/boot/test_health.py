"""A worker's health, and the image's HEALTHCHECK."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from bootstrap import healthcheck
from bootstrap.boot.boot import Boot
from bootstrap.boot.health import Health, HealthSocket, health_of
from bootstrap.boot.report import BootReport
from bootstrap.comfyui import ComfyUI, run_main, wait_until_ready
from bootstrap.config import Settings
from bootstrap.core.findings import Finding, Outcome, error, host_error, outcome_of
from tests.support import fake_comfyui
from tests.support.control_plane import ControlPlane
from tests.support.fake_comfyui import behaving, let_go
from tests.support.sources import ROOT
from tests.support.waiting import wait_until
from tests.support.worker_process import WorkerProcess

START_SECONDS = 120
NO_MODEL = error("models.missing", "A model is missing.", "Fetch it.")


@pytest.fixture
def temp() -> Iterator[Path]:
    """A temp folder of the test's own; a socket's path must be short."""
    with tempfile.TemporaryDirectory(prefix="health-") as folder:
        yield Path(folder)


@pytest.fixture
def private(temp: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`temp` as this process's temp folder too."""
    monkeypatch.setattr(tempfile, "tempdir", str(temp))
    return temp


@pytest.fixture
def comfyui(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[ComfyUI]:
    """A started fake ComfyUI with the behaviour that the test's parameter names."""
    behaviour = getattr(request, "param", "")
    made = fake_comfyui.write(tmp_path / "ComfyUI", tmp_path / "work", behaviour)
    made.start()
    yield made
    made.stop()


def report(*findings: Finding) -> BootReport:
    return BootReport(outcome_of(findings), findings, (), (), 1.0)


def checked(temp: Path) -> tuple[int, str]:
    """Exit code and output of the health check, run as Docker does: as a separate program."""
    done = subprocess.run(
        [sys.executable, "-m", "bootstrap.healthcheck"],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(temp)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    return done.returncode, done.stdout.strip()


def comfyui_of(worker: WorkerProcess) -> psutil.Process:
    """ComfyUI itself, below its guard."""
    children = psutil.Process(worker.pid).children(recursive=True)
    (found,) = [p for p in children if p.cmdline()[1:2] == [run_main.__file__]]
    return found


def test_while_it_boots_it_is_not_well_yet() -> None:
    assert health_of(None) == Health(False, "starting: no jobs are taken yet")


def test_well_while_comfyui_answers_and_not_when_it_was_killed(comfyui: ComfyUI) -> None:
    wait_until_ready(comfyui, 60)
    assert health_of(report(), (comfyui,)) == Health(True, "ready: ComfyUI answers")
    psutil.Process(comfyui._process.pid).kill()  # type: ignore[union-attr]
    wait_until(lambda: comfyui.ended() is not None)
    killed = health_of(report(), (comfyui,))
    assert not killed.healthy
    assert killed.text.startswith("ComfyUI is not running: comfyui.killed: ")


@behaving("waiting")
def test_a_restart_on_another_port_is_waited_for_and_seen(comfyui: ComfyUI) -> None:
    let_go(comfyui)
    wait_until_ready(comfyui, 60)
    first = comfyui.port
    comfyui.stop()
    (comfyui.launch.comfyui / "go-on").unlink()
    with socket.create_server(("127.0.0.1", first)):
        comfyui.start()
        assert health_of(report(), (comfyui,)) == Health(False, "ComfyUI is being restarted")
        let_go(comfyui)
        wait_until_ready(comfyui, 60)
        assert health_of(report(), (comfyui,)).healthy
        assert comfyui.port != first


@behaving("accept only")
def test_a_frozen_comfyui_is_not_well(comfyui: ComfyUI) -> None:
    comfyui.was_ready = True
    wait_until(lambda: _connects(comfyui.port))
    reported = health_of(report(), (comfyui,))
    assert reported == Health(False, "ComfyUI is alive, but neither answers nor computes")


@behaving("compute only")
def test_a_comfyui_that_computes_and_cannot_answer_is_well(comfyui: ComfyUI) -> None:
    comfyui.was_ready = True
    wait_until(lambda: _connects(comfyui.port))
    reported = health_of(report(), (comfyui,))
    assert reported == Health(True, "ready: ComfyUI computes, and does not answer meanwhile")


def test_degraded_is_well_as_long_as_a_comfyui_that_worked_does() -> None:
    reported = health_of(report(NO_MODEL))
    assert reported == Health(True, "degraded: models.missing: A model is missing.")


def test_degraded_with_a_comfyui_that_worked_and_has_ended(comfyui: ComfyUI) -> None:
    wait_until_ready(comfyui, 60)
    assert health_of(report(NO_MODEL), (comfyui,)).healthy
    psutil.Process(comfyui._process.pid).kill()  # type: ignore[union-attr]
    wait_until(lambda: comfyui.ended() is not None)
    reported = health_of(report(NO_MODEL), (comfyui,))
    assert not reported.healthy
    assert reported.text.endswith("when it started: degraded: models.missing: A model is missing.")


@behaving("exit 3 cannot")
def test_a_comfyui_that_never_started_is_the_users_to_fix(comfyui: ComfyUI) -> None:
    fault = wait_until_ready(comfyui, 60).finding
    assert fault is not None
    reported = health_of(report(fault), (comfyui,))
    assert reported == Health(True, f"degraded: comfyui.exited: {fault.message}")


def test_a_broken_machine_is_not_well() -> None:
    reported = health_of(report(host_error("gpu.not_answering", "No GPU.", "")))
    assert reported == Health(False, "unfit: gpu.not_answering: No GPU.")


def test_no_worker_at_all(temp: Path) -> None:
    assert checked(temp) == (1, "no worker is running here, or it has only just started")


def test_what_a_killed_worker_left_is_not_a_worker_and_is_removed(private: Path) -> None:
    left = healthcheck.socket_path("left")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(left))
    assert checked(private)[0] == 1
    health = HealthSocket(lambda: Health(True, "fine"))
    health.open()
    assert checked(private) == (0, "fine")
    (own,) = private.iterdir()
    assert own.stat().st_mode & 0o777 == 0o600
    assert left != own
    health.close()
    assert list(private.iterdir()) == []
    assert checked(private)[0] == 1


def test_of_several_workers_each_is_reported_and_one_that_is_ill_decides(private: Path) -> None:
    workers = [HealthSocket(lambda: Health(True, "one")), HealthSocket(lambda: Health(False, "2"))]
    for worker in workers:
        worker.open()
    code, text = checked(private)
    own = f"worker with PID {os.getpid()}: "
    assert (code, sorted(text.splitlines())) == (1, [f"{own}2", f"{own}one"])
    for worker in workers:
        worker.close()


def test_a_look_that_fails_is_reported_and_the_next_one_is_answered(private: Path) -> None:
    looks = iter([ZeroDivisionError("marker"), None])

    def look() -> Health:
        if problem := next(looks):
            raise problem
        return Health(True, "fine")

    health = HealthSocket(look)
    health.open()
    assert checked(private) == (1, "the worker cannot tell: ZeroDivisionError: marker")
    assert checked(private) == (0, "fine")
    health.close()


def test_too_many_open_files_silence_it_only_as_long_as_they_are_open(private: Path) -> None:
    health = HealthSocket(lambda: Health(True, "fine"))
    health.open()
    (path,) = healthcheck.socket_paths()
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(10)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (connection.fileno() + 1, limits[1]))
        connection.connect(str(path))
        time.sleep(0.3)  # in which it fails to accept
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    with connection:
        assert b"fine" in connection.recv(1000)
    health.close()


def test_what_another_user_has_in_the_temp_folder_hinders_nothing(private: Path) -> None:
    (private / "comfyui-health-x.sock").mkdir()  # as one that may not be removed
    health = HealthSocket(lambda: Health(True, "fine"))
    health.open()
    assert checked(private) == (0, "fine")
    health.close()


def test_a_temp_folder_that_cannot_take_a_socket_hinders_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "not-there"))
    health = HealthSocket(lambda: Health(True, "fine"))
    health.open()
    health.close()
    assert "health checks will find no worker" in capsys.readouterr().err


def test_a_worker_from_its_start_to_its_end(temp: Path, worker_env: dict[str, str]) -> None:
    with ControlPlane() as plane:
        env = {**worker_env, **plane.worker_env(), "TMPDIR": str(temp)}
        with WorkerProcess.module("handler", env=env, cwd=ROOT) as worker:
            wait_until(lambda: checked(temp)[1].startswith("starting"), 30)
            plane.wait_for("ready", timeout=START_SECONDS)
            wait_until(lambda: checked(temp) == (0, "ready: ComfyUI answers"))
            os.kill(worker.pid, signal.SIGSTOP)
            assert checked(temp) == (1, "the worker is alive, but did not answer within 2 s")
            os.kill(worker.pid, signal.SIGCONT)
            wait_until(lambda: checked(temp)[0] == 0)
            comfyui_of(worker).kill()
            wait_until(lambda: (found := checked(temp))[0] == 1 and "comfyui.killed" in found[1])
            worker.terminate()
            assert worker.wait(60) == 0
            assert checked(temp) == (1, "no worker is running here, or it has only just started")


@pytest.mark.parametrize("broken", [{"VOLUME_PATH": "/not/there"}, {"MAX_WAIT": "soon"}])
def test_degraded_on_purpose_is_well(
    private: Path, worker_env: dict[str, str], broken: dict[str, str]
) -> None:
    env = {**worker_env, **broken}
    settings, problems = Settings.from_env(env)
    boot = Boot(settings, problems, env)
    boot.begin()
    assert boot.finish().report.outcome is Outcome.DEGRADED
    code, text = checked(private)
    boot.stop()
    assert code == 0
    assert text.startswith(("degraded: volume.not_found: ", "degraded: settings."))


def test_asking_is_quick_and_needs_nothing_of_the_project() -> None:
    program = "import sys, bootstrap.healthcheck; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", program], cwd=ROOT, text=True).split()
    ours = {name for name in loaded if name.startswith(("bootstrap", "handler"))}
    assert ours == {"bootstrap", "bootstrap.healthcheck"}


def _connects(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 0.2).close()
    except OSError:
        time.sleep(0.05)
        return False
    return True
