"""Names and values of variables: wrong case, Hugging Face's switches, settings that contradict each
other. Tokens, allocators and what is Runpod's have modules of their own."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from bootstrap.checks.tokens import token_names
from bootstrap.config import Settings, is_on, variables
from bootstrap.config.bucket import missing_variables
from bootstrap.core.findings import Finding, info, warning
from bootstrap.core.text import IN_ENDPOINT
from bootstrap.facts.machine import MachineFacts

# Variables of others that matter here, so that a wrong case can be told.
_FOREIGN = frozenset(
    [
        "PYTORCH_CUDA_ALLOC_CONF",
        "PYTORCH_ALLOC_CONF",
        "MALLOC_ARENA_MAX",
        "LD_PRELOAD",
        "CUDA_VISIBLE_DEVICES",
        "NVIDIA_VISIBLE_DEVICES",
        "HF_HOME",
        "HF_ENDPOINT",
        "HF_HUB_OFFLINE",
        "HF_HUB_CACHE",
        "RUNPOD_INIT_TIMEOUT",
        "RUNPOD_SKIP_GPU_CHECK",
        "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS",
        "RUNPOD_LOG_LEVEL",
    ]
)
# A name this like one of ours was meant to be it: one letter more, less or other.
_NEAR = 0.93

CODES = {
    "env.name_case": "A variable's name is in the wrong case, so it is not read.",
    "env.name_near": "A variable's name is almost that of a setting.",
    "env.hf_offline": "Hugging Face's libraries are told to stay offline.",
    "env.hf_endpoint": "HF_ENDPOINT is no https address.",
    "env.hf_transfer": "HF_HUB_ENABLE_HF_TRANSFER has no effect any more.",
    "env.gpu_contradiction": "GPU=required and --cpu contradict each other.",
    "env.bucket_incomplete": "Of a bucket's variables only some are set.",
}


def check_environment(
    facts: MachineFacts, settings: Settings, env: Mapping[str, str]
) -> list[Finding]:
    """Findings about variables' names, HF_* and contradictions among settings."""
    return [
        *_names(env),
        *_hugging_face(env),
        *_gpu_contradiction(settings),
        *_bucket(settings),
    ]


def _names(env: Mapping[str, str]) -> list[Finding]:
    ours = [n for v in variables().values() for n in (v.name, *v.aliases)]
    # Aliases such as civitai_token beside CIVITAI_TOKEN: capitals are what is suggested.
    known = sorted({*ours, *token_names(), *_FOREIGN}, reverse=True)
    by_folded = {name.casefold(): name for name in known}
    found = []
    for name in sorted(set(env) - set(known)):
        right = by_folded.get(name.casefold())
        if right:
            found.append(_misnamed("case", name, right, "variables are read by exact case"))
            continue
        near = difflib.get_close_matches(name, ours, n=1, cutoff=_NEAR)
        if near:
            found.append(_misnamed("near", name, near[0], "nothing reads that name"))
    return found


def _misnamed(kind: str, name: str, right: str, why: str) -> Finding:
    return warning(
        f"env.name_{kind}",
        f"{name[:80]} is set, but {right} is what is read ({why}).",
        f"Rename {name[:80]} to {right} {IN_ENDPOINT}.",
        name=name[:80],
        right=right,
    )


def _hugging_face(env: Mapping[str, str]) -> list[Finding]:
    return [*_offline(env), *_endpoint(env), *_transfer(env)]


def _offline(env: Mapping[str, str]) -> list[Finding]:
    return [
        warning(
            "env.hf_offline",
            f"{name} is on: nodes that fetch models from Hugging Face themselves will fail unless "
            "these are in its cache.",
            f"Remove {name} {IN_ENDPOINT}, unless that is intended.",
            name=name,
        )
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
        if is_on(env, name)
    ]


def _endpoint(env: Mapping[str, str]) -> list[Finding]:
    endpoint = env.get("HF_ENDPOINT", "").strip()
    if not endpoint or endpoint.lower().startswith("https://"):
        return []
    return [
        warning(
            "env.hf_endpoint",
            "HF_ENDPOINT does not start with https://: downloads fail, or HF_TOKEN travels "
            "unencrypted.",
            f"Remove HF_ENDPOINT {IN_ENDPOINT}, or set it to an https:// address.",
        )
    ]


def _transfer(env: Mapping[str, str]) -> list[Finding]:
    if not is_on(env, "HF_HUB_ENABLE_HF_TRANSFER"):
        return []
    return [
        info(
            "env.hf_transfer",
            "HF_HUB_ENABLE_HF_TRANSFER has no effect since huggingface_hub 1.0, and older ones "
            "raise without the package hf_transfer. This worker's own downloads need neither.",
            f"Remove it {IN_ENDPOINT}; for nodes' own downloads HF_XET_HIGH_PERFORMANCE=1 took its "
            "place.",
        )
    ]


def _gpu_contradiction(settings: Settings) -> list[Finding]:
    if settings.gpu != "required" or "--cpu" not in settings.comfyui_args:
        return []
    return [
        warning(
            "env.gpu_contradiction",
            "GPU=required says there must be a GPU, but --cpu in COMFYUI_ARGS keeps ComfyUI from "
            "using it.",
            f"Remove one of them {IN_ENDPOINT}.",
        )
    ]


def _bucket(settings: Settings) -> list[Finding]:
    lacking = missing_variables(settings)
    if not lacking:
        return []
    return [
        warning(
            "env.bucket_incomplete",
            f"A bucket for results is set without {', '.join(lacking)}: nothing is uploaded.",
            f"Set {', '.join(lacking)} {IN_ENDPOINT}, or remove the other BUCKET_ variables.",
            missing=lacking,
        )
    ]
