"""Pure: a workflow's named parameters: checks a request's values and puts them into nodes' inputs.

params:
  prompt: {type: string, sets: 6.text, required: true}
  steps: {type: integer, minimum: 1, maximum: 50, default: 20, sets: 3.steps}
  photo: {type: file, sets: [1.image]}
"""

from __future__ import annotations

import math
import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from handler.common.errors import JobError, described, nearest, short
from handler.common.media_types import extension_of_data
from handler.request.fields import InputFile, filename_in
from handler.request.references import RANDOM, is_url
from handler.request.workflow import Workflow

CODES = {
    "params.none": "The named workflow declares no parameters",
    "params.unknown": "The named workflow has no parameter of that name",
    "params.missing": "A required parameter was not sent",
    "params.wrong": "A parameter has a value that is not allowed",
    "params.file_wrong": "The file that declares a workflow's parameters is not valid",
}
TYPES = ("string", "integer", "number", "boolean", "seed", "file")
SUFFIX = ".params.yaml"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_FIELDS = frozenset("type sets description default required minimum maximum maxLength enum".split())
_WITH_BOUNDS = ("integer", "number", "seed")
_MOST_PARAMS, _MOST_PROBLEMS = 100, 100
_LARGEST_SEED = 2**64 - 1
_LONGEST_SUFFIX = 16
_LONGEST_NAME = 255  # of a file; longer text is base64 without a prefix


class InvalidValue(ValueError):
    """A value that a parameter does not accept; the text completes "`steps` …"."""


@dataclass(frozen=True)
class Param:
    """One parameter. `sets` are (node id, input); `default` None: the workflow's own value."""

    name: str
    type: str
    sets: tuple[tuple[str, str], ...]
    description: str = ""
    default: Any = None
    required: bool = False
    minimum: float | None = None
    maximum: float | None = None
    longest: int | None = None
    choices: tuple[Any, ...] = ()

    def read(self, value: Any) -> Any:
        """The value for the nodes. Raises InvalidValue."""
        value = _READERS[self.type](value)
        if self.choices and value not in self.choices:
            raise InvalidValue(f"is {short(value)}; allowed: {', '.join(map(short, self.choices))}")
        if isinstance(value, str):
            if self.longest is not None and self.type == "string" and len(value) > self.longest:
                raise InvalidValue(
                    f"has {len(value)} characters; at most {self.longest} are allowed"
                )
        elif self.minimum is not None and value < self.minimum:
            raise InvalidValue(f"is {short(value)}; it must be at least {self.minimum}")
        elif self.maximum is not None and value > self.maximum:
            raise InvalidValue(f"is {short(value)}; it must be at most {self.maximum}")
        return value

    def schema(self) -> dict[str, Any]:
        """JSON Schema."""
        given = {
            "description": self.description or None,
            "default": self.default,
            "minimum": self.minimum,
            "maximum": self.maximum,
            "maxLength": self.longest if self.type == "string" else None,
            "enum": list(self.choices) or None,
        }
        return {**_SCHEMAS[self.type], **{k: v for k, v in given.items() if v is not None}}


@dataclass(frozen=True)
class Params:
    """The parameters of one workflow. `params` by name, in the order of their file."""

    description: str = ""
    params: Mapping[str, Param] = field(default_factory=dict)

    def schema(self) -> dict[str, Any]:
        """JSON Schema of a request's `params`."""
        required = [p.name for p in self.params.values() if p.required]
        return {
            "type": "object",
            "properties": {p.name: p.schema() for p in self.params.values()},
            **({"required": required} if required else {}),
            "additionalProperties": False,
        }

    def applied(self, given: object) -> tuple[dict[str, dict[str, Any]], tuple[InputFile, ...]]:
        """Inputs to replace, by node id, and files among the values. Raises one JobError for all
        mistakes."""
        values = self._checked(given)
        overrides: dict[str, dict[str, Any]] = {}
        files = []
        for name, value in values.items():
            param = self.params[name]
            if param.type == "file" and (file := _file_of(name, value)) is not None:
                files.append(file)
                value = file.reference
            for node_id, node_input in param.sets:
                overrides.setdefault(node_id, {})[node_input] = value
        return overrides, tuple(files)

    def _checked(self, given: object) -> dict[str, Any]:
        if given is None:
            given = {}
        if not isinstance(given, Mapping):
            raise JobError(
                "params.wrong", f"params is {described(given)}, not an object.", self._allowed()
            )
        values, problems = {}, list(islice(self._unknown(given), _MOST_PROBLEMS))
        for param in self.params.values():
            value = given.get(param.name, param.default)
            if value is None and param.required:
                problems.append(("params.missing", f"`{param.name}` is missing"))
            if value is None:
                continue
            try:
                values[param.name] = param.read(value)
            except InvalidValue as problem:
                problems.append(("params.wrong", f"`{param.name}` {problem}"))
        if problems:
            said = "; ".join(message for _, message in problems[:20])
            raise JobError(
                problems[0][0],
                f"The params do not fit the workflow: {said}.",
                self._allowed(),
                problems=[{"error_code": code, "error": said} for code, said in problems],
                schema=self.schema(),
            )
        return values

    def _unknown(self, given: Mapping[Any, Any]) -> Iterator[tuple[str, str]]:
        for name in map(str, given):
            if name not in self.params:
                close = nearest(name, list(self.params))
                hint = f" (did you mean {close[0]}?)" if close else ""
                yield "params.unknown", f"there is no {short(name)}{hint}"

    def _allowed(self) -> str:
        listed = ", ".join(f"{p.name} ({_allowed_of(p)})" for p in self.params.values())
        return f"Send: {listed}."


def _allowed_of(param: Param) -> str:
    parts = [param.type]
    if param.minimum is not None or param.maximum is not None:
        low = "" if param.minimum is None else param.minimum
        high = "" if param.maximum is None else param.maximum
        parts.append(f"{low}…{high}")
    if param.choices:
        parts.append("one of " + ", ".join(map(short, param.choices[:20])))
    return " ".join([*parts, *(["required"] if param.required else [])])


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidValue(f"is {described(value)}; it must be a text")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidValue(f"is {described(value)}; it must be a number")
    try:
        finite = math.isfinite(value)
    except OverflowError:  # an integer with hundreds of digits
        finite = False
    if not finite:
        raise InvalidValue(f"is {short(value)}; it must be a finite number below 1.8e308")
    return value


def _whole(value: Any) -> int:
    number = _number(value)
    if number != int(number):
        raise InvalidValue(f"is {described(value)}; it must be a whole number")
    return int(number)


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise InvalidValue(f"is {described(value)}; it must be true or false")
    return value


def _seed(value: Any) -> int | str:
    if value == RANDOM:
        return RANDOM
    number = _whole(value)
    if not 0 <= number <= _LARGEST_SEED:
        raise InvalidValue(f'is {short(number)}; it must be from 0 to 2^64 - 1, or "{RANDOM}"')
    return number


def _file(value: Any) -> str:
    if not _text(value).strip():
        raise InvalidValue("is empty; it must be an https address, a data URI or a file's name")
    return str(value)


_READERS = {
    "string": _text,
    "integer": _whole,
    "number": _number,
    "boolean": _truth,
    "seed": _seed,
    "file": _file,
}
_SCHEMAS: Mapping[str, dict[str, Any]] = {
    "string": {"type": "string"},
    "integer": {"type": "integer"},
    "number": {"type": "number"},
    "boolean": {"type": "boolean"},
    "seed": {
        "anyOf": [{"type": "integer", "minimum": 0, "maximum": _LARGEST_SEED}, {"const": RANDOM}]
    },
    "file": {
        "type": "string",
        "minLength": 1,
        "description": "An https address, a data URI, or the name of a file that is sent along or "
        "lies in ComfyUI/input/ on the volume",
    },
}


def _file_of(name: str, value: str) -> InputFile | None:
    """The file that a value contains or points at; None if it is a name."""
    if is_url(value):
        suffix = posixpath.splitext(filename_in(value))[1]
        return InputFile(f"{name}{suffix if len(suffix) <= _LONGEST_SUFFIX else ''}", url=value)
    if value[:5].lower() == "data:" or len(value) > _LONGEST_NAME:
        return InputFile(f"{name}{extension_of_data(value)}", data=value)
    return None


def read_params(data: Any, workflow: Workflow) -> Params:
    """The declared parameters. Raises one JobError with all mistakes."""
    reader = _Reader(workflow)
    params = reader.params(data)
    if reader.mistakes:
        said = "; ".join(reader.mistakes[:20])
        raise JobError(
            "params.file_wrong",
            f"The workflow's parameters are not declared as they should be: {said}.",
            f"Correct its {SUFFIX} on the volume; docs/workflows.md shows how it looks.",
            mistakes=reader.mistakes[:100],
        )
    return params


class _Reader:
    def __init__(self, workflow: Workflow) -> None:
        self.mistakes: list[str] = []
        self._workflow = workflow

    def params(self, data: Any) -> Params:
        declared = data.get("params") if isinstance(data, Mapping) else None
        if not isinstance(declared, Mapping) or len(declared) > _MOST_PARAMS:
            self.mistakes.append(f"it must hold `params`, an object of at most {_MOST_PARAMS}")
            return Params()
        params = {}
        for name, entry in declared.items():
            before = len(self.mistakes)
            param = self._param(str(name), entry)
            if param is not None and len(self.mistakes) == before:
                params[param.name] = param
        return Params(str(data.get("description") or ""), params)

    def _param(self, name: str, entry: Any) -> Param | None:
        if not _NAME.fullmatch(name):
            self._say(name, "is not a name of letters, digits and underscores")
            return None
        if not isinstance(entry, Mapping):
            self._say(name, f"is {described(entry)}, not an object")
            return None
        if unknown := sorted(set(map(str, entry)) - _FIELDS):
            self._say(name, f"has unknown fields ({', '.join(unknown)[:100]})")
        kind = entry.get("type")
        if kind not in TYPES:
            self._say(name, f"has the type {short(kind)}; there are {', '.join(TYPES)}")
            return None
        param = Param(
            name,
            kind,
            tuple(self._sets(name, entry.get("sets"))),
            str(entry.get("description") or ""),
            None,
            entry.get("required") is True,
            self._bound(name, entry, "minimum"),
            self._bound(name, entry, "maximum"),
            self._longest(name, entry),
            tuple(self._choices(name, kind, entry.get("enum"))),
        )
        low, high = param.minimum, param.maximum
        if low is not None and high is not None and low > high:
            self._say(name, f"has a minimum, {low}, above its maximum, {high}")
        return self._with_default(param, entry.get("default"))

    def _with_default(self, param: Param, default: Any) -> Param:
        if default is None:
            return param
        try:
            value = param.read(default)
        except InvalidValue as problem:
            self._say(param.name, f"has a default that it does not take: it {problem}")
            return param
        return replace(param, default=value)

    def _sets(self, name: str, given: Any) -> Iterator[tuple[str, str]]:
        targets = given if isinstance(given, list) else [given]
        for target in targets:
            node_id, dot, node_input = str(target).partition(".")
            node = self._workflow.get(node_id)
            if given is None or not dot or not node_input:
                self._say(name, 'must say what it `sets`, such as "6.text"')
            elif node is None:
                self._say(name, f"sets {short(str(target))}, and there is no node {short(node_id)}")
            elif node_input not in node["inputs"]:
                has = ", ".join(map(str, node["inputs"]))[:200]
                self._say(name, f"sets {short(str(target))}; that node has {has or 'no input'}")
            else:
                yield node_id, node_input

    def _choices(self, name: str, kind: str, given: Any) -> Iterator[Any]:
        if given is None:
            return
        if not isinstance(given, list) or not given:
            self._say(name, "has an enum that is not a list of values")
            return
        for value in given:
            try:
                yield _READERS[kind](value)
            except InvalidValue as problem:
                quotes = " (put it in quotes)" if _READERS[kind] in (_text, _file) else ""
                self._say(name, f"has a choice in enum that {problem}{quotes}")

    def _bound(self, name: str, entry: Mapping[Any, Any], key: str) -> float | None:
        value = entry.get(key)
        if value is None:
            return None
        if entry["type"] not in _WITH_BOUNDS:
            self._say(name, f"has a {key}, which is for {', '.join(_WITH_BOUNDS)}")
            return None
        try:
            return _number(value)
        except InvalidValue:
            self._say(name, f"has a {key} that is not a finite number")
            return None

    def _longest(self, name: str, entry: Mapping[Any, Any]) -> int | None:
        value = entry.get("maxLength")
        if value is None:
            return None
        if entry["type"] != "string":
            self._say(name, "has a maxLength, which is for string")
        elif isinstance(value, bool) or not isinstance(value, int) or value < 1:
            self._say(name, "has a maxLength that is not a whole number of at least 1")
        else:
            return value
        return None

    def _say(self, name: str, what: str) -> None:
        self.mistakes.append(f"`{name[:80]}` {what}")
