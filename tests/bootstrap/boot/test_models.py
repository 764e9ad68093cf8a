"""The manifest's models in a boot: fetched while ComfyUI starts, linked, and listed before a
job."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bootstrap.core.findings import Outcome
from tests.conftest import BootedWorker
from tests.end_to_end.test_worker import assert_refused, plain
from tests.support.provisioning import sha256, tensors
from tests.support.vicious_server import ViciousServer
from tests.support.waiting import wait_until

Boots = Callable[[Mapping[str, str]], BootedWorker]


def want(volume: Path, url: str, content: bytes) -> None:
    """Write a manifest with one VAE to the volume's root."""
    entry = {"name": "wanted.safetensors", "url": url, "directory": "vae", "hash": sha256(content)}
    manifest = {"version": 1, "models": [{**entry, "hash_type": "SHA256"}]}
    (volume / "models.json").write_text(json.dumps(manifest))


def loading(vae: str = "wanted.safetensors") -> dict[str, Any]:
    """A workflow that names the listed model, or another one."""
    nodes = plain()
    nodes["3"] = {"class_type": "VAELoader", "inputs": {"vae_name": vae}}
    nodes["4"] = {"class_type": "VAEEncode", "inputs": {"pixels": ["1", 0], "vae": ["3", 0]}}
    nodes["5"] = {"class_type": "VAEDecode", "inputs": {"samples": ["4", 0], "vae": ["3", 0]}}
    nodes["2"]["inputs"]["images"] = ["5", 0]
    return nodes


def test_a_wanted_model_is_there_before_the_first_job(
    worker_env: dict[str, str], volume: Path, boot_worker: Boots
) -> None:
    content = tensors(300_000)
    with ViciousServer() as server:
        want(volume, server.serve("/wanted.safetensors", content), content)
        worker = boot_worker(worker_env | {"ALLOW_PRIVATE_DOWNLOAD_URLS": "true"})
    assert worker.report.outcome is Outcome.READY, worker.report.findings
    assert (volume / "models" / "vae" / "wanted.safetensors").read_bytes() == content
    reply = worker.ask({"workflow": loading()})
    assert reply["error_code"] == "job.node_failed", "found, but random tensors are no VAE"


def test_a_required_model_that_cannot_be_fetched_degrades_the_worker(
    worker_env: dict[str, str], volume: Path, boot_worker: Boots
) -> None:
    with ViciousServer() as server:
        want(volume, server.url + "/nothing.safetensors", b"x")
        worker = boot_worker(worker_env | {"ALLOW_PRIVATE_DOWNLOAD_URLS": "true"})
    assert worker.report.outcome is Outcome.DEGRADED
    reply = worker.ask({"workflow": plain()})
    assert reply["error_code"].startswith("download.")
    assert "wanted.safetensors" in reply["error"]


def test_past_the_limit_jobs_are_reported_and_taken_once_the_model_is_there(
    worker_env: dict[str, str], volume: Path, boot_worker: Boots
) -> None:
    content = tensors(300_000)
    released = threading.Event()

    def held_back(_: dict[str, str]) -> None:
        released.wait(120)

    env = worker_env | {"ALLOW_PRIVATE_DOWNLOAD_URLS": "true", "DOWNLOAD_TIMEOUT": "0"}
    with ViciousServer() as server:
        want(volume, server.serve("/wanted.safetensors", content, needs=held_back), content)
        worker = boot_worker(env)
        assert_refused(worker.ask({"workflow": plain()}), "provision.pending", "wanted")
        released.set()
        deadline = time.monotonic() + 90
        reply = worker.ask({"workflow": plain()})
        while reply["status"] != "completed" and time.monotonic() < deadline:
            time.sleep(0.5)
            reply = worker.ask({"workflow": plain()})
    assert reply["status"] == "completed", reply
    assert (volume / "models" / "vae" / "wanted.safetensors").is_file()


def platform_caches(cache: Path, repo: str, model: Path) -> Path:
    """Move `model` into a cache as the platform keeps it; the snapshot's file."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    snapshot = folder / "snapshots" / "c0ffee" / model.name
    blob = folder / "blobs" / sha256(model.read_bytes())
    for path in (snapshot, blob):
        path.parent.mkdir(parents=True)
    model.rename(blob)
    snapshot.symlink_to(f"../../blobs/{blob.name}")
    return snapshot


def test_a_model_of_the_platforms_cache_is_used_and_leaves_no_link_on_the_volume(
    worker_env: dict[str, str], volume: Path, boot_worker: Boots
) -> None:
    decoder = volume / "models" / "vae_approx" / "taesd_decoder.safetensors"
    snapshot = platform_caches(volume / "huggingface-cache" / "hub", "org/taesd", decoder)
    url = "hf://org/taesd/taesd_decoder.safetensors"
    entry = {"name": decoder.name, "url": url, "directory": "vae_approx"}
    (volume / "models.json").write_text(json.dumps({"version": 1, "models": [entry]}))
    worker = boot_worker(worker_env | {"HF_ENDPOINT": "http://127.0.0.1:9"})
    assert worker.report.outcome is Outcome.READY, worker.report.findings
    reply = worker.ask({"workflow": loading("taesd")})
    assert reply["status"] == "completed", reply
    (reported,) = worker.ask({"type": "models"})["models"]["cached"]
    assert reported == {
        "path": "vae_approx/taesd_decoder.safetensors",
        "size": snapshot.stat().st_size,
        "from": str(snapshot),
    }
    links = [path for path in volume.rglob("*") if path.is_symlink() and path != snapshot]
    assert all("huggingface-cache" not in os.readlink(link) for link in links)
    assert (
        not decoder.exists() and not (volume / "ComfyUI/models/vae_approx" / decoder.name).exists()
    )


def test_jobs_run_once_a_download_request_has_fetched_the_model(
    worker_env: dict[str, str], volume: Path, boot_worker: Boots
) -> None:
    content = tensors(300_000)
    more = {"ALLOW_PRIVATE_DOWNLOAD_URLS": "true", "ALLOW_DOWNLOAD_REQUESTS": "true"}
    with ViciousServer() as server:
        want(volume, server.url + "/gone.safetensors", content)
        worker = boot_worker(worker_env | more)
        assert_refused(worker.ask({"workflow": plain()}), "download.not_found", "wanted")
        url = server.serve("/moved.safetensors", content)
        entry = {"name": "wanted.safetensors", "url": url, "directory": "vae"}
        brought = worker.ask({"type": "download", "models": [entry]})
    assert brought["status"] == "completed", brought
    reply = worker.ask({"workflow": plain()})
    assert reply["status"] == "completed", reply
    reply = worker.ask({"workflow": loading()})
    assert reply["error_code"] == "job.node_failed", "found, but random tensors are no VAE"


def test_jobs_run_once_a_person_has_put_the_right_model_there(
    worker_env: dict[str, str], volume: Path, boot_worker: Boots
) -> None:
    content = tensors(300_000)
    place = volume / "models" / "vae" / "wanted.safetensors"
    with ViciousServer() as server:
        want(volume, server.url + "/nothing.safetensors", content)
        worker = boot_worker(worker_env | {"ALLOW_PRIVATE_DOWNLOAD_URLS": "true"})
    assert_refused(worker.ask({"workflow": plain()}), "download.not_found", "wanted")
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(tensors(300_000)[:-1])

    def occupied() -> bool:  # not looked at with each job: seldom, where looking takes long
        return bool(worker.ask({"workflow": plain()})["error_code"] == "download.occupied")

    wait_until(occupied, 30)
    place.write_bytes(content)

    def completed() -> bool:
        return bool(worker.ask({"workflow": plain()})["status"] == "completed")

    wait_until(completed, 30)
