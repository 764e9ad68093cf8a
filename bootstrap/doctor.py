"""One examination: facts gathered once, every check run on them, findings out."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone

from bootstrap.checks.registry import run_checks
from bootstrap.config import Settings
from bootstrap.facts.everything import Scope, gather
from bootstrap.reports import Report


def examine(
    settings: Settings, env: Mapping[str, str], scope: Scope, node_log: Sequence[str] = ()
) -> Report:
    """Look at everything in `scope` and judge it. Never raises: what fails is a finding.

    `node_log` is what ComfyUI logged while it started, where it has.
    """
    start = time.monotonic()
    facts = gather(settings, env, scope)
    facts.node_log = tuple(node_log)
    findings = [*facts.findings, *run_checks(facts, settings)]
    return Report(
        findings=tuple(findings),
        facts=facts,
        at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        seconds=round(time.monotonic() - start, 3),
    )
