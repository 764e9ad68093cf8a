"""What a container of the image does. Run by `make image-test`."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from demo.volume import DemoVolume
from tests.conftest import workflow
from tests.image.buildah import Buildah
from tests.image.conftest import REPOSITORY, stand_in
from tests.image.container import (
    CPU,
    WORKER,
    Container,
    first_process,
    number_inside,
    stop,
    words_of,
)
from tests.support.control_plane import ControlPlane
from tests.support.package_index import make_wheel, serving
from tests.support.waiting import wait_until
from tests.support.worker_process import WorkerProcess

pytestmark = pytest.mark.timeout(3600)  # the first check waits for the build

HUB_TESTS = json.loads((REPOSITORY / ".runpod" / "tests.json").read_text("utf-8"))["tests"]
NODE_PACK = """\
import tiny_one
NODE_CLASS_MAPPINGS = {}
open("/runpod-volume/imported", "a").write(tiny_one.VERSION + " ")
"""
_ANSWER_SECONDS = 120
_STOP_SECONDS = 30


def test_it_boots_does_a_job_refuses_one_and_stops(container: Container) -> None:
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


def test_its_health_from_start_to_end(container: Container) -> None:
    with ControlPlane() as plane, _started(container, plane) as worker:
        wait_until(lambda: container.health(worker, CPU)[1].startswith("starting"), 60)
        assert container.health(worker, CPU)[0] == 1
        plane.wait_for("ready", timeout=_ANSWER_SECONDS)
        assert container.health(worker, CPU) == (0, "ready: ComfyUI answers")
        (handler,) = first_process(worker).children()
        handler.suspend()
        stopped = container.health(worker, CPU)
        assert stopped == (1, "the worker is alive, but did not answer within 2 s")
        handler.resume()
        wait_until(lambda: container.health(worker, CPU)[0] == 0, 30)
        _comfyui(worker).kill()
        wait_until(lambda: container.health(worker, CPU)[0] == 1, 30)
        assert "comfyui.killed" in container.health(worker, CPU)[1]


def test_what_a_node_pack_lacks_is_installed_once(container: Container, tmp_path: Path) -> None:
    (wheels := tmp_path / "wheels").mkdir()
    make_wheel(wheels, "tiny-one", "1.5")
    make_wheel(wheels, "old-friend", "1.0", ["torch<2"])
    volume = _volume(container)
    (pack := volume / "ComfyUI" / "custom_nodes" / "pack").mkdir()
    (pack / "__init__.py").write_text(NODE_PACK)
    (pack / "requirements.txt").write_text("tiny-one\nold-friend\n")
    with serving(wheels) as index:
        env = {**CPU, **index.env(), "PACKAGES": "install"}
        first = _boot_report(container, env)
        asked = len(index.asked)
        assert "tiny_one-1.5-py3-none-any.whl" in index.wheels_fetched()
        (archive,) = (volume / ".comfyui-worker" / "packages").glob("*.zip")
        second = _boot_report(container, env)
        assert len(index.asked) == asked  # from the volume
    for report in (first, second):
        assert report["outcome"] == "ready"
        found = {f["code"]: f.get("details", {}) for f in report["findings"]}
        assert found["packages.installed"]["packages"] == {"tiny-one": "1.5"}
        refused = [f["message"] for f in report["findings"] if f["code"] == "packages.conflict"]
        assert any("old-friend" in text and "torch<2" in text for text in refused)
    assert list(archive.parent.glob("*.zip")) == [archive]
    assert (volume / "imported").read_text() == "1.5 1.5 "


def test_comfyui_in_the_image_does_the_hubs_jobs_without_a_volume(
    image: Buildah, with_comfyui: str, demo: DemoVolume
) -> None:
    with image.container(with_comfyui) as (_, root):
        assert not (root / "comfyui" / ".git").exists()
        assert list((root / "comfyui").rglob("__pycache__/server.*.pyc"))
        bare = Container(root, image.image_config(with_comfyui), stand_in(demo, root))
        with ControlPlane() as plane, _started(bare, plane) as worker:
            bodies = [
                plane.result(plane.submit(test["input"]), test["timeout"] / 1000)
                for test in HUB_TESTS
            ]
            assert [body["output"]["status"] for body in bodies] == ["completed"] * len(bodies)
            (picture,) = bodies[1]["output"]["results"]
            assert base64.b64decode(picture["image"]).startswith(b"\x89PNG")
            assert bare.health(worker, CPU) == (0, "ready: ComfyUI answers")
            assert re.search("no volume at /runpod-volume, ComfyUI .* in /comfyui", worker.log)
            print(f"a ComfyUI in the image\n{worker.log}")
            _stopped_seconds(worker)
            assert worker.wait(5) == 0


def test_without_a_volume_jobs_are_answered_with_the_fix(image: Buildah) -> None:
    with image.container() as (_, root):
        bare = Container(root, image.image_config(), {})
        with ControlPlane() as plane, _started(bare, plane) as worker:
            body = plane.result(plane.submit({"workflow": workflow("picture")}), _ANSWER_SECONDS)
            assert body["output"]["error_code"] == "volume.not_found"
            healthy, reported = bare.health(worker, CPU)
            assert (healthy, reported.split(": ")[:2]) == (0, ["degraded", "volume.not_found"])
            _stopped_seconds(worker)
            assert worker.wait(5) == 0


def test_a_boot_leaves_no_process_where_no_namespace_ends_them(
    image: Buildah, demo: DemoVolume, volume: Path
) -> None:
    """Run by buildah itself, without a PID namespace: what the worker leaves would stay."""
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
    assert (_volume(container) / result["path"]).read_bytes() == content


def _volume(container: Container) -> Path:
    (volume,) = [source for source, place in container.binds.items() if place == "/runpod-volume"]
    return volume


def _boot_report(container: Container, env: Mapping[str, str]) -> Any:
    return json.loads(container.output(WORKER, "-m", "bootstrap", "--json", env=env))


def _stopped_seconds(worker: WorkerProcess) -> float:
    stop(worker)
    return wait_until(lambda: worker.returncode is not None, _STOP_SECONDS)


def _comfyui(worker: WorkerProcess) -> psutil.Process:
    """ComfyUI itself, below its guard."""
    family = first_process(worker).children(recursive=True)
    (found,) = [process for process in family if process.cmdline()[2:3] == ["main.py"]]
    return found


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
