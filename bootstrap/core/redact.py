"""Pure: removes secrets from texts. Findings, job errors, facts and the log pass through here,
whatever they quote: a requirement, a line of pip or ComfyUI, an exception. In an address a login is
before the host (`https://user:token@host/`), a signature or a token in the query. Elsewhere a token
is recognised by a header's name or its own prefix. A bare Civitai key is not: it is 32 hexadecimal
digits, like many hashes. Children do not get secrets in their environment either.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

MASK = "***"
#: The login in an address. `git@` alone is the usual SSH user.
LOGIN = re.compile(r"""(?<=://)(?!git@)[^/?#\s"<>]*@""")
# A login that was cut off before its host; after a host it would be a port.
_TORN_LOGIN = re.compile(
    r"""(?<=://)[^/?#\s"'<>@:\[]+:(?!\d{1,5}(?:[\s"'<>.,;)]|$))[^/?#\s"'<>@]+(?=[\s"'<>]|$)"""
)
_TELLING_NAME = (
    r"[\w.%~-]{0,40}(?:token|secret|signature|passw|credential|api_?key|access_?key|auth)"
    r"[\w.%~-]{0,40}|sig|key|pass|pwd|policy"
)
_SECRET_FIELD = re.compile(rf"""(?<=[?&;])({_TELLING_NAME})=[^\s&"'<>]+""", re.IGNORECASE)
# Unknown names count if the value is long: signatures have 32 characters or more.
_LONG_FIELD = re.compile(r"(?<=[?&;])([\w.%~-]{1,80})=[\w.%~+/=-]{32,}")
# A header as curl, a dict, JSON within JSON, or pairs of bytes show it. After a scheme everything
# is secret except a plain word (`Authorization: Bearer required`) and a placeholder (`$TOKEN`).
_AUTHORIZATION = re.compile(
    r"""(authorization (?:\\*["']\s*[:,=] | \s*[:=]) \s* (?:b?\\*["'])?
        (?:bearer|token|basic|apikey) \s+)
        (?![$<{*] | [a-z]{1,15}[.,;:)]*(?:\s|$)) [^\s"'\\]*[^\s"'\\,;)\]}]""",
    re.IGNORECASE | re.VERBOSE,
)
# Without a known scheme, or without the header's name, it must look like a token.
_BEARER = re.compile(
    r"""((?:authorization (?:\\*["']\s*[:,=] | \s*[:=]) \s* (?:b?\\*["'])? (?:[a-z][\w-]{1,20}\s+)?)
        | \bbearer \s+) (?=[\w.~+/-]*\d) [\w.~+/-]{20,}=*""",
    re.IGNORECASE | re.VERBOSE,
)
# Of Hugging Face, Runpod and Comfy.org.
_SHAPED = re.compile(
    r"(?<![A-Za-z0-9])(?:(hf_|api_org_|rpa_)[A-Za-z0-9]{30,}|(comfyui-)[0-9a-f]{64})"
)
# Secrets by their usual names; those that nodes need are listed in COMFYUI_ENV_PASS.
_SECRET_NAME = re.compile(
    r"TOKEN(?!IZ)|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY"
    r"|(^|_)(AUTH|KEY|PASS|PAT)(_|$)|_PWD$|^RUNPOD_|^AWS_|^BUCKET_",
    re.IGNORECASE,
)
# An address of a package index can hold a password, whatever the variable is called.
_INDEX_NAME = re.compile(r"^(PIP|UV)_")
# The worker's own Python must not leak into ComfyUI's; without bytecode each start would compile
# everything.
_PYTHON_NAMES = frozenset(
    "PYTHONPATH PYTHONHOME PYTHONSTARTUP PYTHONDONTWRITEBYTECODE PYTHONPYCACHEPREFIX "
    "VIRTUAL_ENV __PYVENV_LAUNCHER__".split()
)


def masked(text: str) -> str:
    """The text with `***` for logins, tokens and signatures in it."""
    if "://" in text:
        text = _TORN_LOGIN.sub(MASK, LOGIN.sub(f"{MASK}@", text))
    if "=" in text:
        text = _LONG_FIELD.sub(rf"\1={MASK}", _SECRET_FIELD.sub(rf"\1={MASK}", text))
    lower = text.lower()
    if "authorization" in lower or "bearer" in lower:
        text = _BEARER.sub(rf"\1{MASK}", _AUTHORIZATION.sub(rf"\1{MASK}", text))
    return _SHAPED.sub(rf"\1\2{MASK}", text)


def masked_data(value: Any) -> Any:
    """JSON-ready data with every text in it masked, keys as well."""
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, Mapping):
        return {masked_data(key): masked_data(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(masked_data, value))
    return value


class Secret:
    """A string that prints as `***`; `reveal()` returns it."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The secret itself, for the place that needs it."""
        return self._text

    def __repr__(self) -> str:
        return "Secret(***)"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)


def child_environment(
    env: Mapping[str, str], passed: Iterable[str], python: Path
) -> dict[str, str]:
    """The environment for a child that runs `python`, mainly ComfyUI: no secrets except those in
    `passed`, nothing of our own Python."""
    allowed = frozenset(passed)
    child = {
        name: value
        for name, value in env.items()
        if name not in _PYTHON_NAMES and (name in allowed or not _is_secret(name, value))
    }
    child["PATH"] = f"{python.parent}:{env.get('PATH', '/usr/bin:/bin')}"
    child["PYTHONUNBUFFERED"] = "1"
    return child


def withheld(env: Mapping[str, str], passed: Iterable[str]) -> list[str]:
    """Names of the secrets that `child_environment` keeps from the child."""
    allowed = frozenset(passed)
    return sorted(n for n, value in env.items() if n not in allowed and _is_secret(n, value))


def _is_secret(name: str, value: str) -> bool:
    index = _INDEX_NAME.match(name) and LOGIN.search(value)
    return bool(_SECRET_NAME.search(name) or index)
