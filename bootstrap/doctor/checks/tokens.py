"""Tokens in the environment: blank, quoted, with spaces, or not what they seem.

No finding contains a token, a part of one, or its length: names only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from bootstrap.config import Settings, is_template, variables
from bootstrap.core.findings import Finding, warning
from bootstrap.core.text import IN_ENDPOINT
from bootstrap.doctor.facts.machine import MachineFacts

_KNOWN = (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "CIVITAI_TOKEN",
    "civitai_token",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "BUCKET_ACCESS_KEY_ID",
    "BUCKET_SECRET_ACCESS_KEY",
    "RUNPOD_API_KEY",
    "COMFY_ORG_API_KEY",
)
# Two names for one token: with different values one of them silently loses.
_SAME = (("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"), ("CIVITAI_TOKEN", "civitai_token"))
# Names of other tools, which the relevant libraries do not read.
_OTHER_NAMES = {
    "HF_API_KEY": "HF_TOKEN",
    "HF_API_TOKEN": "HF_TOKEN",
    "HUGGINGFACE_TOKEN": "HF_TOKEN",
    "HUGGINGFACE_API_KEY": "HF_TOKEN",
    "HUGGING_FACE_TOKEN": "HF_TOKEN",
    "CIVITAI_API_KEY": "CIVITAI_TOKEN",
    "CIVITAI_API_TOKEN": "CIVITAI_TOKEN",
    "CIVITAI_KEY": "CIVITAI_TOKEN",
}
_QUOTES = "\"'`\u201c\u201d\u2018\u2019"
_PLACEHOLDER = re.compile(
    r"<.*>|\$\{?\w+\}?|x{3,}|\*{3,}|hf_x{3,}|change_?me|(your|my)[-_ ].*|todo|none|null|undefined",
    re.IGNORECASE,
)

CODES = {
    "env.token_blank": "A token's variable is set but blank",
    "env.token_quoted": "A token has quotation marks around it, which become part of it",
    "env.token_space": "A token has white space in it or around it",
    "env.token_unresolved": "A Runpod secret was not filled in: the template text is still there",
    "env.token_placeholder": "A token is an example's placeholder",
    "env.token_prefix": "A token starts with `Bearer` or with its variable's name",
    "env.token_shape": "`HF_TOKEN` does not look like a Hugging Face token",
    "env.token_conflict": "Two names of the same token have different values",
    "env.token_other_name": "A token is set under a name that is not read",
}


def check_tokens(facts: MachineFacts, settings: Settings, env: Mapping[str, str]) -> list[Finding]:
    """Findings about tokens, each naming the variable and never its value."""
    found = [f for name in _names(env) for f in _token(name, env[name])]
    return [*found, *_conflicts(env), *_other_names(env)]


def token_names() -> frozenset[str]:
    """Every name under which this project or related programs look for a secret."""
    declared = {n for v in variables().values() if v.kind.secret for n in (v.name, *v.aliases)}
    return frozenset(declared | set(_KNOWN))


def _names(env: Mapping[str, str]) -> list[str]:
    """The names that are set, except those whose value the settings already refuse."""
    refused = {v.refused(env) for v in variables().values() if v.kind.secret}
    return sorted(name for name in token_names() if name in env and name not in refused)


def _token(name: str, value: str) -> Iterator[Finding]:
    text = value.strip()
    if not text:
        yield _finding("blank", name, "is set but blank", "Give it a value, or remove it")
        return
    bare = text.strip(_QUOTES)
    if bare != text:
        yield _finding(
            "quoted",
            name,
            "has quotation marks in it, which Runpod passes on as part of the token",
            "Enter it again without quotation marks",
        )
    elif _spaced(value):
        yield _finding(
            "space",
            name,
            "has white space or a line break in it or around it",
            "Paste it again without any",
        )
    yield from _contents(name, bare.strip())


def _spaced(value: str) -> bool:
    """White space in a token; templates and `Bearer …` are other findings."""
    reported = value.startswith("{{") or value.lower().startswith("bearer ")
    return not reported and any(c.isspace() or not c.isprintable() for c in value)


def _contents(name: str, text: str) -> Iterator[Finding]:
    """At most one finding about the token's contents; `text` without quotes."""
    if is_template(text):
        yield _finding(
            "unresolved",
            name,
            "is still the template of a Runpod secret, as there is no secret of that name",
            "Create a secret with exactly the name after RUNPOD_SECRET_ (console.runpod.io > "
            "Secrets) and start new workers, or correct the name",
        )
    elif text.lower().startswith(("bearer ", f"{name.lower()}=")):
        yield _finding(
            "prefix",
            name,
            "starts with `Bearer` or with its own name",
            "Enter the token alone",
        )
    elif _PLACEHOLDER.fullmatch(text):
        yield _finding("placeholder", name, "is a placeholder", "Put a real token in, or remove it")
    elif name in _SAME[0] and text and not text.startswith(("hf_", "api_org_")):
        yield _finding(
            "shape",
            name,
            "does not start with hf_, as tokens of Hugging Face do",
            "Create one on huggingface.co > Settings > Access Tokens (type Read) and set it",
        )


def _finding(kind: str, name: str, wrong: str, do: str) -> Finding:
    return warning(
        f"env.token_{kind}", f"{name} {wrong}.", f"{do} ({name}, {IN_ENDPOINT}).", name=name
    )


def _conflicts(env: Mapping[str, str]) -> list[Finding]:
    return [
        warning(
            "env.token_conflict",
            f"{first} and {second} are both set, to different values; only one of them is used.",
            f"Remove {second} {IN_ENDPOINT}.",
            names=[first, second],
        )
        for first, second in _SAME
        if env.get(first, "").strip()
        and env.get(second, "").strip()
        and env[first].strip() != env[second].strip()
    ]


def _other_names(env: Mapping[str, str]) -> list[Finding]:
    declared = {n for v in variables().values() for n in (v.name, *v.aliases)}
    return [
        warning(
            "env.token_other_name",
            f"{other} is set, but nothing here reads it; {name} is what counts.",
            f"Rename {other} to {name} {IN_ENDPOINT}.",
            name=other,
        )
        for other, name in _OTHER_NAMES.items()
        if env.get(other, "").strip() and not env.get(name, "").strip() and other not in declared
    ]
