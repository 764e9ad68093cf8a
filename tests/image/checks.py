"""What the image holds, and what its container does. Run by `make image-test`."""

from __future__ import annotations

import base64
import json
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from demo.volume import DemoVolume
from tests.conftest import workflow
from tests.image.buildah import Buildah
from tests.image.conftest import SECRET, stand_in
from tests.image.container import Container, first_process, number_inside, stop, words_of
from tests.support.control_plane import ControlPlane
from tests.support.waiting import wait_until
from tests.support.worker_process import WorkerProcess

pytestmark = pytest.mark.timeout(3600)  # the first check waits for the build

WORKER = "/worker/.venv/bin/python"
COMFYUI = "/opt/comfyui/bin/python"
# The network is the host's, where another ComfyUI may have 8188.
CPU = {"COMFYUI_ARGS": "--cpu", "COMFYUI_PORT": "0"}
_ANSWER_SECONDS = 120
_STOP_SECONDS = 30
_PATHS = "import json, sys; print(json.dumps([p for p in sys.path if p.endswith('-packages')]))"


def test_no_layer_holds_a_secret_or_a_name_of_this_machine(
    image: Buildah, clues: list[str]
) -> None:
    written = image.written_down()
    assert [clue for clue in clues if clue in written] == []
    for layer in image.layers()[1:]:  # the first is the base
        assert _found_in(layer.tar, clues) == []


def test_the_search_for_secrets_finds_one(tmp_path: Path) -> None:
    (tmp_path / "layer").write_bytes(b"\0\xff" + SECRET.encode() + b"\0")
    assert _found_in(tmp_path / "layer", ["other", SECRET]) == [SECRET]


def test_what_the_image_says_of_itself(image: Buildah) -> None:
    config = image.image_config()
    names = {pair.partition("=")[0] for pair in config["Env"]}
    assert names == set(
        "PATH LANG PYTHONUNBUFFERED MALLOC_ARENA_MAX PYTORCH_CUDA_ALLOC_CONF COMFYUI_ARGS "
        "COMFYUI_DIR".split()
    )
    assert config["Entrypoint"] == ["tini", "--"]
    assert config["Cmd"] == [WORKER, "-m", "handler"]
    assert config["Labels"]["org.opencontainers.image.revision"] == "image-test"


def test_the_two_pythons_share_nothing(container: Container) -> None:
    paths = [json.loads(container.output(python, "-c", _PATHS)) for python in (WORKER, COMFYUI)]
    assert paths[0]
    assert set(paths[0]).isdisjoint(paths[1])
    assert _importable(container, WORKER, "runpod", "torch", "transformers") == ["runpod"]
    assert _importable(container, COMFYUI, "runpod", "torch", "transformers") == [
        *("torch", "transformers")
    ]


def test_bytecode_is_there_before_the_first_start(image: Buildah) -> None:
    with image.container() as (_, root):
        for folder in ("worker", "opt/comfyui/lib"):
            compiled = list((root / folder).rglob("__pycache__/*.pyc"))
            sources = list((root / folder).rglob("*.py"))
            assert len(compiled) > 0.99 * len(sources) > 0  # some are templates that do not compile


def test_a_venv_on_the_volume_has_the_images_torch(container: Container) -> None:
    """As README has it made on a Pod, which mounts the volume elsewhere."""
    venv = "/runpod-volume/ComfyUI/venv"
    container.output("python3", "-m", "venv", "--system-site-packages", venv)
    assert "torch" in _importable(container, f"{venv}/bin/python", "torch")
    told = container.output(f"{venv}/bin/pip", "install", "--no-index", "--no-deps", "torch")
    assert "already satisfied: torch" in told
    assert _importable(container, WORKER, "torch") == []
    report = json.loads(container.output(WORKER, "-m", "bootstrap", "--json", env=CPU))
    assert report["outcome"] == "ready"
    assert f"{venv}/bin/python" in json.dumps(report)


def test_it_boots_works_refuses_and_stops(container: Container) -> None:
    with ControlPlane() as plane, _started(container, plane) as worker:
        plane.wait_for("ready", timeout=_ANSWER_SECONDS)
        assert number_inside(first_process(worker)) == 1
        reply = plane.result(plane.submit({"workflow": workflow("picture")}), _ANSWER_SECONDS)
        refused = plane.result(plane.submit({"workflow": {}}), _ANSWER_SECONDS)
        _assert_picture(container, reply)
        assert refused["output"]["error_code"] == "workflow.empty"
        seconds = _stopped_seconds(worker)
        print(f"stopped {seconds:.1f} s after SIGTERM\n{worker.log}")
        assert worker.wait(5) == 0
        assert worker.living() == []


def test_without_a_volume_it_answers_what_to_do(image: Buildah) -> None:
    with image.container() as (_, root):
        bare = Container(root, image.image_config(), {})
        with ControlPlane() as plane, _started(bare, plane) as worker:
            body = plane.result(plane.submit({"workflow": workflow("picture")}), _ANSWER_SECONDS)
            assert body["output"]["error_code"] == "volume.not_found"
            _stopped_seconds(worker)
            assert worker.wait(5) == 0


def test_a_boot_leaves_no_process_where_no_namespace_ends_them(
    image: Buildah, demo: DemoVolume, volume: Path
) -> None:
    """By buildah itself, which makes no PID namespace: what the worker leaves would stay."""
    with image.container() as (name, root):
        binds = {volume: "/runpod-volume", **stand_in(demo, root)}
        options = [f"--volume={source}:{place}" for source, place in binds.items()]
        mark = f"IMAGE_TEST_MARK={volume.parent.name}-{time.time_ns()}"
        options += [f"--env={n}={v}" for n, v in CPU.items()] + [f"--env={mark}"]
        command = image.run_command(name, options, ["tini", "-s", "--", WORKER, "-m", "bootstrap"])
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert words_of(_marked(mark)) == []


def _started(container: Container, plane: ControlPlane) -> WorkerProcess:
    return WorkerProcess(container.command({**plane.worker_env(), **CPU}), env={})


def _assert_picture(container: Container, reply: Any) -> None:
    (result,) = reply["output"]["results"]
    content = base64.b64decode(result["image"])
    assert content.startswith(b"\x89PNG")
    (volume,) = [source for source, place in container.binds.items() if place == "/runpod-volume"]
    assert (volume / result["path"]).read_bytes() == content


def _stopped_seconds(worker: WorkerProcess) -> float:
    stop(worker)
    return wait_until(lambda: worker.returncode is not None, _STOP_SECONDS)


def _importable(container: Container, python: str, *modules: str) -> list[str]:
    program = f"from importlib.util import find_spec as f; print(*filter(f, {modules!r}))"
    return container.output(python, "-c", program).split()


def _found_in(tar: Path, clues: list[str]) -> list[str]:
    """Which of the texts are somewhere in the file; it is read a piece at a time."""
    wanted = {clue.encode() for clue in clues}
    longest = max(map(len, wanted))
    found: set[bytes] = set()
    kept = b""
    with tar.open("rb") as file:
        while piece := file.read(1 << 24):
            text = kept + piece
            found |= {clue for clue in wanted if clue in text}
            kept = text[-longest:]
    return sorted(clue.decode() for clue in found)


def _marked(mark: str) -> list[psutil.Process]:
    name, _, value = mark.partition("=")
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(name) == value:
                found.append(process)
        except psutil.Error:
            continue
    return found
