"""Hugging Face: the real huggingface_hub with a server that answers like the Hub."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bootstrap.core.redact import Secret
from bootstrap.models.provision import provision
from bootstrap.models.sources import BadLink, HubFile, WebFile, parse_link
from bootstrap.models.sources.huggingface import HuggingFace, find_cached
from tests.support.fake_hub import COMMIT, FakeHub
from tests.support.provisioning import MARKER, context, options, sha256, spec, tensors

DATA = tensors(9_000_000)
URL = "hf://org/repo/split_files/vae/m.safetensors"
PATH = "split_files/vae/m.safetensors"


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub(MARKER) as running:
        yield running


def bring(models: Path, hub: FakeHub, url: str = URL, token: str | None = None, **more: Any) -> Any:
    source = HuggingFace(None if token is None else Secret(token), hub.url)
    (result,) = provision([spec(url, **more)], context(models, source))
    return result


@pytest.mark.parametrize("large", [True, False])
def test_a_file_comes_with_its_hash_known_beforehand(
    large: bool, hub: FakeHub, tmp_path: Path
) -> None:
    hub.put("org/repo", PATH, DATA, large=large)
    result = bring(tmp_path, hub)
    assert result.state == "fetched", result.problem
    assert (tmp_path / "loras/m.safetensors").read_bytes() == DATA
    assert ("sha256" in result.receipt.checked) is large


@pytest.mark.parametrize("gate", ["gated", "private"])
def test_the_token_opens_and_stays_at_the_hub(gate: str, hub: FakeHub, tmp_path: Path) -> None:
    hub.put("org/repo", PATH, DATA)
    hub.repos["org/repo"].gate = gate
    closed = bring(tmp_path, hub).problem
    assert closed.code == ("download.gated" if gate == "gated" else "download.not_found")
    assert "HF_TOKEN" in closed.fix
    opened = bring(tmp_path, hub, token=MARKER)
    assert opened.state == "fetched", opened.problem
    assert any(MARKER in str(headers) for _, _, headers in hub.seen)
    assert MARKER not in str(hub.cdn.seen)
    assert MARKER not in repr(opened)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("hf://org/none/x.safetensors", "no repository"),
        ("hf://org/repo/none.safetensors", "no file none.safetensors"),
        (f"{URL}@nope", "no such revision"),
        ("hf://org/bad..name--/x.safetensors", "not a repository name"),
    ],
)
def test_what_is_missing_is_named(url: str, words: str, hub: FakeHub, tmp_path: Path) -> None:
    hub.put("org/repo", PATH, DATA)
    problem = bring(tmp_path, hub, url).problem
    assert problem.code == "download.not_found"
    assert words in problem.message


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (401, "download.login_needed"),
        (403, "download.forbidden"),
        (410, "download.gone"),
        (429, "download.rate_limited"),
        (500, "download.http_status"),
    ],
)
def test_other_statuses(status: int, code: str, hub: FakeHub, tmp_path: Path) -> None:
    hub.put("org/repo", PATH, DATA)
    hub.status = status
    assert bring(tmp_path, hub).problem.code == code


def test_a_hash_the_hub_contradicts_is_reported_before_a_byte_is_fetched(
    hub: FakeHub, tmp_path: Path
) -> None:
    hub.put("org/repo", PATH, DATA)
    problem = bring(tmp_path, hub, hash="0" * 64).problem
    assert problem.code == "download.hash_mismatch"
    assert "0" * 64 in problem.message and sha256(DATA) in problem.message
    assert [h["range"] for _, h in hub.cdn.seen] == ["bytes=0-0"]


def test_a_revision_is_asked_for(hub: FakeHub, tmp_path: Path) -> None:
    hub.put("org/repo", PATH, DATA)
    assert bring(tmp_path, hub, revision=COMMIT).state == "fetched"
    assert f"/resolve/{COMMIT}/" in hub.seen[0][1]


def test_describe_pins_the_commit_and_finds_the_folder(hub: FakeHub) -> None:
    hub.put("org/repo", PATH, DATA)
    described = HuggingFace(None, hub.url).describe(parse_link(URL), options().channel())
    assert (described.name, described.directory) == ("m.safetensors", "vae")
    assert (described.size, described.sha256) == (len(DATA), sha256(DATA))
    assert described.revision == COMMIT


SCRIPT = """
import sys
from pathlib import Path
from tests.support.provisioning import spec, context
from bootstrap.models.provision import provision
from bootstrap.models.sources.huggingface import HuggingFace
(result,) = provision([spec(sys.argv[1])], context(Path(sys.argv[2]), HuggingFace()))
print(result.state, result.problem and result.problem.code)
"""


@pytest.mark.parametrize(
    ("offline", "answer"), [("0", "fetched None"), ("1", "failed download.offline")]
)
def test_hf_endpoint_and_offline_mode_are_honoured(
    offline: str, answer: str, hub: FakeHub, tmp_path: Path
) -> None:
    """In a process of its own, for the library reads them when it is imported."""
    hub.put("org/repo", PATH, DATA)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "https://huggingface.co/org/repo/resolve/main/" + PATH,
         str(tmp_path)],
        env={**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": offline, "PYTHONPATH": "."},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == answer, done.stderr


@pytest.mark.parametrize("refs", [COMMIT.encode(), None, b"\xff\xfe", b"0" * 2000])
def test_the_platform_s_cache_is_looked_up(refs: bytes | None, tmp_path: Path) -> None:
    folder = tmp_path / "models--org--repo"
    snapshot = folder / "snapshots" / COMMIT / "vae"
    snapshot.mkdir(parents=True)
    (folder / "blobs").mkdir()
    (folder / "blobs" / "b").write_bytes(DATA)
    (snapshot / "m.safetensors").symlink_to(folder / "blobs" / "b")
    if refs is not None:
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_bytes(refs)
    link = HubFile("org/repo", "vae/m.safetensors")
    assert find_cached(link, None, tmp_path) == snapshot / "m.safetensors"
    assert find_cached(link, COMMIT, tmp_path) == snapshot / "m.safetensors"
    assert find_cached(link, "other", tmp_path) is None
    assert find_cached(HubFile("org/repo", "none"), None, tmp_path) is None
    (snapshot / "m.safetensors").unlink()
    (snapshot / "m.safetensors").symlink_to("/etc/passwd")
    assert find_cached(link, None, tmp_path) is None


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("hf://org/repo/a/b.safetensors", "hf://org/repo/a/b.safetensors"),
        ("hf://org/repo/b@refs%2Fpr%2F1", "hf://org/repo/b@refs%2Fpr%2F1"),
        ("https://huggingface.co/org/repo/resolve/main/a/b.x?download=true", "hf://org/repo/a/b.x"),
        ("https://huggingface.co/org/repo/blob/v1/b.x", "hf://org/repo/b.x@v1"),
        ("https://huggingface.co/gpt2/resolve/main/b.x", "hf://gpt2/b.x"),
        ("https://huggingface.co/datasets/o/r/resolve/main/b.x", "hf://datasets/o/r/b.x"),
    ],
)
def test_links(url: str, expected: str) -> None:
    assert str(parse_link(url)) == expected


@pytest.mark.parametrize(
    "url",
    ["hf://org/repo", "hf://org/repo/../x", "https://huggingface.co/org/repo", "hf:///x/y/z"],
)
def test_links_to_no_file(url: str) -> None:
    with pytest.raises(BadLink):
        parse_link(url)


def test_other_hosts_are_plain_ones() -> None:
    assert isinstance(parse_link("https://huggingface.co.evil.example/a/b/resolve/main/c"), WebFile)
