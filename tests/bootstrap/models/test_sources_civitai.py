"""Civitai: the token goes only to its host, each refusal is explained, the right file and
folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bootstrap.core.redact import Secret
from bootstrap.models.provision import provision
from bootstrap.models.sources import BadLink, CivitaiFile, WebFile, parse_link
from bootstrap.models.sources.civitai import (
    Civitai,
    belongs_to_civitai,
    choose_file,
    folder_for,
    size_of,
)
from bootstrap.net import DownloadError
from tests.support.fake_civitai import Answer, FakeCivitai, Sites
from tests.support.provisioning import MARKER, context, options, sha256, spec, tensors

DATA = tensors(9_000_000)
AIR = "urn:air:sdxl:lora:civitai:12@123"


@pytest.fixture
def civitai() -> Iterator[FakeCivitai]:
    with FakeCivitai(MARKER) as running:
        yield running


def bring(models: Path, civitai: FakeCivitai, url: str = AIR, token: str | None = MARKER) -> Any:
    source = Civitai(None if token is None else Secret(token), civitai.url)
    (result,) = provision([spec(url)], context(models, source))
    return result


def test_a_locked_model_comes_with_the_token_and_the_storage_never_sees_it(
    civitai: FakeCivitai, tmp_path: Path
) -> None:
    civitai.publish(123, DATA, locked=True)
    result = bring(tmp_path, civitai)
    assert result.state == "fetched", result.problem
    assert (tmp_path / "loras/m.safetensors").read_bytes() == DATA
    assert "sha256" in result.receipt.checked  # known from the API, pinned by no one
    assert civitai.storage.seen
    assert MARKER not in str(civitai.storage.seen)
    assert MARKER not in repr(result)
    assert "s3cret" not in repr(result)
    assert all("Mozilla" not in headers["user-agent"] for _, headers in civitai.front.seen)


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (401, "download.login_needed", "CIVITAI_TOKEN"),
        (403, "download.forbidden", "early access"),
        (404, "download.not_found", "modelVersionId"),
        (410, "download.gone", "archived"),
        (429, "download.rate_limited", "quota"),
        (400, "download.http_status", "format"),
    ],
)
def test_each_refusal_has_its_own_words(
    status: int, code: str, words: str, civitai: FakeCivitai, tmp_path: Path
) -> None:
    civitai.refuse(123, status, {"error": "early access ends soon"})
    result = bring(tmp_path, civitai)
    assert result.problem.code == code
    assert words in f"{result.problem.message} {result.problem.fix}"
    assert MARKER not in f"{result.problem.message} {result.problem.fix}"


def test_a_refusal_in_endless_brackets_is_still_a_refusal(
    civitai: FakeCivitai, tmp_path: Path
) -> None:
    civitai.refuse(123, 403)
    civitai.front.files["/api/download/models/123"].body = b"[" * 9000
    assert bring(tmp_path, civitai).problem.code == "download.forbidden"


def test_without_a_token_a_locked_model_says_where_to_get_one(
    civitai: FakeCivitai, tmp_path: Path
) -> None:
    civitai.publish(123, DATA, locked=True)
    result = bring(tmp_path, civitai, token=None)
    assert result.problem.code == "download.login_needed"
    assert "https://civitai.com/user/account" in result.problem.fix


def test_the_api_s_hash_is_held_against_the_bytes(civitai: FakeCivitai, tmp_path: Path) -> None:
    civitai.publish(123, DATA, hashes={"SHA256": "A" * 64})
    assert bring(tmp_path, civitai).problem.code == "download.hash_mismatch"


def test_a_signature_that_expires_is_made_again(civitai: FakeCivitai, tmp_path: Path) -> None:
    civitai.publish(123, DATA)
    civitai.storage.files["/signed/123"].statuses = {3: 403}
    assert bring(tmp_path, civitai).state == "fetched"
    assert civitai.front.files["/api/download/models/123"].requests > 1


def test_describe_says_what_an_entry_should(civitai: FakeCivitai) -> None:
    civitai.publish(123, DATA, model_type="Checkpoint")
    source, channel = Civitai(None, civitai.url), options().channel()
    for site, url in (
        ("civitai.com", AIR),
        ("civitai.com", "https://civitai.com/models/12/a-model"),
        ("civitai.red", "https://civitai.red/models/12"),
    ):
        described = source.describe(parse_link(url), channel)
        assert described.url == f"https://{site}/api/download/models/123"
        assert (described.name, described.directory) == ("m.safetensors", "checkpoints")
        assert (described.size, described.sha256) == (len(DATA), sha256(DATA))


@pytest.mark.parametrize(
    ("origin", "belongs"),
    [
        (("https", "civitai.com", 443), True),
        (("https", "www.civitai.com", 443), True),
        (("https", "civitai.red", 443), True),
        (("https", "b2.civitai.com", 443), False),
        (("https", "blobs-b2.civitai.com", 443), False),
        (("https", "unheard-of.civitai.com", 443), False),
        (("https", "b2.civitai.red", 443), False),
        (("http", "civitai.com", 80), False),
        (("https", "civitai.com", 8443), False),
        (("https", "civitai.com.evil.example", 443), False),
        (("https", "evilcivitai.com", 443), False),
    ],
)
def test_where_the_token_may_go(origin: tuple[str, str, int], belongs: bool) -> None:
    assert belongs_to_civitai(*origin) is belongs


@pytest.mark.parametrize(
    ("url", "version", "choice"),
    [
        (AIR, 123, ()),
        ("https://civitai.com/api/download/models/123", 123, ()),
        (
            "https://civitai.com/api/download/models/123?type=Model&format=SafeTensor&token=x",
            123,
            (("type", "Model"), ("format", "SafeTensor")),
        ),
        ("https://civitai.com/models/9/name?modelVersionId=123", 123, ()),
        (
            "https://civitai.com/api/download/models/123?type=VAE&fileId=7",
            123,
            (("fileId", "7"),),
        ),
        ("https://civitai.com/model-versions/123?fileId=7", 123, (("fileId", "7"),)),
        (f"{AIR}.safetensors", 123, (("format", "safetensors"),)),
        ("https://civitai.com/models/9", None, ()),
    ],
)
def test_links(url: str, version: int | None, choice: tuple[Any, ...]) -> None:
    link = parse_link(url)
    assert isinstance(link, CivitaiFile)
    assert (link.version, link.choice) == (version, choice)


@pytest.mark.parametrize(
    "url", ["urn:air:sdxl:lora:civitai:12", "https://civitai.com/images/1", "https://civitai.com"]
)
def test_links_to_no_model(url: str) -> None:
    with pytest.raises(BadLink):
        parse_link(url)


def test_files_and_folders() -> None:
    def version(kind: str, *files: dict[str, Any]) -> dict[str, Any]:
        return {"model": {"type": kind}, "files": list(files)}

    vae, model = {"type": "VAE", "id": 1}, {"type": "Model", "id": 2, "primary": True}
    both = version("Checkpoint", vae, model)
    assert choose_file(both, {}) is model
    assert choose_file(both, {"fileId": "1"}) is vae
    assert folder_for(both, vae) == "vae"
    assert folder_for(both, model) == "checkpoints"
    assert folder_for(version("DoRA"), model) == "loras"
    assert folder_for(version("Poses"), model) is None
    for kind in ("Training Data", "Archive", "Workflow"):
        with pytest.raises(DownloadError) as caught:
            choose_file(version("LORA", {"type": kind}), {})
        assert caught.value.code == "download.wrong_type"
    assert size_of({"sizeKB": 3 / 1024}) == 3
    assert size_of({"sizeKB": 1.23}) is None


def test_a_page_without_version_is_not_an_entry(civitai: FakeCivitai, tmp_path: Path) -> None:
    source = Civitai(None, civitai.url)
    from bootstrap.models.download.verify import Wanted

    with pytest.raises(DownloadError) as caught:
        source.locate(CivitaiFile(None, 9), None, Wanted("m"), options().channel())
    assert "version" in caught.value.message


# What civitai.com has been seen to redirect a download to, and what it may choose tomorrow.
STORAGE = [
    "civitai-delivery-worker-prod.5ac0637cfd0766c97916cefa3764fbdf.r2.cloudflarestorage.com",
    "b2.civitai.com",
    "blobs-b2.civitai.com",
    "civitai-modelfiles.s3.us-west-004.backblazeb2.com",
    "storage.civitai.red",
    "tomorrow.civitai.com",
    "elsewhere.example",
]


@pytest.mark.parametrize("storage", STORAGE)
@pytest.mark.parametrize("site", ["civitai.com", "civitai.red"])
def test_the_token_opens_the_site_that_the_link_names_and_never_goes_to_its_storage(
    site: str, storage: str, tmp_path: Path
) -> None:
    data = tensors(64)

    def answer(host: str, path: str, headers: dict[str, str]) -> Answer:
        if host == site:
            if headers.get("authorization") != f"Bearer {MARKER}":
                return 401, {"Content-Type": "application/json"}, b'{"error": "Unauthorized"}'
            if path.startswith("/api/download/models/456"):
                return 307, {"Location": f"https://{storage}/model/x?X-Signature=abc"}, b""
        if host == storage and "authorization" not in headers:
            first, _, last = headers.get("range", "bytes=0-").removeprefix("bytes=").partition("-")
            end = min(int(last or len(data)), len(data) - 1)
            part = data[int(first) : end + 1]
            return 206, {"Content-Range": f"bytes {first}-{end}/{len(data)}"}, part
        return 404, {}, b"no"

    with Sites(tmp_path, answer, site, storage) as sites:
        source = Civitai(Secret(MARKER))
        wanted = spec(f"https://{site}/api/download/models/456")
        place = context(tmp_path / "models", source, options=options(policy=sites.policy))
        (result,) = provision([wanted], place)
    assert result.state == "fetched", result.problem
    shown_to = {host for host, _, headers in sites.seen if MARKER in str(headers)}
    assert shown_to == {site}
    assert storage in {host for host, _, _ in sites.seen}


def test_what_lies_on_civitai_s_storage_is_a_plain_server_s_file() -> None:
    assert isinstance(parse_link("https://b2.civitai.com/file/x.safetensors?sig=1"), WebFile)


FILES = [
    {"id": 11, "name": "bf16", "type": "UNet", "primary": True, "metadata": {"fp": "bf16"}},
    {"id": 12, "name": "int8", "type": "UNet", "metadata": {"fp": "int8"}},
    {"id": 13, "name": "old", "type": "UNet", "metadata": {"fp": "fp32", "format": "SafeTensor"}},
    {"id": 14, "name": "old2", "type": "UNet", "metadata": {"fp": "fp32", "format": "SafeTensor"}},
]


@pytest.mark.parametrize(
    ("query", "number"),
    [("fileId=12", 12), ("type=UNet&fp=int8", 12), ("type=UNet", 11), ("fp=int8&fileId=11", 11)],
)
def test_a_choice_becomes_its_file_s_id(query: str, number: int, civitai: FakeCivitai) -> None:
    civitai.publish(123, DATA)
    civitai.describe_files(123, FILES)
    link = parse_link(f"https://civitai.com/api/download/models/123?{query}")
    described = Civitai(None, civitai.url).describe(link, options().channel())
    assert described.url == f"https://civitai.com/api/download/models/123?fileId={number}"
    assert described.name == next(file["name"] for file in FILES if file["id"] == number)


@pytest.mark.parametrize("query", ["fileId=77", "fp=fp8", "type=Checkpoint", "fp=fp32"])
def test_a_choice_of_no_file_or_of_several_is_refused_with_the_files_there_are(
    query: str, civitai: FakeCivitai, tmp_path: Path
) -> None:
    civitai.publish(123, DATA)
    civitai.describe_files(123, FILES)
    url = f"https://civitai.com/api/download/models/123?{query}"
    with pytest.raises(DownloadError) as caught:
        Civitai(None, civitai.url).describe(parse_link(url), options().channel())
    assert caught.value.code == "download.not_found"
    assert "13 (old), 14 (old2)" in caught.value.fix
    problem = bring(tmp_path, civitai, url).problem  # nor is another file fetched
    assert (problem.code, problem.fix) == ("download.not_found", caught.value.fix)


def test_a_manifest_s_choice_is_asked_for_by_id_as_civitai_may_not_find_it_otherwise(
    civitai: FakeCivitai, tmp_path: Path
) -> None:
    civitai.publish(123, DATA)
    download = civitai.front.files.pop("/api/download/models/123")
    civitai.front.files["/api/download/models/123?fileId=1230"] = download
    url = "https://civitai.com/api/download/models/123?type=Model&format=SafeTensor&fp=fp16"
    assert bring(tmp_path, civitai, url).state == "fetched"


def test_a_pinned_hash_says_which_file_is_meant(civitai: FakeCivitai, tmp_path: Path) -> None:
    civitai.publish(123, DATA)
    download = civitai.front.files.pop("/api/download/models/123")
    civitai.front.files["/api/download/models/123?fileId=1230"] = download
    wanted = spec("https://civitai.com/api/download/models/123?fp=odd", hash=sha256(DATA))
    place = context(tmp_path, Civitai(None, civitai.url))
    assert provision([wanted], place)[0].state == "fetched"
