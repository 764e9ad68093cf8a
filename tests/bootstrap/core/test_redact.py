"""No login, token or signature in an address leaks, whatever quotes it."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootstrap.config import Settings
from bootstrap.core.findings import error
from bootstrap.core.redact import masked, masked_data
from handler.common.errors import JobError

SECRET = "marker-5e1f"


@pytest.mark.parametrize(
    ("text", "reported"),
    [
        (f"git+https://me:{SECRET}@h.org/x.git@v1#egg=a", "git+https://***@h.org/x.git@v1#egg=a"),
        (f"a @ https://{SECRET}@h.org/a.whl ; x", "a @ https://***@h.org/a.whl ; x"),
        (f"--index-url http://u:p@{SECRET}@h:80/simple", "--index-url http://***@h:80/simple"),
        (f"ssh://git:{SECRET}@h.org/x", "ssh://***@h.org/x"),
        (f"'https://me:{SECRET}'", "'https://***'"),
        (f"https://me:{SECRET}", "https://***"),
        (f"https://h/x?X-Amz-Signature={SECRET}&b=2", "https://h/x?X-Amz-Signature=***&b=2"),
        (f"with url: /api?a=1&token={SECRET} (Caused", "with url: /api?a=1&token=*** (Caused"),
        (f"https://h/?a=1&amp;Key-Pair-Id=K&amp;sig={SECRET}", None),
        (f"https://h/?hm={SECRET * 3}", "https://h/?hm=***"),
        (f"-H 'Authorization: Bearer {SECRET}'", "-H 'Authorization: Bearer ***'"),
        (f"> authorization: Token {SECRET}, next", "> authorization: Token ***, next"),
        (f"{{'Authorization': 'Bearer {SECRET}'}}", "{'Authorization': 'Bearer ***'}"),
        (f'{{"Proxy-Authorization":"Basic {SECRET}="}}', '{"Proxy-Authorization":"Basic ***"}'),
        (f'"{{\\"Authorization\\": \\"Bearer {SECRET}\\"}}"', None),
        (f"[(b'authorization', b'Bearer {SECRET}')]", "[(b'authorization', b'Bearer ***')]"),
        (f"Authorization: {SECRET * 2}", "Authorization: ***"),
        (f"Authorization: ApiKey-v2 {SECRET * 2}", "Authorization: ApiKey-v2 ***"),
        (f"the header was Bearer {SECRET * 2}.", "the header was Bearer ***"),
    ],
)
def test_secrets_are_masked(text: str, reported: str | None) -> None:
    assert SECRET not in masked(text)
    assert reported is None or masked(text) == reported
    assert masked(masked(text)) == masked(text)


@pytest.mark.parametrize(
    "text",
    [
        "ComfyUI answers on http://127.0.0.1:8188, after 3 s.",
        "http://[::1]:80/x and someone@example.org",
        "git clone ssh://git@github.com/a/b.git && cd b",
        "hf://org/repo/file@revision",
        "https://civitai.com/models/1?modelVersionId=2&type=Model",
        'sed -E "s/a=b/c/" && TOKEN=x pip install "a>=1"',
        "sqlite:////tmp/comfyui.db",
        'curl -fL -H "Authorization: Bearer $CIVITAI_TOKEN" -o FILE URL (HF_TOKEN for another)',
        "-H 'Authorization: Bearer <token>' or {'Authorization': f'Bearer {token}'}",
        "Authorization: Bearer required. A token starts with `Bearer` or with its variable's name.",
        "Needs authorization, token based; authorization: basic",
        "hf_hub_download(repo) with hf_transfer, models/hf_unet_fp16.safetensors, /tmp/comfyui-a1",
        f"sha256 {'0123456789abcdef' * 4} of prompt 5f0c2d3e4b5a69788796a5b4c3d2e1f0",
    ],
)
def test_what_is_not_a_secret_stays(text: str) -> None:
    assert masked(text) == text


_part = st.text("abcXYZ019-_.~%$!*+,;=", min_size=1, max_size=20)


@given(_part, st.none() | _part, st.text(max_size=30), st.text(max_size=30))
def test_a_login_never_stays(user: str, password: str | None, before: str, after: str) -> None:
    login = user if password is None else f"{user}:{password}"
    text = masked(f"{before}https://{login}@example.org/x {after}")
    assert "https://***@example.org/x" in text


HEADERS = (
    "Authorization: Bearer {}",
    "authorization:token {}",
    "'Authorization': 'Bearer {}'",
    '{{"authorization": "Basic {}", "accept": "*/*"}}',
    "(b'Authorization', b'Token {}')",
)
_token = st.from_regex(r"[A-Za-z0-9._~+/-]{7,60}[0-9][A-Za-z]", fullmatch=True)


@given(st.sampled_from(HEADERS), _token, st.text(max_size=30), st.text(max_size=30))
def test_a_header_never_keeps_its_token(form: str, token: str, before: str, after: str) -> None:
    text = masked(f"{before} {form.format(token)} {after}")
    assert form.format("***") in text
    assert masked(text) == text


_SHAPES = (r"hf_[A-Za-z0-9]{34}", r"api_org_[A-Za-z0-9]{34}", r"rpa_[A-Z0-9]{40}[a-z0-9]{0,8}")


@given(
    st.one_of([st.from_regex(shape, fullmatch=True) for shape in _SHAPES]),
    st.sampled_from(("", " ", "=", "'", '"', "/", ":", "(", "\n")),
)
def test_a_token_is_known_by_its_beginning(token: str, before: str) -> None:
    kind = token[: token.rindex("_") + 1]
    assert masked(f"key{before or ' '}{token} refused") == f"key{before or ' '}{kind}*** refused"


_innocent = st.one_of(
    st.from_regex(r"[a-z]{1,12}[.,;:)]?", fullmatch=True),
    st.uuids().map(str),
    st.binary(min_size=16, max_size=32).map(bytes.hex),
    st.sampled_from("hf_hub rpa_1 hf_token= HF_TOKEN Token: tokens=77 /models/hf_a/b_1.pt".split()),
)


@given(st.lists(_innocent, max_size=12).map(" ".join))
def test_words_hashes_and_names_stay(text: str) -> None:
    assert masked(text) == text


@given(st.lists(st.from_regex(r"[A-Za-z]{1,15}[.,;:)]?", fullmatch=True), max_size=6))
def test_words_about_authorization_stay(words: list[str]) -> None:
    text = " ".join(["Authorization: Bearer", *words, "Bearer", *words, "authorization:", *words])
    assert masked(text) == text


def test_all_parts_of_a_finding_and_of_a_jobs_error_are_masked() -> None:
    address = f"https://me:{SECRET}@h/x"
    details = {"lines": [address, (address,)], address: {"deep": address}, "count": 1}
    reported = error("a.b", address, address, **details)
    assert SECRET not in repr(reported) and reported.details["count"] == 1
    failed = JobError("a.b", address, address, **details)
    assert SECRET not in f"{failed} {failed!r} {failed.message} {failed.fix} {failed.details}"
    assert masked_data(("a", 1, None, [address])) == ("a", 1, None, ["https://***@h/x"])


def test_settings_are_reported_without_what_their_texts_hold() -> None:
    address = f"https://me:{SECRET}@h/x"
    env = {"MODELS_MANIFEST": f'{{"models": [{{"url": "{address}"}}]}}', "HF_ENDPOINT": address}
    settings, problems = Settings.from_env({**env, "BUCKET_ENDPOINT_URL": "x" * 60 + address})
    assert settings.models_manifest and SECRET in settings.models_manifest
    assert problems
    assert SECRET[:5] not in repr([settings.masked(), problems])


def test_the_log_is_masked(capfd: pytest.CaptureFixture[str]) -> None:
    logging.getLogger("bootstrap.core").info("from %s", f"https://me:{SECRET}@h/x")
    assert capfd.readouterr().err == "[worker] from https://***@h/x\n"
