"""`make demo`: the worker on the demo volume, one workflow through the SDK's local API."""

from __future__ import annotations

import base64
import http.client
import json
import os
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from demo.console import DemoError, say, step
from demo.environment import REPOSITORY, ensure_worker_venv
from demo.volume import DemoVolume

WORKFLOW = Path(__file__).parent / "workflows" / "picture.json"
OUTPUT = REPOSITORY / "demo-output"
_START_SECONDS = 180.0
_JOB_SECONDS = 120.0
_STOP_SECONDS = 20.0


def run_demo(volume: DemoVolume) -> None:
    """Boot the worker, run the demo's workflow, save what came back. Raises DemoError."""
    python = ensure_worker_venv(with_dev_tools=False)
    port = free_port()
    worker = subprocess.Popen(
        [
            *(str(python), "-m", "handler", "--rp_serve_api"),
            *("--rp_api_port", str(port), "--rp_api_host", "127.0.0.1"),
        ],
        cwd=REPOSITORY,
        env={**os.environ, **volume.worker_environment, "COMFYUI_PORT": "0"},
        stdin=subprocess.DEVNULL,
    )
    try:
        with step("booting the worker and ComfyUI (about 10 s)"):
            _wait_for(worker, port)
        with step("running the workflow"):
            reply = _ask(port, json.loads(WORKFLOW.read_text(encoding="utf-8")))
    finally:
        _stop(worker)
    for place in _save(reply):
        say(f"saved {place}")


def _wait_for(worker: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if worker.poll() is not None:
            raise DemoError(
                f"the worker exited with code {worker.returncode} before it was ready",
                "read its log above; the last lines name the cause",
            )
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise DemoError(
        f"the worker was not ready within {_START_SECONDS:g} s",
        "read its log above; on a very slow machine run `make demo` again",
    )


def _ask(port: int, workflow: dict[str, Any]) -> dict[str, Any]:
    """One job through `POST /runsync`; the handler's reply."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_JOB_SECONDS)
    try:
        body = json.dumps({"input": {"workflow": workflow, "max_wait": _JOB_SECONDS - 10}})
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/runsync", body, headers)
        answer: dict[str, Any] = json.loads(connection.getresponse().read())
    except (OSError, ValueError) as problem:
        raise DemoError(f"the worker did not answer: {problem}", "read its log above") from problem
    finally:
        connection.close()
    if answer.get("error") or answer.get("status") != "COMPLETED":
        raise DemoError(
            f"the job failed: {answer.get('error') or answer}",
            "do what the message says, then run `make demo` again",
        )
    output = answer["output"]
    assert isinstance(output, dict)
    return output


def _save(reply: dict[str, Any]) -> list[Path]:
    OUTPUT.mkdir(exist_ok=True)
    places = []
    for result in reply["results"]:
        place = OUTPUT / Path(result["filename"]).name
        content = result.get("image") or result.get("data")
        if not content:
            raise DemoError(
                f"{place.name} came back without its content: {result}",
                "unset the variables that deliver results elsewhere (a bucket, the volume)",
            )
        place.write_bytes(base64.b64decode(content))
        places.append(place)
    return places


def _stop(worker: subprocess.Popen[bytes]) -> None:
    worker.terminate()
    try:
        worker.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        worker.kill()  # its guard then ends ComfyUI


def free_port() -> int:
    """A local port on which nothing listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
