"""The control plane without the SDK: what its other tests and the benchmarks rely on."""

from __future__ import annotations

import json
import socket
import threading
import urllib.error
import urllib.request

import pytest

from tests.support.control_plane import ControlPlane
from tests.support.plane_records import now


def held_take(url: str) -> socket.socket:
    """A connection on which a take has been asked for and nothing read."""
    port = int(url.split(":")[2].split("/", maxsplit=1)[0])
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(f"GET {url} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    return connection


def test_a_job_id_is_used_once() -> None:
    with ControlPlane() as plane:
        plane.submit({}, job_id="a")
        with pytest.raises(ValueError, match="job a was submitted before"):
            plane.submit({}, job_id="a")


def test_no_job_for_a_client_that_hung_up() -> None:
    with ControlPlane(hold_seconds=30) as plane:
        url = plane.worker_env()["RUNPOD_WEBHOOK_GET_JOB"].replace("$ID", "dead")
        with held_take(url):
            plane.wait_for("ready")
        job = plane.submit({"a": 1})
        with urllib.request.urlopen(url.replace("dead", "alive"), timeout=10) as answer:
            assert json.load(answer) == {"id": job, "input": {"a": 1}}
        assert [event.worker for event in plane.select("take")] == ["alive"]


def test_an_unknown_path_is_404_and_on_record() -> None:
    with ControlPlane() as plane:
        url = plane.worker_env()["RUNPOD_WEBHOOK_PING"].replace("/ping/", "/health/")
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(url, timeout=10)
        assert plane.wait_for("unknown").status == 404


def test_closing_ends_held_polls_and_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    with ControlPlane(hold_seconds=600) as plane:
        url = plane.worker_env()["RUNPOD_WEBHOOK_GET_JOB"]
        held = held_take(url)
        plane.wait_for("ready")
        started = now()
    held.close()
    assert now() - started < 5
    assert set(threading.enumerate()) <= before
