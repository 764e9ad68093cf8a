"""Declared environment variables: how one is told, read, masked and shown in the README's table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bootstrap.core.findings import Finding, error
from bootstrap.core.redact import MASK, Secret, masked
from bootstrap.kinds import Kind

CODES = {"settings.invalid": "An environment variable has a value that is not allowed"}
_ON = ("1", "true", "yes", "on")


@dataclass(frozen=True)
class Variable:
    """One environment variable: its name and aliases, what it means and what it may hold."""

    name: str
    kind: Kind
    meaning: str
    default: str
    aliases: tuple[str, ...] = ()

    def raw(self, env: Mapping[str, str]) -> tuple[str, str] | None:
        """(name, value) of the first spelling that is set and not blank."""
        for name in (self.name, *self.aliases):
            if env.get(name, "").strip():
                return name, env[name].strip()
        return None


def var(name: str, kind: Kind, default: Any, meaning: str, shown: str = "", *aliases: str) -> Any:
    """A dataclass field for one variable; `shown` is its default as the README words it."""
    variable = Variable(name, kind, meaning, shown or _shown(default), aliases)
    return field(default=default, metadata={"variable": variable})


def read_variables(
    declared: Mapping[str, Variable], env: Mapping[str, str]
) -> tuple[dict[str, Any], tuple[Finding, ...]]:
    """The values that `env` sets, by attribute, and a finding for each that is not allowed."""
    values: dict[str, Any] = {}
    findings: list[Finding] = []
    for attribute, variable in declared.items():
        given = variable.raw(env)
        if given is None:
            continue
        name, text = given
        try:
            values[attribute] = variable.kind.parse(text)
        except ValueError as problem:
            findings.append(_wrong(name, text, variable.kind, str(problem)))
    return values, tuple(findings)


def is_on(env: Mapping[str, str], name: str) -> bool:
    """Is a switch of somebody else's on, as Hugging Face's libraries and Runpod's SDK read it?"""
    return env.get(name, "").strip().lower() in _ON


def table_of(declared: Iterable[Variable]) -> str:
    """The variables as a Markdown table: name, meaning, default, allowed values."""
    rows = ["| Variable | Meaning | Default | Allowed |", "|---|---|---|---|"]
    for v in declared:
        names = " or ".join(f"`{name}`" for name in (v.name, *v.aliases))
        rows.append(f"| {names} | {v.meaning} | {v.default} | {v.kind.allowed} |")
    return "\n".join(rows)


def as_data(value: Any) -> Any:
    """A value as JSON-ready data, a secret as `"***"`."""
    if isinstance(value, Secret):
        return MASK
    if isinstance(value, tuple):
        return [as_data(v) for v in value]
    return masked(str(value)) if isinstance(value, (str, Path)) else value


def _shown(default: Any) -> str:
    if default is None or default == ():
        return "–"
    return str(default).lower() if isinstance(default, bool) else str(default)


def _wrong(name: str, text: str, kind: Kind, problem: str) -> Finding:
    shown = MASK if kind.secret else repr(masked(text)[:80])
    why = f" ({problem})" if problem else ""
    return error(
        "settings.invalid",
        f"{name} is {shown}{why}; allowed: {kind.allowed}.",
        f"Set {name} to {kind.allowed}, or remove it to get the default, "
        "in the endpoint's environment variables.",
        name=name,
    )
