"""Civitai: the token stays at home, each refusal has its words, the right file and folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bootstrap.core.redact import Secret
from bootstrap.models.sources.civitai import (
    Civitai,
    belongs_to_civitai,
    choose_file,
    folder_for,
    size_of,
)
from bootstrap.models.sources.links import BadLink, CivitaiFile, parse_link
from bootstrap.net.errors import DownloadError
from tests.support.fake_civitai import FakeCivitai
from tests.support.provisioning import MARKER, sha256, spec, tensors, tools, workplace

DATA = tensors(9_000_000)
AIR = "urn:air:sdxl:lora:civitai:12@123"


@pytest.fixture
def civitai() -> Iterator[FakeCivitai]:
    with FakeCivitai(MARKER) as running:
        yield running


def bring(models: Path, civitai: FakeCivitai, url: str = AIR, token: str | None = MARKER) -> Any:
    from bootstrap.models.provision import provision

    source = Civitai(None if token is None else Secret(token), civitai.url)
    (result,) = provision([spec(url)], workplace(models, source))
    return result


def test_a_locked_model_comes_with_the_token_and_the_storage_never_sees_it(
    civitai: FakeCivitai, tmp_path: Path
) -> None:
    civitai.publish(123, DATA, locked=True)
    result = bring(tmp_path, civitai)
    assert result.state == "fetched", result.problem
    assert (tmp_path / "loras/m.safetensors").read_bytes() == DATA
    assert "sha256" in result.receipt.checked  # known from the API, pinned by nobody
    assert civitai.storage.seen
    assert MARKER not in str(civitai.storage.seen)
    assert MARKER not in repr(result)
    assert "s3cret" not in repr(result)
    assert all("Mozilla" not in headers["user-agent"] for _, headers in civitai.front.seen)


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (401, "download.login_needed", "civitai_token"),
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


def test_a_signature_that_expires_is_made_anew(civitai: FakeCivitai, tmp_path: Path) -> None:
    civitai.publish(123, DATA)
    civitai.storage.files["/signed/123"].statuses = {3: 403}
    assert bring(tmp_path, civitai).state == "fetched"
    assert civitai.front.files["/api/download/models/123"].requests > 1


def test_describe_says_what_an_entry_should(civitai: FakeCivitai) -> None:
    civitai.publish(123, DATA, model_type="Checkpoint")
    source, channel = Civitai(None, civitai.url), tools().channel()
    for url in (AIR, "https://civitai.com/models/12/a-model", "https://civitai.red/models/12"):
        described = source.describe(parse_link(url), channel)
        assert described.url == "https://civitai.com/api/download/models/123"
        assert (described.name, described.directory) == ("m.safetensors", "checkpoints")
        assert (described.size, described.sha256) == (len(DATA), sha256(DATA))


@pytest.mark.parametrize(
    ("origin", "belongs"),
    [
        (("https", "civitai.com", 443), True),
        (("https", "www.civitai.com", 443), True),
        (("https", "civitai.red", 443), True),
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


def test_a_page_without_version_is_no_entry(civitai: FakeCivitai, tmp_path: Path) -> None:
    source = Civitai(None, civitai.url)
    from bootstrap.models.download.verify import Wanted

    with pytest.raises(DownloadError) as caught:
        source.locate(CivitaiFile(None, 9), None, Wanted("m"), tools().channel())
    assert "version" in caught.value.message
