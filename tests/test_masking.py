"""No login, token or signature of an address gets out, whatever quotes it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootstrap.findings import error
from bootstrap.log import say
from bootstrap.masking import masked, masked_data
from bootstrap.settings import Settings
from handler.errors import JobError

SECRET = "marker-5e1f"


@pytest.mark.parametrize(
    ("text", "told"),
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
    ],
)
def test_secrets_are_masked(text: str, told: str | None) -> None:
    assert SECRET not in masked(text)
    assert told is None or masked(text) == told
    assert masked(masked(text)) == masked(text)


@pytest.mark.parametrize(
    "text",
    [
        "ComfyUI answers on http://127.0.0.1:8188, after 3 s.",
        "http://[::1]:80/x and somebody@example.org",
        "git clone ssh://git@github.com/a/b.git && cd b",
        "hf://org/repo/file@revision",
        "https://civitai.com/models/1?modelVersionId=2&type=Model",
        'sed -E "s/a=b/c/" && TOKEN=x pip install "a>=1"',
        "sqlite:////tmp/comfyui.db",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert masked(text) == text


_part = st.text("abcXYZ019-_.~%$!*+,;=", min_size=1, max_size=20)


@given(_part, st.none() | _part, st.text(max_size=30), st.text(max_size=30))
def test_a_login_never_stays(user: str, password: str | None, before: str, after: str) -> None:
    login = user if password is None else f"{user}:{password}"
    text = masked(f"{before}https://{login}@example.org/x {after}")
    assert "https://***@example.org/x" in text


def test_all_parts_of_a_finding_and_of_a_jobs_error_are_masked() -> None:
    address = f"https://me:{SECRET}@h/x"
    details = {"lines": [address, (address,)], address: {"deep": address}, "count": 1}
    told = error("a.b", address, address, **details)
    assert SECRET not in repr(told) and told.details["count"] == 1
    failed = JobError("a.b", address, address, **details)
    assert SECRET not in f"{failed} {failed!r} {failed.message} {failed.fix} {failed.details}"
    assert masked_data(("a", 1, None, [address])) == ("a", 1, None, ["https://***@h/x"])


def test_settings_are_told_without_what_their_texts_hold() -> None:
    address = f"https://me:{SECRET}@h/x"
    env = {"MODELS_MANIFEST": f'{{"models": [{{"url": "{address}"}}]}}', "HF_ENDPOINT": address}
    settings, problems = Settings.from_env({**env, "BUCKET_ENDPOINT_URL": "x" * 60 + address})
    assert settings.models_manifest and SECRET in settings.models_manifest
    assert problems
    assert SECRET[:5] not in repr([settings.masked(), problems])


def test_the_log_is_masked(capfd: pytest.CaptureFixture[str]) -> None:
    say(f"from https://me:{SECRET}@h/x")
    assert capfd.readouterr().err == "[worker] from https://***@h/x\n"
