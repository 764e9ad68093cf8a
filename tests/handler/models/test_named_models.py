"""Addresses in place of models' file names: fetched once, named, kept and removed."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from bootstrap.config import Settings
from bootstrap.core.redact import Secret
from bootstrap.models import provisioner
from bootstrap.models.by_address import FetchedModels, name_for
from bootstrap.models.presence import Receipt, receipt_path, write_receipt
from bootstrap.models.sources import Sources, parse_link
from bootstrap.models.sources.civitai import Civitai
from bootstrap.models.sources.https import Https
from bootstrap.models.sources.huggingface import HuggingFace
from bootstrap.volume import Layout
from handler.common.blocking import Calls
from handler.common.errors import Deadline, JobError
from handler.models import on_demand
from handler.models.on_demand import ModelSupply, Supplied
from handler.request.parse import DownloadRequest, WorkflowRequest, parse_request
from handler.request.references import model_addresses
from handler.sdk.progress import Progress
from tests.support.fake_civitai import FakeCivitai
from tests.support.fake_hub import FakeHub
from tests.support.provisioning import MARKER, sha256, tensors, visible
from tests.support.vicious_server import ViciousServer
from tests.support.waiting import until

MODEL = tensors(20_000)
MODEL_2 = tensors(20_000, seed=1)


class Site:
    """A volume, and the three kinds of servers that models come from."""

    def __init__(self, root: Path, hub: FakeHub, civitai: FakeCivitai, web: ViciousServer) -> None:
        self.root = root
        self.models = root / "models"
        self.hub, self.civitai, self.web = hub, civitai, web
        for folder in ("loras", "checkpoints", "vae"):
            (self.models / folder).mkdir(parents=True)
        self.calls = Calls.on(root)

    def supply(self, **more: Any) -> ModelSupply:
        allowing = {"allow_download_requests": True, "allow_private_download_urls": True}
        settings = Settings(volume_path=self.root, **{**allowing, **more})
        return ModelSupply(settings, Layout(self.root, True, None), [self.models], self.calls)

    def bring(self, workflow: dict[str, Any], wait: float = 30, **more: Any) -> Supplied:
        supply = self.supply(**more)

        async def brought() -> Supplied:
            return await supply.ensure_models(workflow, Deadline(wait), Progress({}))

        return asyncio.run(brought())

    def download(self, **more: Any) -> dict[str, Any]:
        """The reply to a request for one model."""
        url = self.web.serve("/a.safetensors", MODEL)
        models = [{"name": "a.safetensors", "url": url, "directory": "loras"}]
        given = {"type": "download", "models": models, **more}
        supply = self.supply()
        request = parse_request(given, supply._settings)
        assert isinstance(request, DownloadRequest)

        async def downloaded() -> dict[str, Any]:
            return await supply.download(request, Progress({}))

        return asyncio.run(downloaded())

    def refused(self, address: str, code: str, **more: Any) -> JobError:
        with pytest.raises(JobError) as caught:
            self.bring(lora(address), **more)
        assert caught.value.code == code, caught.value
        return caught.value

    def manifest(self, **entry: Any) -> None:
        data = {"version": 1, "models": [entry]}
        (self.root / "models.json").write_text(json.dumps(data))

    def there(self) -> list[str]:
        """All models; a lease may be there a moment longer than its download."""
        return [place for place in visible(self.models) if "/." not in place]

    def age(self, name: str, seconds: float) -> Path:
        """Let a fetched LoRA have been used so long ago; its receipt."""
        (place,) = self.models.glob(f".receipts/loras/fetched/{name}*.json")
        then = time.time() - seconds
        os.utime(place, (then, then))
        return place


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with FakeHub(MARKER) as hub, FakeCivitai(MARKER) as civitai, ViciousServer() as web:
        token = Secret(MARKER)
        sources = Sources(
            (HuggingFace(token, hub.url), Civitai(token, civitai.url), Https(None, None))
        )
        monkeypatch.setattr(provisioner, "make_sources", lambda _: sources)
        yield Site(tmp_path / "volume", hub, civitai, web)


def lora(address: str, **more: Any) -> dict[str, Any]:
    """A workflow with a loader of LoRAs."""
    inputs = {"lora_name": address, "strength_model": 1, **more}
    return {"2": {"class_type": "LoraLoader", "inputs": inputs}}


def test_an_address_at_hugging_face_as_peers_write_it(site: Site) -> None:
    site.hub.put("fofr/flux-condensation", "lora.safetensors", MODEL)
    address = "https://huggingface.co/fofr/flux-condensation/blob/main/lora.safetensors"
    nodes = lora(address)
    supplied = site.bring(nodes)
    name = nodes["2"]["inputs"]["lora_name"]
    assert name.startswith("fetched/lora-") and name.endswith(".safetensors")
    assert (site.models / "loras" / name).read_bytes() == MODEL
    assert supplied.seconds > 0 and name in supplied.fetched[0]
    asked = len(site.hub.seen)
    for spelling in (
        address.replace("blob", "resolve"),
        "hf://fofr/flux-condensation/lora.safetensors",
    ):
        again = lora(spelling)
        assert site.bring(again).fetched == ()
        assert again["2"]["inputs"]["lora_name"] == name
    assert len(site.hub.seen) == asked, "what is there needs no network"


@pytest.mark.parametrize(
    "address",
    [
        "https://civitai.com/api/download/models/1163532?type=Model&format=SafeTensor",
        "https://civitai.com/models/116353?modelVersionId=1163532",
        "https://civitai.com/models/116353/some-name",
        "urn:air:flux1:lora:civitai:116353@1163532",
    ],
)
def test_an_address_at_civitai(site: Site, address: str) -> None:
    site.civitai.publish(1163532, MODEL, "my style.safetensors", locked=True)
    nodes = lora(address)
    site.bring(nodes)
    name = nodes["2"]["inputs"]["lora_name"]
    assert name.startswith("fetched/my style-")
    receipt = json.loads(receipt_path(site.models, PurePosixPath("loras", name)).read_text())
    assert receipt["sha256"] == sha256(MODEL) and "sha256" in receipt["checked"]
    assert MARKER not in json.dumps(receipt)


def test_a_peers_example_runs_as_its_page_has_it(site: Site) -> None:
    """comfyui-api's README, Dynamic Model Loading, in the body that it documents."""
    query = "type=Model&format=SafeTensor&size=pruned&fp=fp16"
    loader = {
        "inputs": {"ckpt_name": f"https://civitai.com/api/download/models/76750?{query}"},
        "class_type": "CheckpointLoaderSimple",
        "_meta": {"title": "Load Checkpoint"},
    }
    save = {"class_type": "SaveImage", "inputs": {"images": ["1", 2], "filename_prefix": "x"}}
    request = parse_request({"prompt": {"1": loader, "2": save}}, Settings())
    assert isinstance(request, WorkflowRequest)
    site.civitai.publish(76750, MODEL, "dream.safetensors", model_type="Checkpoint")
    site.bring(request.workflow)
    name = request.workflow["1"]["inputs"]["ckpt_name"]
    assert (site.models / "checkpoints" / name).read_bytes() == MODEL
    assert name.startswith("fetched/dream-")


def test_the_category_of_the_input_decides_the_folder(site: Site) -> None:
    url = site.web.serve("/dir/model.safetensors?sig=s3cret", MODEL)
    nodes: dict[str, Any] = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": url}},
        "2": {"class_type": "VAELoader", "inputs": {"vae_name": url}},
        "3": {
            "class_type": "Power Lora Loader (rgthree)",
            "inputs": {"lora_1": {"on": True, "lora": url}, "lora_2": {"on": False, "lora": "x"}},
        },
    }
    site.bring(nodes)
    places = site.there()
    assert [p.rpartition("-")[0] for p in places] == [
        f"{folder}/fetched/model" for folder in ("checkpoints", "loras", "vae")
    ]
    assert nodes["3"]["inputs"]["lora_1"]["lora"].startswith("fetched/model-")
    assert nodes["1"]["inputs"]["ckpt_name"] == nodes["2"]["inputs"]["vae_name"]
    said = json.dumps([p.read_text() for p in site.models.rglob(".receipts/**/*.json")])
    assert "s3cret" not in said


def test_same_names_at_two_addresses_are_two_files(site: Site) -> None:
    for repo, content in (("a/x", MODEL), ("b/x", MODEL_2)):
        site.hub.put(repo, "pytorch_lora_weights.safetensors", content)
        site.bring(lora(f"hf://{repo}/pytorch_lora_weights.safetensors"))
    assert len(site.there()) == 2


def test_a_name_without_an_extension_is_what_the_server_says_or_safetensors(site: Site) -> None:
    named = site.web.serve("/1", MODEL, disposition='attachment; filename="../../my.sft"')
    nodes = lora(named)
    site.bring(nodes)
    assert nodes["2"]["inputs"]["lora_name"].startswith("fetched/my-")
    nodes = lora(site.web.serve("/2", MODEL))
    site.bring(nodes)
    assert nodes["2"]["inputs"]["lora_name"].startswith("fetched/2-")
    error = site.refused(site.web.serve("/3", b"<html>" * 50), "download.not_a_model")
    assert "loras/fetched/3-" in error.message


def test_two_jobs_and_one_model_are_one_download(site: Site) -> None:
    url = site.web.serve("/slow.safetensors", MODEL, bytes_per_second=20_000)
    one, two = lora(url), lora(url)

    async def both() -> list[Supplied]:
        asked = [s.ensure_models(w, Deadline(30), Progress({})) for s, w in pairs]
        return list(await asyncio.gather(*asked))

    pairs = [(site.supply(), one), (site.supply(), two)]
    supplied = asyncio.run(both())
    assert sorted(len(s.fetched) for s in supplied) == [0, 1]
    assert one == two and len(site.there()) == 1
    ranges = [headers.get("range", "") for path, headers in site.web.seen if "slow" in path]
    assert sum(r.startswith("bytes=0-") and r != "bytes=0-0" for r in ranges) == 1, ranges


def test_off_it_is_left_for_comfyui_to_judge_and_explained(site: Site) -> None:
    url = site.web.serve("/m.safetensors", MODEL)
    nodes = lora(url)
    (hint,) = site.bring(nodes, allow_download_requests=False).hints
    assert nodes == lora(url) and site.web.seen == []
    assert hint.code == "request.download_off" and "ALLOW_DOWNLOAD_REQUESTS" in hint.fix
    assert hint.details == {"node_id": "2", "class_type": "LoraLoader", "input": "lora_name"}


def test_off_a_malformed_address_is_left_alone_as_well(site: Site) -> None:
    address = "https://civitai.com/user/me/models"
    nodes = {"2": {"class_type": "MyDownloadingLoader", "inputs": {"lora": address}}}
    (hint,) = site.bring(nodes, allow_download_requests=False).hints
    assert nodes["2"]["inputs"] == {"lora": address} and hint.code == "request.download_off"


def test_an_address_that_the_manifest_has_is_that_model_even_when_off(site: Site) -> None:
    pickled = b"\x80\x02" + MODEL
    url = site.web.serve("/m.ckpt", pickled)
    pinned = {"hash": sha256(pickled), "allow_pickle": True}
    site.manifest(name="mine.ckpt", url=url, directory="loras/own", **pinned)
    nodes = lora(url)
    assert site.bring(nodes, allow_download_requests=False).fetched
    assert nodes["2"]["inputs"]["lora_name"] == "own/mine.ckpt"
    assert (site.models / "loras/own/mine.ckpt").read_bytes() == pickled


def test_pickles_come_by_the_manifest_only(site: Site) -> None:
    site.hub.put("a/x", "lora.pt", b"\x80\x02" + MODEL)
    error = site.refused("hf://a/x/lora.pt", "manifest.pickle")
    assert "models.json" in error.fix and site.there() == []


def test_only_the_hosts_that_are_named(site: Site) -> None:
    hosts = ("huggingface.co", "*.example.com")
    error = site.refused(
        "https://evil.example.org/x.safetensors", "request.model_host", model_hosts=hosts
    )
    assert "huggingface.co" in error.fix
    site.refused("https://example.com/x.safetensors", "request.model_host", model_hosts=hosts)
    site.refused("urn:air:sdxl:lora:civitai:1@2", "request.model_host", model_hosts=hosts)
    site.hub.put("a/x", "lora.safetensors", MODEL)
    assert site.bring(lora("hf://a/x/lora.safetensors"), model_hosts=hosts).fetched


@pytest.mark.parametrize(
    ("address", "code"),
    [
        ("https://huggingface.co/org/repo", "download.no_source"),
        ("https://user:pass@example.com/x.safetensors", "download.no_source"),
        ("hf://org/../../etc/passwd", "download.no_source"),
        ("urn:air:sdxl:lora:civitai:nothing", "download.no_source"),
        ("https://civitai.com/user/me", "download.no_source"),
        ("https://169.254.169.254/latest/meta-data/x.safetensors", "download.private_address"),
        ("http://example.com/x.safetensors", "download.url_refused"),
        ("https://localhost/x.safetensors", "download.private_address"),
    ],
)
def test_addresses_that_lead_nowhere_good_are_refused(site: Site, address: str, code: str) -> None:
    error = site.refused(address, code, allow_private_download_urls=False)
    assert "lora_name of node 2" in error.message and error.fix
    assert "pass" not in error.message.partition("x.safetensors")[0].replace("passwd", "")


def test_one_that_is_gone_fails_the_job_with_why(site: Site) -> None:
    error = site.refused("hf://a/x/nothing.safetensors", "download.not_found")
    assert error.details["node_id"] == "2"
    site.civitai.refuse(5, 401)
    site.refused("https://civitai.com/models/1?modelVersionId=5", "download.not_found")


def test_the_jobs_time_holds(site: Site) -> None:
    url = site.web.serve("/never.safetensors", tensors(3_000_000), stall_after=100_000)
    with pytest.raises(JobError) as caught:
        site.bring(lora(url), wait=1.5)
    assert caught.value.code == "job.timeout", "not that the server stalls"


def test_over_the_limit_the_one_used_least_recently_goes_and_no_file_of_the_users(
    site: Site,
) -> None:
    limit = 45_000 / 1e9
    own = site.models / "loras" / "fetched"
    own.mkdir()
    mine = own / "mine-0123456789abcdef.safetensors"
    mine.write_bytes(MODEL)
    facts = mine.stat()
    looked_at = Receipt(
        facts.st_size, facts.st_mtime_ns, None, ("header",)
    )  # by a `models` command
    write_receipt(site.models, PurePosixPath("loras/fetched", mine.name), looked_at)
    site.age("mine", 99_000)
    (site.models / "loras" / "mine.safetensors").write_bytes(MODEL)
    urls = [
        site.web.serve(f"/{n}.safetensors", tensors(20_000, seed)) for seed, n in enumerate("abc")
    ]
    for url in urls[:2]:
        site.bring(lora(url), model_cache_gb=limit)
    site.age("a", 5000)
    site.age("b", 9000)
    site.bring(lora(urls[1]), model_cache_gb=limit)  # used again
    site.bring(lora(urls[2]), model_cache_gb=limit)
    names = [p.rpartition("-")[0] for p in site.there() if "fetched" in p]
    assert names == [f"loras/fetched/{n}" for n in ("b", "c", "mine")]
    assert (site.models / "loras" / "mine.safetensors").exists()
    assert not list(site.models.glob(".receipts/loras/fetched/a-*"))


def test_what_a_job_names_by_its_file_stays_too(site: Site) -> None:
    limit = len(MODEL) * 1.5 / 1e9
    nodes = lora(site.web.serve("/one.safetensors", MODEL))
    site.bring(nodes, model_cache_gb=limit)
    name = nodes["2"]["inputs"]["lora_name"]
    for spelling in (name, name.replace("/", "\\")):
        site.age("one", 1)
        site.bring(lora(spelling), model_cache_gb=limit)
        site.bring(lora(site.web.serve("/two.safetensors", MODEL_2)), model_cache_gb=limit)
        assert (site.models / "loras" / name).exists()


def test_it_stays_as_long_as_the_job_is_here_and_no_longer(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job's clock stands still while it waits its turn; that of its models must not."""
    monkeypatch.setattr(on_demand, "_RENEW_EVERY", 0.1)
    nodes = lora(site.web.serve("/one.safetensors", MODEL))
    supply = site.supply()

    async def waits() -> None:
        async with supply.in_use(nodes):
            await supply.ensure_models(nodes, Deadline(30), Progress({}))
            receipt = site.age("one", 3600)
            await until(lambda: receipt.stat().st_mtime > time.time())
        await until(lambda: not site.calls.volume.pool._running)
        assert FetchedModels(site.models).make_room(0, 1) == []
        receipt = site.age("one", 3600)
        await asyncio.sleep(0.5)  # in which it would be renewed, and the worker goes on
        assert len(FetchedModels(site.models).make_room(0, 1)) == 1 and not receipt.exists()

    asyncio.run(asyncio.wait_for(waits(), 30))


def test_what_is_in_use_stays_and_one_too_large_is_refused(site: Site) -> None:
    urls = [
        site.web.serve(f"/{n}.safetensors", tensors(20_000, seed)) for seed, n in enumerate("ab")
    ]
    for url in urls:
        site.bring(lora(url), model_cache_gb=25_000 / 1e9)
    assert len(site.there()) == 2, "a job may still need the first one"
    large = site.web.serve("/large.safetensors", tensors(60_000))
    site.refused(large, "model.larger_than_cache", model_cache_gb=25_000 / 1e9)
    assert len(site.there()) == 2


def test_a_file_that_was_changed_since_is_the_users(site: Site) -> None:
    nodes = lora(site.web.serve("/a.safetensors", MODEL))
    site.bring(nodes)
    place = site.models / "loras" / nodes["2"]["inputs"]["lora_name"]
    site.age("a", 9000)
    assert len(list(FetchedModels(site.models).kept())) == 1
    place.write_bytes(MODEL + b"x")
    assert FetchedModels(site.models).make_room(10, 1) == [] and place.exists()
    place.unlink()
    place.symlink_to("/etc/passwd")
    assert FetchedModels(site.models).make_room(10, 1) == [] and place.is_symlink()


@pytest.mark.parametrize(
    "given",
    ["x" * 300 + ".safetensors", "../../evil.safetensors", ".hidden.sft", "", "a\0b.pt", "ж" * 200],
)
def test_whatever_a_server_calls_it_the_name_is_one_plain_component(given: str) -> None:
    name = name_for(parse_link("https://example.com/x"), given)
    assert "/" not in name and not name.startswith(".") and len(name.encode()) <= 240
    assert (
        name.rpartition(".")[0][-16:] == name_for(parse_link("https://example.com/x"), "y.pt")[2:18]
    )


def test_only_loaders_of_models_are_looked_at() -> None:
    url = "https://example.com/x.safetensors"
    nodes = {
        "1": {"class_type": "CLIPTextEncode", "inputs": {"text": url}},
        "2": {"class_type": "LoraLoaderFromURL", "inputs": {"lora_name": url}},
        "3": {"class_type": "LoraLoader", "inputs": {"lora_name": "hf.safetensors"}},
        "4": {"class_type": "LoadImage", "inputs": {"image": url}},
        "5": {"class_type": "DualCLIPLoader", "inputs": {"clip_name1": url, "clip_name2": url}},
    }
    assert [(m.node_id, m.input, m.category) for m in model_addresses(nodes)] == [
        ("5", "clip_name1", "text_encoders"),
        ("5", "clip_name2", "text_encoders"),
    ]


def test_a_request_whose_time_is_up_before_it_begins_says_so(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_demand, "provision_context", lambda *_: time.sleep(1))
    with pytest.raises(JobError) as caught:
        site.download(max_wait=0.1)
    assert caught.value.code == "job.timeout" and "no model was fetched yet" in str(caught.value)


def test_a_request_whose_models_are_there_succeeds_though_they_cannot_be_linked(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise OSError(errno.EROFS, "read-only")

    monkeypatch.setattr(on_demand, "show_to_comfyui", fails)
    assert site.download()["models"][0]["state"] == "fetched"
    assert (site.models / "loras/a.safetensors").read_bytes() == MODEL
