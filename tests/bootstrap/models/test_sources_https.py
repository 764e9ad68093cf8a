"""Plain servers: the bearer token goes to its host and nowhere else; queries stay hidden."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bootstrap.core.redact import Secret
from bootstrap.models.download.progress import LogMeter
from bootstrap.models.manifest import parse_manifest
from bootstrap.models.provision import provision
from bootstrap.models.sources import BadLink, https, parse_link
from bootstrap.models.sources.https import Https
from bootstrap.net.addresses import shown
from tests.support.provisioning import MARKER, context, options, spec, tensors
from tests.support.vicious_server import ViciousServer

DATA = tensors(300_000)


@pytest.fixture
def servers() -> Iterator[tuple[ViciousServer, ViciousServer]]:
    with ViciousServer() as one, ViciousServer() as other:
        yield one, other


def test_the_token_goes_to_its_host_only(
    servers: tuple[ViciousServer, ViciousServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(https, "_SCHEMES", {"http"})
    home, storage = servers
    target = storage.serve("/stored", DATA) + "?signature=s3cret"
    url = home.serve("/m.safetensors", b"", redirect=target)
    home.files["/m.safetensors"].needs = lambda headers: (
        None if headers.get("authorization") == f"Bearer {MARKER}" else 401
    )
    source = Https(Secret(MARKER), home.host_port)
    (result,) = provision([spec(url)], context(tmp_path, source))
    assert result.state == "fetched", result.problem
    assert storage.seen
    assert MARKER not in str(storage.seen)
    (other,) = provision([spec(target, name="n.safetensors")], context(tmp_path, source))
    assert other.state == "fetched"
    assert MARKER not in str(storage.seen)
    assert MARKER not in repr((source, result, other))


def test_the_token_needs_https(servers: tuple[ViciousServer, ViciousServer]) -> None:
    home, _ = servers
    url = home.serve("/m.safetensors", DATA)
    source = Https(Secret(MARKER), home.host_port)
    assert source.credential_name(parse_link(url)) is None
    source.describe(parse_link(url), options().channel())
    assert MARKER not in str(home.seen)


def test_describe_takes_the_server_s_name(servers: tuple[ViciousServer, ViciousServer]) -> None:
    url = servers[0].serve("/x?y=1", DATA, disposition='attachment; filename="../a/b.safetensors"')
    described = Https().describe(parse_link(url), options().channel())
    assert (described.name, described.size) == ("b.safetensors", len(DATA))


def test_signed_urls_are_shown_without_their_signature() -> None:
    assert shown("https://u:p@h.example:8443/a/b?X-Amz-Signature=1#f") == (
        "https://h.example:8443/a/b"
    )


@pytest.mark.parametrize(
    "vices", [{"status": 403}, {"content_type": "text/html"}, {"redirect": "http://[/"}]
)
def test_what_is_said_of_a_signed_url_holds_no_signature(
    vices: dict[str, Any],
    servers: tuple[ViciousServer, ViciousServer],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    url = servers[0].serve("/m.safetensors", DATA, **vices) + "?X-Amz-Signature=s3cret"
    (result,) = provision([spec(url)], context(tmp_path, make_meter=LogMeter))
    assert result.problem is not None
    other = {**spec(url).as_entry(), "url": url.replace("m.safe", "n.safe")}
    twice = parse_manifest({"version": 1, "models": [spec(url).as_entry(), other]}, "m", True)
    assert [f.code for f in twice.findings] == ["manifest.two_for_one_file"]
    reported = [result.as_dict(), repr(result.problem), capsys.readouterr(), twice.findings]
    assert "s3cret" not in str(reported)


@pytest.mark.parametrize(
    "url",
    ["", "ftp://h/x", "https://", "https://u:p@h/x", "https://h/a b", "https://h\\x", "x.y",
     "https://h:99999/x", "https://[::1/x", "https://h/\n"],
)  # fmt: skip
def test_what_is_not_a_url(url: str) -> None:
    with pytest.raises(BadLink):
        parse_link(url)
