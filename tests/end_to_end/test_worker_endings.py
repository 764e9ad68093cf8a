"""How a worker on the SDK starts and ends: malformed jobs, SIGTERM, SIGKILL, an unfit machine."""

from __future__ import annotations

import os
import sys
import time

import pytest

from tests.support.plane_records import now
from tests.support.rig import START_SECONDS, ready_rig, sample_rig
from tests.support.worker_process import WorkerFailure, WorkerProcess


def test_one_slot_survives_malformed_jobs_and_takes_one_a_second() -> None:
    with ready_rig() as rig:
        malformed = [
            rig.plane.submit_raw({"input": {}}),
            rig.plane.submit_raw({"id": "without-input"}),
            rig.plane.submit_raw(b"{not json"),
        ]
        null_input = rig.plane.submit_raw({"id": "null-input", "input": None})
        assert rig.plane.result(null_input)["output"]["job"] == {"id": "null-input", "input": None}
        second = rig.plane.submit({"do": "return", "value": 2})
        assert rig.plane.result(second) == {"output": 2}
        assert rig.plane.handed_out == [*malformed, null_input, second]
        assert {event.job_id for event in rig.plane.select("done")} == {null_input, second}
        assert rig.plane.select("take")[0].query["job_in_progress"] == "0"
        # After each take the SDK finds its queue full and sleeps a second (rp_scale.get_jobs).
        first_take, second_take = (
            rig.plane.select("take", job)[0].at for job in (null_input, second)
        )
        assert second_take - first_take >= 0.9
        assert rig.worker.returncode is None


def test_a_job_without_an_id_in_a_batch_ends_the_worker() -> None:
    with ready_rig(CONCURRENCY="4") as rig:
        rig.plane.submit_raw({"input": {}})
        assert rig.worker.wait(30) == 1
        assert "KeyError: 'id'" in rig.worker.log


def test_after_sigterm_the_running_job_finishes() -> None:
    with ready_rig() as rig:
        job = rig.plane.submit({"do": "sleep", "seconds": 3})
        rig.hear(job, "sleeps")
        rig.worker.terminate()
        rig.worker.wait_for_line("Received shutdown signal")
        late = rig.plane.submit({})
        assert rig.plane.result(job) == {"output": {"slept": 3}}
        assert rig.worker.wait(30) == 0
        assert "start() returned" in rig.worker.log
        assert rig.plane.pending == [late]
        assert rig.worker.living() == []


def test_a_job_taken_after_sigterm_is_never_run() -> None:
    with ready_rig(hold_seconds=8) as rig:
        rig.worker.terminate()
        rig.worker.wait_for_line("Received shutdown signal")
        time.sleep(3.0)  # run_jobs looks every 0.1 s whether it shall stop, and logs nothing
        job = rig.plane.submit({})
        assert rig.worker.wait(30) == 0
        assert rig.plane.handed_out == [job]
        assert rig.plane.select("done", job) == []


def test_sigterm_before_the_first_take_ends_the_worker_at_once() -> None:
    # The SDK sets its own handlers only after the fitness checks, in JobScaler.start().
    with sample_rig(TROUBLE="slow-check") as rig:
        rig.worker.wait_for_line("checking", START_SECONDS)
        rig.worker.terminate()
        assert rig.worker.wait(30) == -15


def test_a_failed_fitness_check_is_reported_and_leaves_children_alive() -> None:
    with sample_rig(TROUBLE="unfit") as rig:
        report = rig.plane.wait_for("unhealthy", timeout=START_SECONDS)
        assert report.body["check"] == "check_fitness"
        assert report.body["reason"].startswith("RuntimeError: the GPU fell off the bus")
        assert len(report.body["reason"]) == 256
        assert rig.worker.wait(30) == 1
        # os._exit: no atexit, no finally. Anyone who started a child must end it before failing.
        assert [process.command for process in rig.worker.living()] == ["sleep 600"]
        assert rig.plane.polls == {"take": 0, "stop": 0}


def test_the_pings_of_a_killed_worker_go_on() -> None:
    with ready_rig() as rig:
        rig.plane.wait_for("ping")
        rig.worker.kill()
        assert rig.worker.wait(30) == -9
        count = len(rig.plane.select("ping"))
        # Forked, never reported of its parent's death: it also keeps every pipe the parent had.
        rig.plane.wait_for("ping", count=count + 2)
        assert len(rig.worker.living()) == 1
        family = rig.worker.living()
    assert rig.worker.returncode == -9
    assert family and rig.worker.living() == []


def test_a_sigterm_handler_from_before_start_makes_the_exit_hang() -> None:
    with ready_rig(TROUBLE="own-sigterm") as rig:
        rig.plane.wait_for("ping")
        (ping_process,) = rig.worker.living()
        rig.worker.terminate()
        rig.worker.wait_for_line(r"start\(\) returned", 30)
        # The SDK replaces the handler in its own process; the ping process, forked before that,
        # has inherited ours, so multiprocessing's exit handler asks it to end and waits for ever.
        rig.worker.wait_for_line(f"own SIGTERM in {ping_process.pid}", 30)
        with pytest.raises(WorkerFailure, match="still running after 2 s"):
            rig.worker.wait(2)


def test_a_failure_to_appear_shows_the_log_at_once() -> None:
    command = [sys.executable, "-c", "import sys; print('before the end'); sys.exit(3)"]
    with WorkerProcess(command, env={}) as worker:
        started = now()
        with pytest.raises(WorkerFailure, match=r"(?s)'ready'.*exited with 3.*before the end"):
            worker.wait_for_line("ready", timeout=60)
    assert now() - started < 20


def test_nothing_of_a_worker_outlives_its_block() -> None:
    runaway = (
        "import subprocess, sys, time;"
        "sleep = [sys.executable, '-c', 'import time; time.sleep(600)'];"
        "subprocess.Popen(sleep, start_new_session=True);"
        "subprocess.Popen(sleep, start_new_session=True, env={});"
        "print('started', flush=True); time.sleep(600)"
    )
    with WorkerProcess([sys.executable, "-c", runaway], env={}) as worker:
        worker.wait_for_line("started")
        pids = [process.pid for process in worker.living()]
        assert len(pids) == 2
        root = worker.pid
    assert worker.returncode == -9
    with pytest.raises(ProcessLookupError):
        os.kill(root, 0)
    assert worker.living() == []
