"""Names and values of variables, and contradictions among settings and with Runpod's limits. Tokens
and allocators have their own modules.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping

from bootstrap.config import Settings, is_on, variables
from bootstrap.config.bucket import has_no_name, missing_variables, month_name
from bootstrap.core.findings import Finding, info, warning
from bootstrap.core.text import IN_ENDPOINT, whole
from bootstrap.doctor.checks.tokens import token_names
from bootstrap.doctor.facts.machine import MachineFacts

# Runpod calls a worker unhealthy after 7 minutes (RUNPOD_INIT_TIMEOUT, seconds).
RUNPOD_INIT_TIMEOUT = 420.0
# Between giving up on ComfyUI and the worker reporting it: log tail, findings, fitness report.
BOOT_MARGIN = 15.0
# Runpod refuses larger results (/run 10 MB, /runsync 20 MB), and the client gets nothing.
LARGEST_REPLY_MB = 20.0
LARGEST_REQUEST_MB = 20.0
CODES = {
    "env.boot_timeout_long": "ComfyUI may take longer to start than Runpod waits",
    "env.init_timeout_value": "`RUNPOD_INIT_TIMEOUT` is not a positive number of seconds",
    "env.reply_limit": "`MAX_REPLY_MB` is above what Runpod accepts",
    "env.request_limit": "`MAX_REQUEST_MB` is above what Runpod accepts",
    "env.runpod_webhook": "Runpod's addresses for jobs and results are incomplete",
    "env.private_downloads": "Downloads from private addresses are allowed",
    "env.name_case": "A variable's name has the wrong case, so it is not read",
    "env.name_near": "A variable's name is close to that of a setting",
    "env.hf_offline": "Hugging Face's libraries are set to offline mode",
    "env.hf_endpoint": "`HF_ENDPOINT` is not an https address",
    "env.hf_transfer": "`HF_HUB_ENABLE_HF_TRANSFER` no longer has any effect",
    "env.gpu_contradiction": "`GPU=required` and `--cpu` contradict each other",
    "env.not_read": "A variable of worker-comfyui has no effect here",
    "env.bucket_incomplete": "Only some of a bucket's variables are set",
    "env.bucket_by_month": "No setting names the bucket, so results go to that of the month",
}
# Other programs' variables that matter here, to find wrong case.
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
        "RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS",
        "RUNPOD_INIT_TIMEOUT",
        "RUNPOD_SKIP_GPU_CHECK",
        "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS",
        "RUNPOD_LOG_LEVEL",
    ]
)
# worker-comfyui's, with what to do here.
_NOT_READ = {
    "SERVE_API_LOCALLY": "Start the container with `/worker/.venv/bin/python -m handler "
    "--rp_serve_api --rp_api_host 0.0.0.0`, and remove it",
    "NETWORK_VOLUME_DEBUG": 'The boot report and {"type": "diagnostics"} always tell; remove it',
    "COMFY_API_AVAILABLE_INTERVAL_MS": "Remove it; BOOT_TIMEOUT is how long ComfyUI may take",
    "COMFY_API_AVAILABLE_MAX_RETRIES": "Remove it; BOOT_TIMEOUT is how long ComfyUI may take",
    "WEBSOCKET_RECONNECT_ATTEMPTS": "Remove it; a broken socket costs no job here",
    "WEBSOCKET_RECONNECT_DELAY_S": "Remove it; a broken socket costs no job here",
    "WEBSOCKET_TRACE": "Remove it; COMFY_LOG_LEVEL=DEBUG shows what ComfyUI does",
}
# A name this similar to one of ours is a typo: letters swapped, changed or missing.
_NEAR = 0.87


def check_runpod(facts: MachineFacts, settings: Settings, env: Mapping[str, str]) -> list[Finding]:
    """Findings about timeouts, sizes and RUNPOD_*."""
    return [*_boot_timeout(settings, env), *_sizes(settings), *_own_variables(env)]


def _boot_timeout(settings: Settings, env: Mapping[str, str]) -> list[Finding]:
    text = env.get("RUNPOD_INIT_TIMEOUT", "").strip()
    if not whole(text):
        if text:
            return [
                warning(
                    "env.init_timeout_value",
                    f"RUNPOD_INIT_TIMEOUT is {text[:40]!r}, not a whole number of seconds above 0.",
                    f"Set RUNPOD_INIT_TIMEOUT=420 {IN_ENDPOINT}, or remove it.",
                )
            ]
        limit, whose = RUNPOD_INIT_TIMEOUT, "Runpod waits 420 s by default"
    else:
        limit, whose = float(text), f"RUNPOD_INIT_TIMEOUT is {text}"
    if settings.boot_timeout + BOOT_MARGIN <= limit:
        return []
    longer = int(settings.boot_timeout + 2 * BOOT_MARGIN)
    return [
        warning(
            "env.boot_timeout_long",
            f"BOOT_TIMEOUT is {settings.boot_timeout:g} s, but {whose}: a slow start is ended from "
            "outside before this worker can say why.",
            f"Set RUNPOD_INIT_TIMEOUT={longer} {IN_ENDPOINT}, or lower BOOT_TIMEOUT to "
            f"{max(int(limit - 2 * BOOT_MARGIN), 1)}.",
            boot_timeout=settings.boot_timeout,
            init_timeout=limit,
        )
    ]


def _sizes(settings: Settings) -> list[Finding]:
    found = []
    if settings.max_reply_mb > LARGEST_REPLY_MB:
        found.append(
            warning(
                "env.reply_limit",
                f"MAX_REPLY_MB is {settings.max_reply_mb:g}; Runpod drops results above 20 MB "
                "(10 MB of /run), and the caller sees COMPLETED without output.",
                f"Set MAX_REPLY_MB to 10, or 20 if all jobs come by /runsync, {IN_ENDPOINT}.",
            )
        )
    if settings.max_request_mb > LARGEST_REQUEST_MB:
        found.append(
            info(
                "env.request_limit",
                f"MAX_REQUEST_MB is {settings.max_request_mb:g}, but Runpod itself refuses "
                "requests above 20 MB (10 MB of /run).",
                "Send larger inputs by URL.",
            )
        )
    return found


def _own_variables(env: Mapping[str, str]) -> list[Finding]:
    found = []
    take = env.get("RUNPOD_WEBHOOK_GET_JOB", "")
    done = env.get("RUNPOD_WEBHOOK_POST_OUTPUT", "")
    # The SDK appends `&…` to both, so each needs a `?` already (read in its source, 1.12).
    if bool(take) != bool(done) or any("?" not in url for url in (take, done) if url):
        found.append(
            warning(
                "env.runpod_webhook",
                "RUNPOD_WEBHOOK_GET_JOB and RUNPOD_WEBHOOK_POST_OUTPUT must both be set, each with "
                "a `?` in it, or jobs are not fetched or their results not delivered.",
                "Runpod sets both: remove your own ones from the endpoint's environment variables. "
                "To try the worker without Runpod, unset both.",
            )
        )
    if is_on(env, "RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS"):
        found.append(
            warning(
                "env.private_downloads",
                "RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS is on: callers can make this worker fetch from "
                "addresses inside its network.",
                f"Remove it {IN_ENDPOINT}, unless this is a test.",
            )
        )
    return found


def check_environment(
    facts: MachineFacts, settings: Settings, env: Mapping[str, str]
) -> list[Finding]:
    """Findings about variables' names, HF_* and contradictions among settings."""
    return [
        *_names(env),
        *_not_read(env),
        *_hugging_face(env),
        *_gpu_contradiction(settings),
        *_bucket(settings),
    ]


def _names(env: Mapping[str, str]) -> list[Finding]:
    ours = [n for v in variables().values() for n in (v.name, *v.aliases)]
    # For aliases such as civitai_token and CIVITAI_TOKEN, capitals are suggested.
    known = sorted({*ours, *token_names(), *_FOREIGN}, reverse=True)
    by_folded = {name.casefold(): name for name in known}
    found = []
    for name in sorted(set(env) - set(known)):
        right = by_folded.get(name.casefold())
        if right:
            found.append(_misnamed("case", name, right, "upper and lower case matter"))
            continue
        near = difflib.get_close_matches(name, ours, n=1, cutoff=_NEAR)
        if near:
            found.append(_misnamed("near", name, near[0], "nothing reads it"))
    return found


def _not_read(env: Mapping[str, str]) -> list[Finding]:
    return [
        info(
            "env.not_read",
            f"{name} is set, which worker-comfyui reads and this worker does not.",
            f"{instead} {IN_ENDPOINT}.",
            name=name,
        )
        for name, instead in _NOT_READ.items()
        if env.get(name, "").strip()
    ]


def _misnamed(kind: str, name: str, right: str, why: str) -> Finding:
    return warning(
        f"env.name_{kind}",
        f"{name[:80]} is set, but {why}. Did you mean {right}?",
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


def _endpoint(env: Mapping[str, str]) -> Iterator[Finding]:
    endpoint = env.get("HF_ENDPOINT", "").strip()
    if not endpoint or endpoint.lower().startswith("https://"):
        return
    yield warning(
        "env.hf_endpoint",
        "HF_ENDPOINT does not start with https://: downloads fail, or HF_TOKEN travels "
        "unencrypted.",
        f"Remove HF_ENDPOINT {IN_ENDPOINT}, or set it to an https:// address.",
    )


def _transfer(env: Mapping[str, str]) -> Iterator[Finding]:
    if not is_on(env, "HF_HUB_ENABLE_HF_TRANSFER"):
        return
    yield info(
        "env.hf_transfer",
        "HF_HUB_ENABLE_HF_TRANSFER has no effect since huggingface_hub 1.0, and older ones "
        "raise without the package hf_transfer. This worker's own downloads need neither.",
        f"Remove it {IN_ENDPOINT}; for nodes' own downloads HF_XET_HIGH_PERFORMANCE=1 took its "
        "place.",
    )


def _gpu_contradiction(settings: Settings) -> Iterator[Finding]:
    if settings.gpu != "required" or "--cpu" not in settings.comfyui_args:
        return
    yield warning(
        "env.gpu_contradiction",
        "GPU=required says there must be a GPU, but --cpu in COMFYUI_ARGS keeps ComfyUI from "
        "using it.",
        f"Remove one of them {IN_ENDPOINT}.",
    )


def _bucket(settings: Settings) -> list[Finding]:
    lacking = missing_variables(settings)
    if not lacking and has_no_name(settings):
        return [
            warning(
                "env.bucket_by_month",
                "Neither BUCKET_NAME nor BUCKET_ENDPOINT_URL names a bucket: as in worker-comfyui "
                f"results go to one that is named after the month, now {month_name()}.",
                f"Set BUCKET_NAME {IN_ENDPOINT}, unless such buckets are there.",
            )
        ]
    if not lacking:
        return []
    return [
        warning(
            "env.bucket_incomplete",
            f"A bucket for results is set without {', '.join(lacking)}: nothing is uploaded, and "
            "each reply says so.",
            f"Set {', '.join(lacking)} {IN_ENDPOINT}, or remove the other BUCKET_ variables.",
            missing=lacking,
        )
    ]
