"""Clients as people run them: scripts/submit.py and the examples, as processes, against a real
worker behind Runpod's public API on loopback, and against the worker's own local API."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from jsonschema import validate

from demo.volume import DemoVolume
from tests.conftest import environment, furnished
from tests.end_to_end.test_faults import through
from tests.end_to_end.test_worker import from_file, plain, png
from tests.support.control_plane import ControlPlane
from tests.support.plane_http import Answer
from tests.support.public_api import CLIENT_KEY, PublicApi
from tests.support.waiting import wait_until
from tests.support.worker_process import WorkerProcess, free_port
from tests.test_documents import blocks

ROOT = Path(__file__).parents[2]
SUBMIT = ROOT / "scripts" / "submit.py"
EXAMPLES = ROOT / "examples"
WORKFLOW = EXAMPLES / "workflow_api.json"
PNG = b"\x89PNG\r\n\x1a\n"
CLIENT_PAGE = blocks(ROOT / "docs" / "client.md", "sh")


@dataclass(frozen=True)
class Serving:
    """A worker behind the public API."""

    plane: ControlPlane
    api: PublicApi
    worker: WorkerProcess
    volume: Path


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    def data(self) -> Any:
        return json.loads(self.out)


@pytest.fixture(scope="module")
def serving(demo: DemoVolume, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """One worker in production mode for the tests of this file."""
    volume = furnished(demo, tmp_path_factory.mktemp("clients") / "volume")
    work = tmp_path_factory.mktemp("work")
    with ControlPlane() as plane, PublicApi(plane) as api:
        env = environment(demo, volume, work) | plane.worker_env()
        with WorkerProcess.module("handler", env=env) as worker:
            plane.wait_for("ready", timeout=90)
            yield Serving(plane, api, worker, volume)


@pytest.fixture(scope="module")
def local_api(demo: DemoVolume, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a worker that serves its local API, and tidies up after SIGTERM."""
    volume = furnished(demo, tmp_path_factory.mktemp("local") / "volume")
    put_typed_workflow(volume)
    work = tmp_path_factory.mktemp("work")
    env = environment(demo, volume, work)
    port = free_port()
    where = ("--rp_api_host", "127.0.0.1", "--rp_api_port", str(port))
    with WorkerProcess.module("handler", "--rp_serve_api", *where, env=env) as worker:
        worker.wait_for_line(r"Uvicorn running", 90)
        yield f"http://127.0.0.1:{port}"
        worker.terminate()
        assert worker.wait() == 0 and list(work.glob("comfyui-worker-*")) == []


def client_env(more: Mapping[str, str]) -> dict[str, str]:
    own = {k: v for k, v in os.environ.items() if not k.startswith("RUNPOD_")}
    return {**own, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **more}


def installed(folder: Path) -> dict[str, str]:
    """A PATH with `comfyui-worker` as if it were installed, and an `uv` that installs nothing."""
    run_cli = (
        f"PYTHONPATH={ROOT} exec {sys.executable} -c 'from scripts.cli import *; exit(console())'"
    )
    folder.mkdir()
    for name, does in (("comfyui-worker", f'{run_cli} "$@"'), ("uv", "exit 0")):
        (folder / name).write_text(f"#!/bin/sh\n{does}\n")
        (folder / name).chmod(0o755)
    return {"PATH": f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"}


def run(command: Sequence[str | Path], cwd: Path, env: Mapping[str, str]) -> Done:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=client_env(env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    for stream in (done.stdout, done.stderr):
        assert CLIENT_KEY not in stream
    return Done(done.returncode, done.stdout, done.stderr)


def submit(serving: Serving, cwd: Path, *arguments: str | Path) -> Done:
    return run([sys.executable, SUBMIT, *arguments], cwd, serving.api.client_env())


def written(folder: Path, workflow: Any) -> Path:
    place = folder / "workflow.json"
    place.write_text(json.dumps(workflow))
    return place


# --- scripts/submit.py ------------------------------------------------------------------------


def test_a_picture_is_saved_under_its_name(serving: Serving, tmp_path: Path) -> None:
    done = submit(serving, tmp_path, WORKFLOW, "--set", "1.width=40", "--set", "1.color=7")
    assert done.code == 0, done.err
    (saved,) = done.out.splitlines()
    path = tmp_path / saved
    assert path.parent == tmp_path / "output"
    assert re.fullmatch(r"hello_00001_\w+\.png", path.name)
    content = path.read_bytes()
    assert content.startswith(PNG)
    assert int.from_bytes(content[16:20], "big") == 40
    assert content == (serving.volume / "ComfyUI" / "output" / path.name).read_bytes()


def test_an_image_is_sent_along(serving: Serving, tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(png(24, 12))
    workflow = written(tmp_path, from_file("photo.png"))
    done = submit(serving, tmp_path, workflow, "--image", "photo.png=cat.png", "--json")
    assert done.code == 0, done.err
    data = done.data()
    (result,) = data["output"]["results"]
    assert data["status"] == "COMPLETED"
    assert "image" not in result
    assert Path(tmp_path / result["saved"]).read_bytes()[16:20] == (24).to_bytes(4, "big")


def test_the_reason_of_a_failed_job_is_reported(serving: Serving, tmp_path: Path) -> None:
    nothing_produced = {"1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8}}}
    done = submit(serving, tmp_path, written(tmp_path, nothing_produced), "--json")
    assert done.code == 1
    data = done.data()
    assert data["status"] == "FAILED"
    assert data["output"]["error_code"] == "workflow.no_output"
    lines = done.err.splitlines()
    sentence = "No node of the workflow produces anything (it has EmptyImage)."
    assert f"error[workflow.no_output]: {sentence}" in lines
    assert f"hint: {data['error'].removeprefix(sentence).strip()}" in lines


def test_diagnostics_are_text_for_people(serving: Serving, tmp_path: Path) -> None:
    done = submit(serving, tmp_path, "--diagnostics")
    assert done.code == 0, done.out
    assert "volume.found" in done.out
    assert re.search(r"Boot: ready after \d", done.out)
    assert re.search(r"█.*│ ComfyUI ready$", done.out, re.MULTILINE)
    assert "ComfyUI: answers" in done.out
    assert "\033" not in done.out


def test_diagnostics_are_a_page_with_the_boot_s_stages(serving: Serving, tmp_path: Path) -> None:
    done = submit(serving, tmp_path, "--diagnostics", "--html", str(tmp_path / "worker.html"))
    assert done.code == 0, done.out
    html = (tmp_path / "worker.html").read_text()
    assert "copy code" in html and "start ComfyUI" in html
    assert re.search(r'"note": ?"\d+ files"', html), "a stage's note"


def test_diagnostics_are_data_for_programs(serving: Serving, tmp_path: Path) -> None:
    data = submit(serving, tmp_path, "--diagnostics", "--json").data()
    schema = json.loads((ROOT / "docs" / "report.schema.json").read_text())
    validate(data["output"]["diagnostics"], schema)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_the_job_is_cancelled(
    serving: Serving, tmp_path: Path, number: signal.Signals
) -> None:
    workflow = written(tmp_path, through("TestSleep", seconds=120))
    lines = len(serving.worker.lines)
    process = subprocess.Popen(
        [sys.executable, str(SUBMIT), str(workflow), "--json"],
        env=client_env(serving.api.client_env()),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # As at a prompt: a shell starts what it runs in the background deaf to SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    assert process.stderr is not None
    job = next(line for line in process.stderr if line.startswith("job ")).split()[1]
    serving.worker.wait_for_line(r"got prompt", after=lines)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "was cancelled" in err
    assert json.loads(out)["id"] == job
    serving.plane.wait_for("stop", job)
    assert submit(serving, tmp_path, WORKFLOW).code == 0  # the worker is free again


def test_what_the_worker_reports_is_shown(serving: Serving, tmp_path: Path) -> None:
    workflow = written(tmp_path, through("TestSleep", seconds=3.5))
    process = subprocess.Popen(
        [sys.executable, str(SUBMIT), str(workflow)],
        cwd=tmp_path,
        env=client_env(serving.api.client_env()),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    job = next(line for line in process.stderr if line.startswith("job ")).split()[1]
    serving.plane.wait_for("take", job)
    address = serving.plane.worker_env()["RUNPOD_WEBHOOK_POST_OUTPUT"]
    reported = {"stage": "running", "percent": 40.0, "node": "3", "node_type": "KSampler"}
    requests.post(  # as the SDK's progress_update does
        address.replace("$RUNPOD_POD_ID", "worker-1").replace("$ID", job),
        json={"status": "IN_PROGRESS", "output": reported},
        timeout=10,
    )
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "running · KSampler (3) (40 %)" in err


def test_without_its_packages_it_says_what_to_install(tmp_path: Path) -> None:
    done = run([sys.executable, "-I", "-S", SUBMIT, "--help"], tmp_path, {})
    assert done.code == 2
    assert "python3 -m pip install requests tqdm" in done.err


def test_out_of_time_the_job_is_cancelled(serving: Serving, tmp_path: Path) -> None:
    workflow = written(tmp_path, through("TestSleep", seconds=120))
    done = submit(serving, tmp_path, workflow, "--timeout", "1", "--json")
    assert done.code == 4
    assert "Not done within 1 s" in done.err
    serving.plane.wait_for("stop", done.data()["id"])


def test_a_terminal_gets_a_bar_and_no_key(serving: Serving, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    workflow = written(tmp_path, through("TestSleep", seconds=2))
    process = subprocess.Popen(
        [sys.executable, str(SUBMIT), str(workflow)],
        cwd=tmp_path,
        env=client_env({**serving.api.client_env(), "TERM": "xterm"}),
        stdout=theirs,
        stderr=theirs,
        stdin=theirs,
    )
    os.close(theirs)
    seen = everything_from(ours)
    assert process.wait(30) == 0, seen
    text = seen.decode()
    assert "running" in text
    assert re.search(r"00:0[1-9]", text), "the elapsed time is shown"
    assert CLIENT_KEY not in text


def test_against_a_local_worker(local_api: str, tmp_path: Path) -> None:
    env = {"RUNPOD_API_KEY": CLIENT_KEY}
    done = run([sys.executable, SUBMIT, WORKFLOW, "--url", local_api], tmp_path, env)
    assert done.code == 0, done.err
    assert (tmp_path / done.out.strip()).read_bytes().startswith(PNG)


def test_a_local_workers_refusal(local_api: str, tmp_path: Path) -> None:
    unknown = {"1": {"class_type": "NoSuchNode", "inputs": {}}}
    done = run(
        [sys.executable, SUBMIT, written(tmp_path, unknown), "--url", local_api], tmp_path, {}
    )
    assert done.code == 1
    said, hint, more = done.err.splitlines()[-3:]
    assert said.startswith("error[workflow.unknown_node]: ") and "NoSuchNode" in said
    assert hint.startswith("hint: Install the custom node") and more.startswith("more: https://")


@pytest.mark.parametrize(
    ("body", "code"), [({}, "request.no_input"), ({"input": [1]}, "request.wrong_type")]
)
def test_a_local_worker_judges_any_input_as_an_endpoints_does(
    local_api: str, body: dict[str, Any], code: str
) -> None:
    answer = requests.post(f"{local_api}/runsync", json=body, timeout=30).json()
    assert (answer["status"], answer["output"]["error_code"]) == ("FAILED", code)
    assert answer["output"]["fix"] in answer["error"]


def test_a_local_workers_job_that_is_asked_for_later_and_one_that_is_unknown(
    local_api: str,
) -> None:
    body = {"input": {"workflow": 3}}
    job = requests.post(f"{local_api}/run", json=body, timeout=30).json()["id"]
    ended = requests.post(f"{local_api}/status/{job}", timeout=30).json()
    assert ended["status"] == "FAILED" and ended["output"]["error_code"] == "workflow.not_an_object"
    unknown = requests.post(f"{local_api}/status/{job}", timeout=30).json()
    assert unknown["status"] == "FAILED" and "output" not in unknown


# --- examples/ --------------------------------------------------------------------------------


def test_the_example_with_the_sdk(serving: Serving, tmp_path: Path) -> None:
    done = run(
        [sys.executable, EXAMPLES / "with_sdk.py", WORKFLOW], tmp_path, serving.api.client_env()
    )
    assert done.code == 0, done.err
    assert (tmp_path / done.out.strip()).read_bytes().startswith(PNG)


def test_the_example_with_the_sdk_reports_a_failure(serving: Serving, tmp_path: Path) -> None:
    done = run(
        [sys.executable, EXAMPLES / "with_sdk.py", written(tmp_path, {"1": {}})],
        tmp_path,
        serving.api.client_env(),
    )
    assert done.code == 1
    assert "workflow.bad_node" in done.err


def test_the_example_with_requests(serving: Serving, local_api: str, tmp_path: Path) -> None:
    for env in (serving.api.client_env(), {"ENDPOINT_URL": local_api}):
        done = run([sys.executable, EXAMPLES / "with_requests.py", WORKFLOW], tmp_path, env)
        assert done.code == 0, done.err
        assert (tmp_path / done.out.strip()).read_bytes().startswith(PNG)


def test_the_example_with_curl(serving: Serving, local_api: str, tmp_path: Path) -> None:
    for env in (serving.api.client_env(), {"ENDPOINT_URL": local_api}):
        done = run(["sh", EXAMPLES / "with_curl.sh", WORKFLOW], tmp_path, env)
        assert done.code == 0, done.err
        assert done.data()["output"]["status"] == "completed"


def with_curl(api: PublicApi, cwd: Path, **env: str) -> Done:
    return run(["sh", EXAMPLES / "with_curl.sh", WORKFLOW], cwd, api.client_env() | env)


def test_the_example_with_curl_waits_while_the_job_is_in_the_queue(
    serving: Serving, tmp_path: Path
) -> None:
    """As at a cold start, where /runsync gives up before a worker takes the job."""
    key = {"Authorization": f"Bearer {CLIENT_KEY}"}
    body = {"input": {"workflow": json.loads(WORKFLOW.read_text())}}
    queued = requests.post(f"{serving.api.url}/run", headers=key, json=body, timeout=10)
    serving.api.answer_next("runsync", Answer(200, queued.content))
    done = with_curl(serving.api, tmp_path)
    assert done.code == 0, done.err
    assert "IN_QUEUE" in done.err and done.data()["output"]["results"][0]["image"]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer(200), "Not completed: no status in the reply."),
        (Answer(401, b"Unauthorized"), "Unauthorized"),
        (Answer(200, b'{"id": "1", "status": "FAILED", "error": "no"}'), "Not completed: FAILED."),
    ],
)
def test_the_example_with_curl_says_why_there_is_no_picture(
    serving: Serving, tmp_path: Path, answer: Answer, said: str
) -> None:
    serving.api.answer_next("runsync", answer)
    done = with_curl(serving.api, tmp_path)
    assert done.code == 1 and said in done.err


def test_the_commands_of_the_readme_send_a_job_and_save_its_picture(
    serving: Serving, tmp_path: Path
) -> None:
    """As they stand there, with the loopback API's id and key."""
    (block,) = [b for b in blocks(ROOT / "README.md", "sh") if "submit" in b]
    (tmp_path / "workflow_api.json").write_text(WORKFLOW.read_text())
    env = serving.api.client_env() | installed(tmp_path / "bin")
    _, _, endpoint = serving.api.url.rpartition("/")
    commands = block.replace("your_endpoint", endpoint).replace("rpa_your_key", CLIENT_KEY)
    done = run(["sh", "-ec", commands], tmp_path, env)
    assert done.code == 0, done.err
    assert (tmp_path / done.out.strip()).read_bytes().startswith(PNG)


def test_what_circulates_does_not_exist_and_what_we_name_does() -> None:
    import runpod

    assert not hasattr(runpod.serverless, "call_endpoint")
    assert callable(runpod.Endpoint)


@pytest.mark.parametrize("block", CLIENT_PAGE[1:])
def test_the_commands_of_the_client_page_run(
    serving: Serving, local_api: str, tmp_path: Path, block: str
) -> None:
    """Block by block, as they stand there; the first one sets the key."""
    for name in ("scripts", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "workflow_api.json").write_text(WORKFLOW.read_text())
    (tmp_path / "with_image.json").write_text(json.dumps(from_file("photo.png")))
    (tmp_path / "cat.png").write_bytes(png())
    prompt, steps = "{type: string, sets: 2.filename_prefix}", "{type: integer, sets: 1.width}"
    declared = f"{{prompt: {prompt}, steps: {steps}}}"
    put_typed_workflow(serving.volume, "portrait", declared)
    commands = block.replace("http://127.0.0.1:8000", local_api)
    env = serving.api.client_env() | installed(tmp_path / "bin")
    done = run(["sh", "-ec", commands], tmp_path, env)
    assert done.code == 0, done.err


# --- the loopback API itself ------------------------------------------------------------------


def test_the_loopback_api_answers_as_runpods(serving: Serving) -> None:
    api, key = serving.api, {"Authorization": f"Bearer {CLIENT_KEY}"}
    assert requests.get(f"{api.url}/health", timeout=10).status_code == 401
    health = requests.get(f"{api.url}/health", headers=key, timeout=10).json()
    assert health["workers"]["ready"] == 1
    unknown = requests.get(f"{api.url}/status/no-one", headers=key, timeout=10)
    assert unknown.status_code == 404
    refused = requests.post(f"{api.url}/run", headers=key, json={"prompt": 1}, timeout=10)
    assert refused.status_code == 400
    body = {"input": {"workflow": json.loads(WORKFLOW.read_text())}}
    job = requests.post(f"{api.url}/run", headers=key, json=body, timeout=10).json()
    assert job["status"] == "IN_QUEUE"

    def state() -> Any:
        return requests.get(f"{api.url}/status/{job['id']}", headers=key, timeout=10).json()

    wait_until(lambda: state()["status"] == "COMPLETED", 30)
    assert state()["output"]["status"] == "completed"


def test_previews_are_shown_on_a_terminal_that_can_and_the_last_one_is_saved(
    serving: Serving, tmp_path: Path
) -> None:
    nodes = through("TestSteps", steps=40, seconds=5.0)
    (steps,) = [node for node in nodes.values() if node["class_type"] == "TestSteps"]
    steps["inputs"]["preview"] = 300
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, str(SUBMIT), str(written(tmp_path, nodes)), "--previews"],
        cwd=tmp_path,
        env=client_env({**serving.api.client_env(), "TERM": "xterm-kitty"}),
        stdout=theirs,
        stderr=theirs,
        stdin=theirs,
    )
    os.close(theirs)
    seen = everything_from(ours)
    assert process.wait(30) == 0, seen
    assert b"\033_Ga=T,f=100" in seen and b"last preview: output/preview.jpg" in seen
    assert (tmp_path / "output/preview.jpg").read_bytes().startswith(b"\xff\xd8\xff")


def everything_from(terminal: int) -> bytes:
    seen = b""
    while True:
        try:
            block = os.read(terminal, 65536)
        except OSError:  # how Linux says that the other end of a terminal was closed
            break
        if not block:
            break
        seen += block
    os.close(terminal)
    return seen


def put_typed_workflow(
    volume: Path, name: str = "typed", declared: str = "{color: {type: integer, sets: 1.color}}"
) -> None:
    folder = volume / "workflows"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(plain()))
    (folder / f"{name}.params.yaml").write_text(f"params: {declared}")


def test_a_workflow_by_name_with_its_params_through_the_client(
    serving: Serving, tmp_path: Path
) -> None:
    put_typed_workflow(serving.volume)
    done = submit(serving, tmp_path, "--name", "typed", "--param", "color=255")
    assert done.code == 0, done.err
    assert (tmp_path / done.out.strip()).read_bytes().startswith(PNG)
    refused = submit(serving, tmp_path, "--name", "typed", "--param", "color=red")
    assert refused.code == 1 and "color (integer)" in refused.err


def test_the_local_apis_document_knows_the_volumes_workflows(local_api: str) -> None:
    document = requests.get(f"{local_api}/openapi.json", timeout=30).json()
    assert {"/runsync", "/status/{job_id}"} <= set(document["paths"])
    titles = [schema.get("title") for schema in document["components"]["schemas"].values()]
    assert "typed" in titles and "LocalJob" in titles
