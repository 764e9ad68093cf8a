"""Settings against what Runpod itself does: how long it waits, how much it takes, and the variables
by which it tells a worker where jobs are."""

from __future__ import annotations

from collections.abc import Mapping

from bootstrap.config import Settings, is_on
from bootstrap.core.findings import Finding, info, warning
from bootstrap.core.text import IN_ENDPOINT
from bootstrap.facts.machine import MachineFacts

# Runpod calls a worker unhealthy after 7 minutes (RUNPOD_INIT_TIMEOUT, seconds).
RUNPOD_INIT_TIMEOUT = 420.0
# Between ComfyUI being given up and the worker saying so: log tail, findings, fitness report.
BOOT_MARGIN = 15.0
# Runpod refuses larger results (/run 10 MB, /runsync 20 MB) and the client gets none.
LARGEST_REPLY_MB = 20.0
LARGEST_REQUEST_MB = 20.0

CODES = {
    "env.boot_timeout_long": "ComfyUI may take longer to start than Runpod waits.",
    "env.init_timeout_value": "RUNPOD_INIT_TIMEOUT is not a positive number of seconds.",
    "env.reply_limit": "MAX_REPLY_MB is above what Runpod accepts.",
    "env.request_limit": "MAX_REQUEST_MB is above what Runpod accepts.",
    "env.runpod_webhook": "Runpod's job addresses are incomplete.",
    "env.private_downloads": "Downloads from private addresses are allowed.",
}


def check_runpod(facts: MachineFacts, settings: Settings, env: Mapping[str, str]) -> list[Finding]:
    """Findings about timeouts, sizes and RUNPOD_*."""
    return [*_boot_timeout(settings, env), *_sizes(settings), *_own_variables(env)]


def _boot_timeout(settings: Settings, env: Mapping[str, str]) -> list[Finding]:
    text = env.get("RUNPOD_INIT_TIMEOUT", "").strip()
    if not text.isdigit() or int(text) == 0:
        if text:
            return [
                warning(
                    "env.init_timeout_value",
                    f"RUNPOD_INIT_TIMEOUT is {text[:40]!r}, not a whole number of seconds above 0.",
                    f"Set RUNPOD_INIT_TIMEOUT=420 {IN_ENDPOINT}, or remove it.",
                )
            ]
        patience, whose = RUNPOD_INIT_TIMEOUT, "Runpod waits 420 s by default"
    else:
        patience, whose = float(text), f"RUNPOD_INIT_TIMEOUT is {text}"
    if settings.boot_timeout + BOOT_MARGIN <= patience:
        return []
    longer = int(settings.boot_timeout + 2 * BOOT_MARGIN)
    return [
        warning(
            "env.boot_timeout_long",
            f"BOOT_TIMEOUT is {settings.boot_timeout:g} s, but {whose}: a slow start is ended from "
            "outside before this worker can say why.",
            f"Set RUNPOD_INIT_TIMEOUT={longer} {IN_ENDPOINT}, or lower BOOT_TIMEOUT to "
            f"{max(int(patience - 2 * BOOT_MARGIN), 1)}.",
            boot_timeout=settings.boot_timeout,
            init_timeout=patience,
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
