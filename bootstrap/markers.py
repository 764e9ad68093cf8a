"""Pure: environment markers of requirements (PEP 508), for an interpreter that is not this one.

What cannot be decided is None, and `and` and `or` carry that on: `None and False` is False.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from bootstrap.versions import parse_version, satisfies

# The names before PEP 508, still met in old files.
_OLD_NAMES = {
    "os.name": "os_name",
    "sys.platform": "sys_platform",
    "platform.version": "platform_version",
    "platform.machine": "platform_machine",
    "platform.python_implementation": "platform_python_implementation",
    "python_implementation": "platform_python_implementation",
}
# Compared as versions; everything else as text.
_VERSIONS = frozenset({"python_version", "python_full_version", "implementation_version"})
_TOKEN = re.compile(
    r"""\s*(?:(?P<text>"[^"]*"|'[^']*')|(?P<op>===|~=|==|!=|<=|>=|<|>)|(?P<bracket>[()])"""
    r"""|(?P<word>[A-Za-z_][\w.]*))""",
    re.ASCII,
)
_MOST_TEXT = 1000
_MIRRORED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "==": "==", "!=": "!="}


def evaluate(marker: str, environment: Mapping[str, str]) -> bool | None:
    """Whether a requirement with this marker applies; None when that cannot be told.

    `environment` has the names of PEP 508 (`python_version`, `sys_platform`, …); `extra` is the
    empty text unless it says otherwise.
    """
    if not marker.strip():
        return True
    tokens = _tokens(marker)
    if tokens is None:
        return None
    try:
        parser = _Parser(tokens, {"extra": "", **environment})
        value = parser.either()
    except (IndexError, ValueError, RecursionError):
        return None
    return None if parser.rest else value


def _tokens(marker: str) -> list[str] | None:
    found: list[str] = []
    marker = marker.strip()
    end = 0
    while end < len(marker):
        match = _TOKEN.match(marker, end)
        if match is None or len(marker) > _MOST_TEXT:
            return None
        found.append(match[0].strip())
        end = match.end()
    return found


class _Parser:
    """Recursive descent over the tokens; raises IndexError or ValueError on what is no marker."""

    def __init__(self, tokens: list[str], environment: Mapping[str, str]) -> None:
        self.rest = tokens
        self._environment = environment

    def either(self) -> bool | None:
        value = self._all()
        while self.rest and self.rest[0] == "or":
            self.rest = self.rest[1:]
            other = self._all()
            value = _or(value, other)
        return value

    def _all(self) -> bool | None:
        value = self._one()
        while self.rest and self.rest[0] == "and":
            self.rest = self.rest[1:]
            other = self._one()
            value = _and(value, other)
        return value

    def _one(self) -> bool | None:
        if self.rest[0] == "(":
            self.rest = self.rest[1:]
            value = self.either()
            if self._take() != ")":
                raise ValueError("bracket not closed")
            return value
        left = self._take()
        operator = self._take()
        if operator == "not":
            operator = f"not {self._take()}"
        return self._compare(left, operator, self._take())

    def _take(self) -> str:
        token, self.rest = self.rest[0], self.rest[1:]
        return token

    def _compare(self, left: str, operator: str, right: str) -> bool | None:
        names = {_name(side) for side in (left, right)}
        a, b = self._value(left), self._value(right)
        if a is None or b is None:
            return None
        if operator in ("in", "not in"):
            return (a in b) is (operator == "in")
        if names & _VERSIONS:
            # The literal may stand first: "3.8" <= python_version.
            if _name(left) in _VERSIONS:
                return satisfies(a, f"{operator}{b}") if b else None
            mirrored = _MIRRORED.get(operator)
            return satisfies(b, f"{mirrored}{a}") if mirrored and parse_version(a) else None
        if operator in ("==", "===", "!="):
            return (a == b) is (operator != "!=")
        return None

    def _value(self, token: str) -> str | None:
        if token[0] in "'\"":
            return token[1:-1]
        if not re.match(r"[A-Za-z_]", token):
            raise ValueError(f"{token!r} is no operand")
        return self._environment.get(_name(token))


def _name(token: str) -> str:
    return _OLD_NAMES.get(token, token)


def _and(a: bool | None, b: bool | None) -> bool | None:
    if a is False or b is False:
        return False
    return None if a is None or b is None else True


def _or(a: bool | None, b: bool | None) -> bool | None:
    if a is True or b is True:
        return True
    return None if a is None or b is None else False
