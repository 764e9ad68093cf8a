"""Declared environment variables: how they are parsed, what is allowed, how they are shown."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bootstrap.core.files import is_system_folder
from bootstrap.core.findings import Finding, error
from bootstrap.core.redact import MASK, Secret, masked

CODES = {"settings.invalid": "An environment variable has a value that is not allowed"}
_ON = ("1", "true", "yes", "on")


@dataclass(frozen=True)
class SettingType:
    """A variable's type. `parse` raises ValueError, with the reason if `allowed` does not say
    enough."""

    allowed: str
    parse: Callable[[str], Any]
    secret: bool = False


# Flags that the worker sets: a second value would break it, or open ComfyUI, which has no
# authentication, to the network. `--help` makes ComfyUI print and exit.
OUR_FLAGS = frozenset(
    "--listen --port --output-directory --input-directory --temp-directory --user-directory "
    "--database-url --base-directory --front-end-root --front-end-version --auto-launch "
    "--disable-auto-launch --tls-keyfile --tls-certfile --enable-cors-header "
    "--windows-standalone-build --quick-test-for-ci --multi-user --help".split()
)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:\d{1,5})?")
_BOOLEANS = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}


def _absolute_path(text: str) -> Path:
    if "\0" in text or not text.startswith("/"):
        raise ValueError("not an absolute path")
    return Path("/" + text.lstrip("/"))


def _volume(text: str) -> Path:
    path = _absolute_path(text)
    if is_system_folder(path):
        raise ValueError("it is one of the system's own folders")
    return path


def _path_on_volume(text: str) -> str:
    parts = text.split("/")
    if "\0" in text or text.startswith("/"):
        raise ValueError("it begins at the volume's root, without a slash")
    if ".." in parts:
        raise ValueError("it leads out of the volume")
    return "/".join(part for part in parts if part not in ("", ".")) or "."


def _boolean(text: str) -> bool:
    try:
        return _BOOLEANS[text.lower()]
    except KeyError:
        raise ValueError("") from None


def _text(text: str) -> str:
    if "\0" in text:
        raise ValueError("it holds a NUL")
    return text


def _host(text: str) -> str:
    if not _HOST.fullmatch(text):
        raise ValueError("not a host name")
    return text.lower()


def _hosts(text: str) -> tuple[str, ...]:
    hosts = tuple(part.lower() for part in re.split(r"[,\s]+", text) if part)
    for host in hosts:
        if not _HOST.fullmatch(host.removeprefix("*.")) or ":" in host:
            raise ValueError(f"{host!r} is not a host name")
    return hosts


def _url(text: str) -> str:
    try:
        parts = urlsplit(text)
        complete = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        complete = False
        parts = urlsplit("")
    if not complete or any(ord(c) <= 32 or ord(c) == 127 for c in text):
        raise ValueError("not a web address")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError("it has a login or a query")
    return text.rstrip("/")


def _names(text: str) -> tuple[str, ...]:
    names = tuple(part for part in re.split(r"[,\s]+", text) if part)
    for name in names:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not a variable name")
    return names


def _comfyui_arguments(text: str) -> tuple[str, ...]:
    arguments = tuple(shlex.split(text))
    for argument in arguments:
        _refuse_if_ours(argument.split("=", 1)[0])
    if arguments and not arguments[0].startswith("-"):
        raise ValueError(f"{arguments[0]!r} is not a flag")
    return arguments


def _refuse_if_ours(flag: str) -> None:
    if not flag.startswith("--"):
        if flag.startswith("-h"):
            raise ValueError(f"{flag} prints help and runs nothing")
        return
    meant = _ours_meant_by(flag)
    if flag in meant:
        raise ValueError(f"{flag} is set by the worker itself")
    if meant:
        raise ValueError(f"{flag} can be read as {meant[0]}, which is set by the worker itself")


def _ours_meant_by(flag: str) -> list[str]:
    """argparse accepts any unambiguous prefix of a flag: `--lis` is `--listen`."""
    return sorted(ours for ours in OUR_FLAGS if ours.startswith(flag))


def is_ours(argument: str) -> bool:
    """Is `argument` (`--port`, `--port=1`, `--por`, `-h`) a flag that the worker sets itself?"""
    flag = argument.partition("=")[0]
    return flag.startswith("-h") or (flag.startswith("--") and bool(_ours_meant_by(flag)))


def is_template(text: str) -> bool:
    """Is this an unresolved Runpod secret, because there is none of that name?"""
    return "RUNPOD_SECRET_" in text or ("{{" in text and "}}" in text)


def _secret(text: str) -> Secret | None:
    """None for a template: it counts as not set, and a check reports it."""
    if is_template(text):
        return None
    if any(ord(c) < 33 or ord(c) > 126 for c in text):
        raise ValueError("it has white space or unprintable characters")
    return Secret(text)


def _bucket_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", text):
        raise ValueError("not a name")
    return text


def _bucket_places(text: str) -> tuple[str, ...]:
    places = tuple(part for part in re.split(r"[,\s]+", text) if part)
    for place in places:
        _bucket_name(place.partition("/")[0])
        if ".." in place.split("/"):
            raise ValueError(f"{place!r} climbs")
    return places


def integer(low: int, high: int) -> SettingType:
    """A whole number from `low` to `high`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise ValueError("not a whole number") from None
        if not low <= value <= high:
            raise ValueError("out of range")
        return value

    return SettingType(f"a whole number from {low} to {high}", parse)


def number(low: float, high: float) -> SettingType:
    """A finite number from `low` to `high`."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise ValueError("not a number") from None
        if not (math.isfinite(value) and low <= value <= high):
            raise ValueError("out of range")
        return value

    return SettingType(f"a number from {_written(low)} to {_written(high)}", parse)


def _written(bound: float) -> str:
    return f"{bound:,.0f}" if bound == int(bound) else f"{bound:g}"


def one_of(*choices: str) -> SettingType:
    """One of some words, in any case."""

    def parse(text: str) -> str:
        if text.lower() not in choices:
            raise ValueError("")
        return text.lower()

    return SettingType(" or ".join(f"`{c}`" for c in choices), parse)


ABSOLUTE_PATH = SettingType("an absolute path", _absolute_path)
VOLUME = SettingType("an absolute path, but not a system folder such as `/` or `/usr`", _volume)
PATH_ON_VOLUME = SettingType("a path below the volume's root, without `..`", _path_on_volume)
BOOLEAN = SettingType("`true` or `false`", _boolean)
TEXT = SettingType("any text", _text)
HOST = SettingType(
    "a host name such as `models.example.com`, with `:port` where it is not 443", _host
)
HOSTS = SettingType(
    "host names such as `huggingface.co` or `*.example.com`, separated by commas", _hosts
)
URL = SettingType("a web address such as `https://s3.example.com`, without login or query", _url)
BUCKET_NAME = SettingType("letters, digits, dots, dashes and underscores", _bucket_name)
BUCKET_PLACES = SettingType(
    "names such as `uploads` or `media/inputs/`, separated by commas", _bucket_places
)
NAMES = SettingType("variable names, separated by commas", _names)
COMFYUI_ARGUMENTS = SettingType(
    "ComfyUI flags, but for those the worker sets (`--listen`, `--port`, folders, database)",
    _comfyui_arguments,
)
SECRET = SettingType("a token without white space", _secret, secret=True)


@dataclass(frozen=True)
class Variable:
    """One environment variable: its name and aliases, what it means and what it may hold."""

    name: str
    kind: SettingType
    meaning: str
    default: str
    aliases: tuple[str, ...] = ()

    def raw(self, env: Mapping[str, str]) -> tuple[str, str] | None:
        """(name, value) of the first spelling that is set and not blank."""
        for name in (self.name, *self.aliases):
            if env.get(name, "").strip():
                return name, env[name].strip()
        return None

    def refused(self, env: Mapping[str, str]) -> str | None:
        """The name of the spelling that has an invalid value, if any."""
        given = self.raw(env)
        try:
            if given is not None:
                self.kind.parse(given[1])
        except ValueError:
            return given[0] if given else None
        return None


def var(kind: SettingType, default: Any, meaning: str, shown: str = "", *aliases: str) -> Any:
    """A dataclass field for the variable of its name in capitals; `shown` is its default in the
    documents."""
    declared = (kind, meaning, shown or _shown(default), aliases)
    return field(default=default, metadata={"declared": declared})


def declared_in(settings: type[Any]) -> dict[str, Variable]:
    """The variables of a dataclass by its attributes, in order of declaration."""
    return {f.name: Variable(f.name.upper(), *f.metadata["declared"]) for f in fields(settings)}


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
    """Is a switch on, as Hugging Face's libraries and Runpod's SDK read it?"""
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
    if isinstance(default, bool):
        return str(default).lower()
    return f"{default:g}" if isinstance(default, float) else str(default)


def _wrong(name: str, text: str, kind: SettingType, problem: str) -> Finding:
    shown = MASK if kind.secret else repr(masked(text)[:80])
    why = f": {problem}" if problem else ", which is not allowed"
    return error(
        "settings.invalid",
        f"{name} is {shown}{why}.",
        f"Set {name} to {kind.allowed}, or remove it to use the default, "
        "in the endpoint's environment variables.",
        name=name,
    )
