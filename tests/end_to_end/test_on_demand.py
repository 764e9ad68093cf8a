"""Models on demand, on a real ComfyUI: fetched for the job that needs them, or by request."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from bootstrap.core.findings import Outcome
from bootstrap.models.sources import Sources
from bootstrap.models.sources.huggingface import HuggingFace
from demo.taesd import write_whole_vae
from demo.volume import DemoVolume
from tests.bootstrap.boot.test_models import loading, platform_caches
from tests.conftest import BootedWorker, environment, furnished, ready_worker
from tests.end_to_end.test_worker import assert_refused, plain
from tests.support.fake_hub import FakeHub
from tests.support.provisioning import sha256
from tests.support.vicious_server import ViciousServer
from tests.support.waiting import wait_until

Boots = Callable[[Mapping[str, str]], BootedWorker]


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small VAE that really works, about 10 MB."""
    path = tmp_path_factory.mktemp("vae") / "tiny.safetensors"
    write_whole_vae(path)
    return path.read_bytes()


@pytest.fixture(scope="module")
def own_volume(demo: DemoVolume, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return furnished(demo, tmp_path_factory.mktemp("on-demand") / "volume")


@pytest.fixture(scope="module")
def supplied(
    demo: DemoVolume, own_volume: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BootedWorker]:
    """A worker that booted when no manifest was there, and may fetch by request."""
    env = environment(demo, own_volume, tmp_path_factory.mktemp("work")) | {
        "ALLOW_PRIVATE_DOWNLOAD_URLS": "true",
        "ALLOW_DOWNLOAD_REQUESTS": "true",
    }
    with ready_worker(env) as booted:
        yield booted


@pytest.fixture
def server() -> Iterator[ViciousServer]:
    with ViciousServer() as running:
        yield running


def entry(url: str, name: str, directory: str = "vae", **more: Any) -> dict[str, Any]:
    return {"name": name, "url": url, "directory": directory, **more}


def know(volume: Path, *entries: dict[str, Any]) -> None:
    """Write the manifest; a booted worker reads it when a job needs it."""
    (volume / "models.json").write_text(json.dumps({"version": 1, "models": entries}))


def test_a_job_gets_the_model_it_needs_and_the_next_needs_no_network(
    supplied: BootedWorker, own_volume: Path, server: ViciousServer, vae: bytes
) -> None:
    url = server.serve("/a.safetensors", vae)
    know(own_volume, entry(url, "a.safetensors", hash=sha256(vae)))
    reply = supplied.ask({"workflow": loading("a.safetensors")})
    assert reply["status"] == "completed", reply
    assert any("vae/a.safetensors" in warning for warning in reply["warnings"])
    assert (own_volume / "models/vae/a.safetensors").read_bytes() == vae
    asked = len(server.seen)
    again = supplied.ask({"workflow": loading("a.safetensors")})
    assert again["status"] == "completed" and "warnings" not in again
    assert len(server.seen) == asked


def test_a_model_that_is_gone_again_is_fetched_again(
    supplied: BootedWorker, own_volume: Path, server: ViciousServer, vae: bytes
) -> None:
    url = server.serve("/l.safetensors", vae)
    know(own_volume, entry(url, "l.safetensors"))
    for _ in range(2):
        reply = supplied.ask({"workflow": loading("l.safetensors")})
        assert reply["status"] == "completed", reply
        assert any("vae/l.safetensors" in warning for warning in reply["warnings"])
        (own_volume / "models/vae/l.safetensors").unlink()


def test_a_model_in_a_new_subfolder(
    supplied: BootedWorker, own_volume: Path, server: ViciousServer, vae: bytes
) -> None:
    url = server.serve("/b.safetensors", vae)
    know(own_volume, entry(url, "b.safetensors", "vae/tiny/new"))
    reply = supplied.ask({"workflow": loading("tiny/new/b.safetensors")})
    assert reply["status"] == "completed", reply


def test_a_model_put_there_by_others_since_the_boot_is_linked(
    supplied: BootedWorker, own_volume: Path, vae: bytes
) -> None:
    know(own_volume)
    place = own_volume / "models/vae/by_hand.safetensors"
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(vae)
    reply = supplied.ask({"workflow": loading("by_hand.safetensors")})
    assert reply["status"] == "completed", reply


def test_a_model_without_an_entry_is_refused_with_the_line_to_add(
    supplied: BootedWorker, own_volume: Path
) -> None:
    know(own_volume)
    nodes = loading("xl/unknown.pt")
    reply = supplied.ask({"workflow": nodes})
    assert_refused(reply, "workflow.missing_model", "manifest has no entry for it")
    (line,) = reply["details"]["manifest_entries"]
    assert json.dumps(line, ensure_ascii=False) in reply["error"]
    assert (line["name"], line["directory"]) == ("unknown.pt", "vae/xl")
    assert line["allow_pickle"] is True


def test_a_manifest_that_has_it_in_another_folder_or_is_broken_is_reported(
    supplied: BootedWorker, own_volume: Path, server: ViciousServer, vae: bytes
) -> None:
    url = server.serve("/c.safetensors", vae)
    know(own_volume, entry(url, "c.safetensors", "loras"))
    reply = supplied.ask({"workflow": loading("c.safetensors")})
    assert_refused(reply, "workflow.missing_model", "another folder, loras")
    assert (own_volume / "models/loras/c.safetensors").is_file(), "its input's name may mislead"
    (own_volume / "models.json").write_text("{")
    reply = supplied.ask({"workflow": loading("d.safetensors")})
    assert_refused(reply, "workflow.missing_model", "has an error", "models.json")


def test_a_download_that_fails_fails_this_job_only(
    supplied: BootedWorker, own_volume: Path, server: ViciousServer
) -> None:
    # Optional for a boot; this job cannot do without it.
    url = server.url + "/gone.safetensors"
    know(own_volume, entry(url, "gone.safetensors", optional=True))
    reply = supplied.ask({"workflow": loading("gone.safetensors")})
    assert_refused(reply, "download.not_found", "vae/gone.safetensors")
    assert reply["details"]["models"][0]["state"] == "failed"
    assert supplied.ask({"workflow": plain()})["status"] == "completed"


def test_the_jobs_deadline_holds_and_the_next_one_goes_on_from_there(
    supplied: BootedWorker, own_volume: Path, server: ViciousServer, vae: bytes
) -> None:
    url = server.serve("/slow.safetensors", vae, stall_after=100_000)
    know(own_volume, entry(url, "slow.safetensors", hash=sha256(vae)))
    reply = supplied.ask({"workflow": loading("slow.safetensors"), "max_wait": 2})
    assert_refused(reply, "job.timeout", "vae/slow.safetensors", "max_wait")
    assert not (own_volume / "models/vae/slow.safetensors").exists()
    server.files["/slow.safetensors"].stall_after = None
    reply = supplied.ask({"workflow": loading("slow.safetensors")})
    assert reply["status"] == "completed", reply
    ranges = [headers["range"] for path, headers in server.seen if path == "/slow.safetensors"]
    from_zero = [r for r in ranges if r.startswith("bytes=0-") and r != "bytes=0-0"]
    assert len(from_zero) == 1, "the second job went on from what was there"


def test_a_cancelled_job_stops_its_download(
    supplied: BootedWorker, own_volume: Path, server: ViciousServer, vae: bytes
) -> None:
    url = server.serve("/never.safetensors", vae, bytes_per_second=50_000)
    know(own_volume, entry(url, "never.safetensors"))

    async def cancelled() -> None:
        job = {"id": "c", "input": {"workflow": loading("never.safetensors")}}
        asking = asyncio.create_task(supplied.worker.handle(job))
        await asyncio.to_thread(wait_until, lambda: bool(server.seen))
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)

    asyncio.run(asyncio.wait_for(cancelled(), 60))
    wait_until(lambda: "provisioning" not in [t.name for t in threading.enumerate()], 60)
    assert not (own_volume / "models/vae/never.safetensors").exists()


def test_a_request_fetches_onto_the_volume_and_replies_with_receipts(
    supplied: BootedWorker, own_volume: Path, server: ViciousServer, vae: bytes
) -> None:
    wanted = [
        entry(server.serve("/e.safetensors", vae), "e.safetensors", hash=sha256(vae)),
        entry(server.url + "/none", "f.safetensors", optional=True),
    ]
    know(own_volume)
    reply = supplied.ask({"type": "download", "models": wanted, "max_wait": 60})
    assert reply["status"] == "completed", reply
    brought, failed = reply["models"]
    assert (brought["model"], brought["state"]) == ("vae/e.safetensors", "fetched")
    assert brought["receipt"]["sha256"] == sha256(vae)
    assert "sha256" in brought["receipt"]["checked"]
    assert failed["problem"]["code"] == "download.not_found"
    assert any("f.safetensors" in warning for warning in reply["warnings"])
    assert (own_volume / "models/vae/e.safetensors").read_bytes() == vae
    again = supplied.ask({"type": "download", "models": wanted[:1]})
    assert again["models"][0]["state"] == "present"
    assert supplied.ask({"workflow": loading("e.safetensors")})["status"] == "completed"


def test_a_request_puts_onto_the_volume_what_the_platform_has_in_its_cache(
    supplied: BootedWorker,
    own_volume: Path,
    vae: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cached = tmp_path / "m.safetensors"
    cached.write_bytes(vae)
    platform_caches(own_volume / "huggingface-cache" / "hub", "org/repo", cached)
    with FakeHub() as hub:
        hub.put("org/repo", "m.safetensors", vae)
        sources = Sources((HuggingFace(None, hub.url),))
        monkeypatch.setattr("bootstrap.models.provisioner.make_sources", lambda _: sources)
        wanted = [{"url": "hf://org/repo/m.safetensors", "directory": "vae"}]
        know(own_volume, *wanted)
        assert supplied.ask({"workflow": loading("m.safetensors")})["status"] == "completed"
        assert not (own_volume / "models/vae/m.safetensors").exists()
        assert hub.seen == []
        reply = supplied.ask({"type": "download", "models": wanted})
    assert reply["models"][0]["state"] == "fetched"
    assert (own_volume / "models/vae/m.safetensors").is_file()


def test_a_model_by_address_is_fetched_named_and_found_again(
    supplied: BootedWorker, own_volume: Path, server: ViciousServer, vae: bytes
) -> None:
    know(own_volume)
    url = server.serve("/tiny.safetensors", vae)
    reply = supplied.ask({"workflow": loading(url)})
    assert reply["status"] == "completed", reply
    (place,) = (own_volume / "models/vae/fetched").glob("tiny-*.safetensors")
    assert place.read_bytes() == vae and reply["timings"]["models"] > 0
    assert any(place.name in warning for warning in reply["warnings"])
    asked = len(server.seen)
    again = supplied.ask({"workflow": loading(url)})
    assert again["status"] == "completed" and "models" not in again["timings"]
    assert len(server.seen) == asked


def test_an_address_in_the_place_of_a_model_is_explained_where_it_is_off(
    worker: BootedWorker, server: ViciousServer, vae: bytes
) -> None:
    url = server.serve("/off.safetensors", vae)
    reply = worker.ask({"workflow": loading(url)})
    assert_refused(reply, "request.download_off", "ALLOW_DOWNLOAD_REQUESTS", "vae_name of node 3")
    assert server.seen == []


def test_a_requests_failures_come_all_at_once(
    supplied: BootedWorker, server: ViciousServer, vae: bytes
) -> None:
    wanted = [
        entry(server.url + "/none", "g.safetensors"),
        entry(server.serve("/h", vae), "h.safetensors", hash="0" * 64),
        entry(server.serve("/i", vae), "i.safetensors"),
    ]
    reply = supplied.ask({"type": "download", "models": wanted})
    assert_refused(reply, "download.not_found", "g.safetensors", "h.safetensors", "SHA-256")
    assert [m["state"] for m in reply["details"]["models"]] == ["failed", "failed", "fetched"]


def test_a_requests_deadline_holds(
    supplied: BootedWorker, server: ViciousServer, vae: bytes
) -> None:
    url = server.serve("/j.safetensors", vae, bytes_per_second=100_000)
    wanted = [entry(url, "j.safetensors")]
    reply = supplied.ask({"type": "download", "models": wanted, "max_wait": 1})
    assert_refused(reply, "job.timeout", "vae/j.safetensors")


def test_a_worker_that_is_degraded_still_fetches_by_request(
    worker_env: dict[str, str], volume: Path, boot_worker: Boots, server: ViciousServer, vae: bytes
) -> None:
    (volume / "ComfyUI" / "main.py").unlink()
    allowed = {"ALLOW_PRIVATE_DOWNLOAD_URLS": "true", "ALLOW_DOWNLOAD_REQUESTS": "true"}
    worker = boot_worker(worker_env | allowed)
    assert worker.report.outcome is Outcome.DEGRADED
    wanted = [entry(server.serve("/k", vae), "k.safetensors")]
    reply = worker.ask({"type": "download", "models": wanted})
    assert reply["status"] == "completed", reply
    assert (volume / "models/vae/k.safetensors").is_file()


def test_private_addresses_are_refused_to_requests_as_well(
    worker_env: dict[str, str], volume: Path, boot_worker: Boots, server: ViciousServer, vae: bytes
) -> None:
    (volume / "ComfyUI" / "main.py").unlink()
    worker = boot_worker(worker_env | {"ALLOW_DOWNLOAD_REQUESTS": "true"})
    address = "https" + server.serve("/k", vae).removeprefix("http")
    reply = worker.ask({"type": "download", "models": [entry(address, "k.safetensors")]})
    assert_refused(reply, "download.private_address")
    assert server.seen == []
