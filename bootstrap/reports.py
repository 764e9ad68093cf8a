"""What an examination and a boot come to: frozen results, rendered elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

from bootstrap.core.findings import Finding, Outcome, Severity
from bootstrap.facts.everything import Facts
from bootstrap.timeline import Stage


@dataclass(frozen=True)
class Report:
    """What an examination came to; `at` is when (ISO 8601, UTC), `seconds` how long it took."""

    findings: tuple[Finding, ...]
    facts: Facts
    at: str
    seconds: float

    @property
    def status(self) -> str:
        """`error`, `warning` or `ok`: the worst of the findings (information is ok)."""
        worst = max((f.severity.rank for f in self.findings), default=0)
        if worst == Severity.ERROR.rank:
            return "error"
        return "warning" if worst == Severity.WARNING.rank else "ok"


@dataclass(frozen=True)
class BootReport:
    """What a boot came to, as it was when it ended.

    `findings` decide the outcome; `noticed` is what else the doctor found, which does not.
    """

    outcome: Outcome
    findings: tuple[Finding, ...]
    noticed: tuple[Finding, ...]
    timeline: tuple[Stage, ...]
    seconds: float
