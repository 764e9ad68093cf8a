"""What a check found: a stable code, a sentence with the facts, and a fix one can type or click."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from bootstrap.core.redact import masked, masked_data


class Severity(str, Enum):
    """How much a finding matters, from good news to a fault that keeps jobs from running."""

    OK = "ok"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"

    @property
    def rank(self) -> int:
        """Position in the order ok < info < warning < error, from 0."""
        return list(Severity).index(self)


# First word of a code -> its section's heading; "Other" by default.
SECTIONS: Mapping[str, tuple[str, ...]] = {
    "Volume": ("volume", "links", "throughput"),
    "Models": ("models", "manifest"),
    "ComfyUI": ("comfyui", "python", "packages", "nodes"),
    "Machine": ("gpu", "memory", "disk", "machine", "host"),
    "Environment": ("env", "settings", "allocator", "tokens"),
}
OTHER = "Other"
_SECTION_OF = {family: name for name, families in SECTIONS.items() for family in families}


# The documentation's address, as pyproject.toml has it.
DOCS = "https://comfyui-volume-worker.github.io/comfyui-volume-worker"


def docs_url(code: str) -> str:
    """The page that explains a code."""
    return f"{DOCS}/troubleshooting/#{code}"


def section_of(code: str) -> str:
    """The heading of a code's section."""
    return _SECTION_OF.get(code.partition(".")[0], OTHER)


class Outcome(str, Enum):
    """The outcome of a boot; see `outcome_of`."""

    READY = "ready"
    DEGRADED = "degraded"
    UNFIT = "unfit"


@dataclass(frozen=True)
class Finding:
    """One finding. `code` is stable across releases (`family.what`), `message` one sentence with
    the actual values and paths, `fix` what to type or click next (empty where there is nothing to
    fix). `host_fault` marks an error of this machine, not of the user: Runpod should use another
    one. `details` is JSON-ready data for programs. Secrets in addresses are masked in all of them.
    """

    code: str
    severity: Severity
    message: str
    fix: str = ""
    host_fault: bool = False
    details: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", masked(self.message))
        object.__setattr__(self, "fix", masked(self.fix))
        object.__setattr__(self, "details", masked_data(self.details))

    def as_dict(self) -> dict[str, Any]:
        """The finding as JSON-ready data; empty fields are left out. `docs` is where its code is
        explained."""
        data: dict[str, Any] = {
            "code": self.code,
            "severity": self.severity.value,
            "message": self.message,
        }
        if self.fix:
            data["fix"] = self.fix
            data["docs"] = docs_url(self.code)
        if self.host_fault:
            data["host_fault"] = True
        if self.details:
            data["details"] = dict(self.details)
        return data


class Fault(Exception):
    """A finding as an exception: a stable `code`, a sentence, a fix, and `details` for programs.
    Rooms subclass it where a caller acts on the difference."""

    def __init__(self, code: str, message: str, fix: str = "", /, **details: Any) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.fix = fix
        self.details: Mapping[str, Any] = details

    def finding(
        self, about: str = "", severity: Severity = Severity.ERROR, /, **more: Any
    ) -> Finding:
        """The fault as a finding; `about` is put before its sentence, `more` are further
        details."""
        message = f"{about}: {self.message}" if about else self.message
        return Finding(self.code, severity, message, self.fix, details={**self.details, **more})


def error(code: str, message: str, fix: str, /, **details: Any) -> Finding:
    """A fault the user must fix before jobs can run."""
    return Finding(code, Severity.ERROR, message, fix, details=details)


def host_error(code: str, message: str, fix: str, /, **details: Any) -> Finding:
    """A fault of this machine: another worker may be fine."""
    return Finding(code, Severity.ERROR, message, fix, host_fault=True, details=details)


def warning(code: str, message: str, fix: str, /, **details: Any) -> Finding:
    """Jobs run, but this needs attention."""
    return Finding(code, Severity.WARNING, message, fix, details=details)


def info(code: str, message: str, fix: str = "", /, **details: Any) -> Finding:
    """Worth knowing; nothing to fix."""
    return Finding(code, Severity.INFO, message, fix, details=details)


def ok(code: str, message: str, /, **details: Any) -> Finding:
    """Checked and fine."""
    return Finding(code, Severity.OK, message, details=details)


def errors_in(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The findings that keep jobs from running."""
    return tuple(f for f in findings if f.severity is Severity.ERROR)


def unexpected(code: str, what: str, fault: BaseException, /, **details: Any) -> Finding:
    """An error: `what` failed with an exception that only a bug in this program can raise. What it
    would have found is unknown, so nothing counts as fine."""
    return error(
        code,
        f"{what} failed: {type(fault).__name__}: {fault}.",
        "This is a bug in this program: please report it with that message. The rest is valid.",
        **details,
    )


def outcome_of(findings: Iterable[Finding]) -> Outcome:
    """Ready, degraded (the user must fix something) or unfit (this machine is broken)."""
    errors = errors_in(findings)
    if any(f.host_fault for f in errors):
        return Outcome.UNFIT
    return Outcome.DEGRADED if errors else Outcome.READY


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """Findings by falling severity; equal ones keep their order."""
    return sorted(findings, key=lambda f: -f.severity.rank)
