"""The worker as Runpod runs it: the real SDK in production mode, a loopback control plane."""

from __future__ import annotations

import base64
import io
import json
import re
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from demo.taesd import write_whole_vae
from demo.volume import DemoVolume
from tests.bootstrap.boot.test_models import loading, want
from tests.conftest import environment, furnished, workflow
from tests.end_to_end.test_faults import through
from tests.end_to_end.test_worker import from_file, plain, png
from tests.support.control_plane import ControlPlane
from tests.support.provisioning import MARKER as TOKEN
from tests.support.provisioning import tensors
from tests.support.s3_server import BUCKET, KEY_ID, SECRET, s3_server
from tests.support.vicious_server import ViciousServer
from tests.support.waiting import wait_until
from tests.support.worker_process import WorkerProcess


@dataclass(frozen=True)
class Production:
    """A worker that serves, its control plane and its volume."""

    plane: ControlPlane
    worker: WorkerProcess
    volume: Path

    def ask(self, given: Any, timeout: float = 60) -> Any:
        """What was posted for `{"input": given}`."""
        return self.plane.result(self.plane.submit(given), timeout)


@pytest.fixture(scope="module")
def production(demo: DemoVolume, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Production]:
    """One worker in production mode for the tests of this file that leave it serving."""
    volume = furnished(demo, tmp_path_factory.mktemp("production") / "volume")
    work = tmp_path_factory.mktemp("work")
    with ControlPlane() as plane:
        env = environment(demo, volume, work) | plane.worker_env()
        env |= {"ALLOW_PRIVATE_DOWNLOAD_URLS": "true", "HF_TOKEN": TOKEN, "civitai_token": TOKEN}
        env |= {"ALLOW_DOWNLOAD_REQUESTS": "true", "ALLOW_PRIVATE_URLS": "true"}
        with WorkerProcess.module("handler", env=env) as worker:
            plane.wait_for("ready", timeout=90)
            yield Production(plane, worker, volume)


def test_results_come_back_whole(production: Production) -> None:
    for name, count, magic in (
        ("batch_of_3", 3, b"\x89PNG"),
        ("video_mp4", 1, b"ftyp"),
        ("animation_webp", 1, b"WEBP"),
    ):
        output = production.ask({"workflow": workflow(name)})["output"]
        assert output["status"] == "completed"
        assert len(output["results"]) == count
        for result in output["results"]:
            content = base64.b64decode(result.get("image") or result["data"])
            assert magic in content[:16]
            assert (production.volume / result["path"]).read_bytes() == content


def test_a_model_on_demand_is_reported_while_it_comes_and_before_the_result(
    production: Production,
) -> None:
    content = tensors(1_500_000)
    production.plane.faults.delay["progress"] = 1.5
    with ViciousServer() as server:
        url = server.serve("/d.safetensors", content, bytes_per_second=100_000)
        want(production.volume, url, content)
        job = production.plane.submit({"workflow": loading()})
        wait_until(lambda: len(production.plane.select("progress", job)) >= 2)
        server.files["/d.safetensors"].bytes_per_second = None
        body = production.plane.result(job)
    assert body["output"]["error_code"] == "job.node_failed", "found, but no VAE"
    time.sleep(2.5)  # what was not drained would arrive now
    production.plane.faults.delay.clear()
    mine = [event for event in production.plane.events if event.job_id == job]
    assert {event.kind for event in mine[:-1]} == {"submit", "take", "progress"}
    assert mine[-1].kind == "done", "nothing after the result"
    reported = [event.body["output"] for event in mine if event.kind == "progress"]
    assert {update["model"] for update in reported} == {"vae/wanted.safetensors"}
    fields = {"stage", "percent", "model", "detail", "message"}
    assert {key for update in reported for key in update} == fields
    percents = [update["percent"] for update in reported]
    assert len(percents) >= 2 and percents == sorted(percents)
    assert TOKEN not in production.worker.log and TOKEN not in str(mine)


def test_two_jobs_that_bring_one_address_wait_for_one_download(production: Production) -> None:
    vae = production.volume.parent / "tiny.safetensors"
    write_whole_vae(vae)
    content = vae.read_bytes()
    with ViciousServer() as server:
        url = server.serve("/t.safetensors?sig=s3cret", content, bytes_per_second=4_000_000)
        jobs = [production.plane.submit({"workflow": loading(url)}) for _ in range(2)]
        replies = [production.plane.result(job)["output"] for job in jobs]
        firsts = [h.get("range", "") for _, h in server.seen]
    assert [reply["status"] for reply in replies] == ["completed"] * 2, replies
    assert sum(r.startswith("bytes=0-") and r != "bytes=0-0" for r in firsts) == 1
    (place,) = (production.volume / "models/vae/fetched").glob("t-*.safetensors")
    assert place.read_bytes() == content
    reported = [e.body["output"] for e in production.plane.events if e.kind == "progress"]
    assert f"vae/fetched/{place.name}" in {update.get("model") for update in reported}
    assert "s3cret" not in production.worker.log and "s3cret" not in str(replies)


def test_a_running_prompt_is_reported_in_order_and_not_too_often(production: Production) -> None:
    nodes = through("TestSteps", steps=40, seconds=4.0)
    job = production.plane.submit({"workflow": nodes})
    production.plane.result(job)
    time.sleep(1.5)  # what was not drained would arrive now
    mine = [event for event in production.plane.events if event.job_id == job]
    assert mine[-1].kind == "done", "nothing after the result"
    reported = [event for event in mine if event.kind == "progress"]
    updates = [event.body["output"] for event in reported]
    stages = [update["stage"] for update in updates]
    order = ["queued", "running", "delivering"]
    assert [order.index(stage) for stage in stages] == sorted(map(order.index, stages))
    assert "running" in stages, "`queued` is over before the first update"
    running = [update for update in updates if update["stage"] == "running"]
    percents = [update["percent"] for update in running]
    assert percents == sorted(percents) and percents[-1] > 30
    stepping = [update for update in running if "step" in update]
    at = [event.at for event in reported if "step" in event.body["output"]]
    assert 2 <= len(at) <= at[-1] - at[0] + 2, "about one a second of 40 steps"
    assert {(update["node"], update["class_type"], update["steps"]) for update in stepping} == {
        ("3", "TestSteps", 40)
    }


def test_previews_come_small_and_not_too_often_and_only_where_they_are_asked_for(
    production: Production,
) -> None:
    nodes = through("TestSteps", steps=60, seconds=6.0)
    (steps,) = [node for node in nodes.values() if node["class_type"] == "TestSteps"]
    steps["inputs"]["preview"] = 1024
    given = {"workflow": nodes, "progress": {"previews": True, "preview_size": 128}}
    jobs = [production.plane.submit(given), production.plane.submit({"workflow": nodes})]
    for job in jobs:
        assert production.plane.result(job)["output"]["status"] == "completed"
    events = [e for e in production.plane.events if e.kind == "progress"]
    updates = [e.body["output"] for e in events if e.job_id == jobs[0]]
    previews = [update["preview"] for update in updates if "preview" in update]
    mine = [event.at for event in events if event.job_id == jobs[0]]
    most = (mine[-1] - mine[0]) / 2 + 2
    assert 2 <= len(set(previews)) <= most, "one in two seconds"
    for preview in previews:
        head, _, content = preview.partition(",")
        assert head == "data:image/jpeg;base64" and len(content) < 33_000
        picture = Image.open(io.BytesIO(base64.b64decode(content)))
        assert picture.format == "JPEG" and max(picture.size) <= 128
    assert not any("preview" in e.body["output"] for e in events if e.job_id == jobs[1])


def test_files_come_from_a_bucket_and_go_to_an_address_of_the_request(
    production: Production,
) -> None:
    frames = io.BytesIO()
    with zipfile.ZipFile(frames, "w") as made:
        made.writestr("1.png", png(colour=(0, 0, 255)))
    with s3_server() as bucket:
        bucket.client.put_object(Bucket=BUCKET, Key="f.zip", Body=frames.getvalue())
        where = {"Bucket": BUCKET, "Key": "out.zip"}
        target = bucket.client.generate_presigned_url("put_object", where)
        own = {"accessId": KEY_ID, "accessSecret": SECRET, "bucketName": BUCKET}
        output = production.ask(
            {
                "workflow": from_file("f/1.png"),
                "files": [{"url": f"s3://{BUCKET}/f.zip", "unpack": True}],
                "s3Config": {**own, "endpointUrl": bucket.url},
                "output": {"zip": True, "upload_urls": [target]},
            }
        )["output"]
        content = bucket.client.get_object(**where)["Body"].read()
    assert output["status"] == "completed", output
    with zipfile.ZipFile(io.BytesIO(content)) as opened:
        (name,) = opened.namelist()
        picture = Image.open(io.BytesIO(opened.read(name))).convert("RGB")
    assert picture.getpixel((0, 0)) == (0, 0, 255)
    signature = target.partition("Signature=")[2][:20]
    for secret in (SECRET, signature):
        assert secret not in production.worker.log and secret not in str(output)


def test_an_error_is_posted_as_runpod_shows_it(production: Production) -> None:
    body = production.ask({"workflow": {}})
    assert isinstance(body["error"], str)
    assert body["output"]["error_code"] == "workflow.empty"


@pytest.mark.parametrize("given", [None, [], "text", 7, {"workflow": None}, {"workflow": "\ud800"}])
def test_malformed_input_is_answered(production: Production, given: Any) -> None:
    assert "error" in production.ask(given)


def test_a_job_that_is_not_json_does_not_stop_the_worker(production: Production) -> None:
    production.plane.submit_raw(b"{not json")
    assert production.ask({"workflow": plain()})["output"]["status"] == "completed"


def test_cancel_frees_comfyui_for_the_next_job(production: Production) -> None:
    lines_before = len(production.worker.lines)
    job = production.plane.submit({"workflow": through("TestSleep", seconds=120)})
    production.plane.wait_for("take", job)
    production.worker.wait_for_line(r"got prompt", after=lines_before)
    production.plane.cancel(job)
    body = production.ask({"workflow": plain(), "max_wait": 20})
    assert body["output"]["status"] == "completed"
    assert production.plane.select("done", job) == []


def test_comfyui_killed_in_a_job_gives_the_reason_and_the_next_job_works(
    production: Production,
) -> None:
    body = production.ask({"workflow": through("TestDie", way="SIGKILL")})
    assert body["output"]["error_code"] == "comfyui.died"
    assert "memory" in body["error"]
    assert production.ask({"workflow": plain()})["output"]["status"] == "completed"


@pytest.mark.parametrize("megabytes", [7, 8, 30])
def test_a_result_that_runpod_would_drop_is_on_the_volume(
    production: Production, megabytes: int
) -> None:
    """The control plane answers 400 to more than 10 MB, as Runpod does."""
    ui = {"gifs": [{"filename": "film.mp4", "subfolder": "", "type": "output"}]}
    inputs = {"files": "film.mp4", "ui": json.dumps(ui), "megabytes": megabytes}
    nodes = {"1": {"class_type": "TestReport", "inputs": inputs}}
    (result,) = production.ask({"workflow": nodes})["output"]["results"]
    assert ("data" in result) is (megabytes == 7)
    kept = production.volume / result["path"]
    assert kept.stat().st_size == result["size"] > megabytes * 1_000_000


def test_a_bucket_beside_the_input_reaches_the_worker_and_is_checked(
    production: Production,
) -> None:
    """The SDK passes on the whole job; an invalid bucket is refused at once. That it must be public
    is for tests/handler/outputs/test_s3.py: this worker may go anywhere."""
    config = {"accessId": "id", "accessSecret": "s3-secret-marker", "bucketName": "results"}
    prompts = production.worker.log.count("got prompt")
    for endpoint in ("ftp://results.example", "https://u:s3-secret-marker@results.example"):
        job = production.plane.submit_raw(
            {
                "id": f"bucket-{endpoint[:5]}",
                "input": {"workflow": plain()},
                "s3Config": {**config, "endpointUrl": endpoint},
            }
        )
        output = production.plane.result(job)["output"]
        assert output.get("error_code") == "output.bad_bucket" and output["fix"], output
        assert "s3-secret-marker" not in repr(output) + production.worker.log
    assert production.worker.log.count("got prompt") == prompts, "the GPU did not work for it"


def test_each_result_is_posted_once(production: Production) -> None:
    done = [event.job_id for event in production.plane.select("done")]
    assert len(done) == len(set(done))


def test_no_key_reaches_the_log(production: Production) -> None:
    env = production.plane.worker_env()
    assert env["RUNPOD_AI_API_KEY"] not in production.worker.log


def test_the_worker_never_imports_torch_nor_comfyuis_packages(production: Production) -> None:
    maps = Path(f"/proc/{production.worker.pid}/maps").read_text()
    assert not re.search(r"libtorch|/torch/", maps)


def test_no_other_machine_can_connect(production: Production) -> None:
    worker = psutil.Process(production.worker.pid)
    listening = {
        connection.laddr.ip
        for process in (worker, *worker.children(recursive=True))
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}, "ComfyUI's"


def test_sigterm_finishes_the_job_in_flight_and_leaves_no_process(production: Production) -> None:
    """Last in this file: it ends the worker."""
    lines_before = len(production.worker.lines)
    job = production.plane.submit({"workflow": through("TestSleep", seconds=3)})
    # Handed out is not yet taken up: the SDK drops what comes to it after the signal.
    production.worker.wait_for_line(r"got prompt", after=lines_before)
    production.worker.terminate()
    assert production.plane.result(job)["output"]["status"] == "completed"
    assert production.worker.wait(30) == 0
    psutil.wait_procs([psutil.Process(p.pid) for p in production.worker.living()], timeout=5)
    assert production.worker.living() == []


def test_a_worker_without_volume_answers_at_once_what_to_do(
    demo: DemoVolume, tmp_path: Path
) -> None:
    with ControlPlane() as plane:
        env = environment(demo, tmp_path / "nowhere", tmp_path / "work") | plane.worker_env()
        with WorkerProcess.module("handler", env=env):
            body = plane.result(plane.submit({"workflow": plain()}), 30)
    assert body["output"]["error_code"] == "volume.not_found"
    assert "Network Volume" in body["error"]


def test_a_broken_machine_is_reported_as_unhealthy(demo: DemoVolume, tmp_path: Path) -> None:
    volume = furnished(demo, tmp_path / "volume")
    (tmp_path / "file").write_text("not a folder")
    with ControlPlane() as plane:
        env = environment(demo, volume, tmp_path / "file" / "work") | plane.worker_env()
        with WorkerProcess.module("handler", env=env) as worker:
            event = plane.wait_for("unhealthy", timeout=30)
            assert worker.wait(30) == 1
    assert "disk.local_unusable" in str(event.body)


def test_sdk_local_mode_runs_one_job(worker_env: dict[str, str]) -> None:
    given = json.dumps({"input": {"workflow": plain()}})
    with WorkerProcess.module("handler", "--test_input", given, env=worker_env) as worker:
        assert worker.wait(90) == 0
        assert "completed successfully" in worker.log
