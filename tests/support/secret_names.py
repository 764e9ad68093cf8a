"""The variables that tests put a marker into, to look for it where it must not appear."""

from __future__ import annotations

from bootstrap.config import variables


def secret_names() -> list[str]:
    """Every secret setting under each of its names, and Runpod's own."""
    secret = [v for v in variables().values() if v.kind.secret]
    return [
        "RUNPOD_AI_API_KEY",
        "RUNPOD_API_KEY",
        *(name for v in secret for name in (v.name, *v.aliases)),
    ]
