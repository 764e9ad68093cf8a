"""Pure: versions and specifiers (PEP 440) and environment markers (PEP 508), as pip reads them.

`packaging` does this better and is not there on a bare Pod; the tests hold this against it.
What cannot be decided is None, never a guess, and `and` and `or` of markers carry that on: `None
and False` is False.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Longer ones are nobody's version, and turning many digits into a number is slow.
_MOST_TEXT = 128
_PRE = {"alpha": "a", "beta": "b", "c": "rc", "pre": "rc", "preview": "rc"}
_VERSION = re.compile(
    r"v?(?:(?P<epoch>\d+)!)?(?P<release>\d+(?:\.\d+)*)"
    r"(?:[-_.]?(?P<pre>alpha|beta|preview|pre|rc|a|b|c)[-_.]?(?P<pre_n>\d*))?"
    r"(?:-(?P<post_dash>\d+)|[-_.]?(?P<post>post|rev|r)[-_.]?(?P<post_n>\d*))?"
    r"(?:[-_.]?(?P<dev>dev)[-_.]?(?P<dev_n>\d*))?"
    r"(?:\+(?P<local>[a-z0-9]+(?:[-_.][a-z0-9]+)*))?",
    re.IGNORECASE | re.ASCII,
)
_PREFIX = re.compile(
    r"v?(?:(?P<epoch>\d+)!)?(?P<release>\d+(?:\.\d+)*)\.\*", re.IGNORECASE | re.ASCII
)
_CLAUSE = re.compile(r"(===|==|~=|!=|<=|>=|<|>)\s*(\S+)")
# Before and after everything else in the same place of a version's sort key.
_FIRST: tuple[Any, ...] = (-1,)
_LAST: tuple[Any, ...] = (2,)
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
_MOST_MARKER = 1000
_MIRRORED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "==": "==", "!=": "!="}


@dataclass(frozen=True)
class Version:
    """A parsed version; `pre` is ("rc", 1), the numbers are None where there is no such part."""

    epoch: int
    release: tuple[int, ...]
    pre: tuple[str, int] | None
    post: int | None
    dev: int | None
    local: tuple[int | str, ...]

    @property
    def base(self) -> tuple[int, tuple[int, ...]]:
        """Epoch and release, trailing zeros left out: `1.2` and `1.2.0` are one."""
        return self.epoch, _stripped(self.release)

    @property
    def is_prerelease(self) -> bool:
        """An alpha, beta, release candidate or development release."""
        return self.pre is not None or self.dev is not None

    @property
    def public_key(self) -> tuple[Any, ...]:
        """Sorts as PEP 440 wants, the local part left out."""
        if self.pre is not None:
            pre: tuple[Any, ...] = (0, *self.pre)
        else:
            pre = _FIRST if self.post is None and self.dev is not None else _LAST
        post = _FIRST if self.post is None else (0, self.post)
        dev = _LAST if self.dev is None else (0, self.dev)
        return (*self.base, pre, post, dev)

    @property
    def key(self) -> tuple[Any, ...]:
        """Sorts as PEP 440 wants; a number in a local part comes after any word."""
        local = tuple((1, p, "") if isinstance(p, int) else (0, 0, p) for p in self.local)
        return (*self.public_key, local)


def parse_version(text: str) -> Version | None:
    """The version a text spells; None for what is none (PEP 440)."""
    match = _VERSION.fullmatch(text.strip()) if len(text) <= _MOST_TEXT else None
    if match is None:
        return None
    pre = (match["pre"] or "").lower()
    post = match["post_dash"] or (match["post_n"] or "0" if match["post"] else None)
    local = re.split(r"[-_.]", match["local"].lower()) if match["local"] else []
    return Version(
        epoch=int(match["epoch"] or 0),
        release=_numbers(match["release"]),
        pre=(_PRE.get(pre, pre), int(match["pre_n"] or 0)) if pre else None,
        post=None if post is None else int(post),
        dev=int(match["dev_n"] or 0) if match["dev"] else None,
        local=tuple(int(p) if p.isdigit() else p for p in local),
    )


def satisfies(version: str, specifiers: str) -> bool | None:
    """Whether an installed version is allowed by `>=1.2,<2`; None when that cannot be told.

    Pre-releases count: what is installed is installed.
    """
    verdicts = [_meets(version, clause) for clause in specifiers.split(",") if clause.strip()]
    if False in verdicts:
        return False
    return None if None in verdicts else True


def are_specifiers(text: str) -> bool:
    """Is this a list of version clauses, each of which can be decided?"""
    clauses = [clause for clause in text.split(",") if clause.strip()]
    return all(_meets("0", clause) is not None for clause in clauses)


def _meets(version: str, clause: str) -> bool | None:
    match = _CLAUSE.fullmatch(clause.strip())
    if match is None or len(clause) > _MOST_TEXT:
        return None
    operator, wanted = match[1], match[2]
    if operator == "===":
        return version.strip().lower() == wanted.lower()
    have = parse_version(version)
    if have is None:
        return None
    prefix = _PREFIX.fullmatch(wanted)
    if prefix is not None:
        if operator not in ("==", "!="):
            return None
        same = _starts_with(have, int(prefix["epoch"] or 0), _numbers(prefix["release"]))
        return same is (operator == "==")
    want = parse_version(wanted)
    return None if want is None else _compare(have, operator, want)


def _compare(have: Version, operator: str, want: Version) -> bool | None:
    if operator in ("==", "!="):
        same = have.key == want.key if want.local else have.public_key == want.public_key
        return same is (operator == "==")
    if want.local:
        return None  # PEP 440 allows a local part with == and != only
    if operator == "~=":
        return _compatible(have, want)
    if operator == ">=":
        return have.public_key >= want.public_key
    if operator == "<=":
        return have.public_key <= want.public_key
    if operator == "<":
        return _less(have, want)
    return _greater(have, want)


def _compatible(have: Version, want: Version) -> bool | None:
    """`~=1.4.2` is `>=1.4.2,==1.4.*`; one number alone (`~=1`) is not allowed."""
    if len(want.release) < 2:
        return None
    reached = have.public_key >= want.public_key
    return reached and _starts_with(have, want.epoch, want.release[:-1])


def _less(have: Version, want: Version) -> bool:
    """`<2.0` leaves out 2.0's own pre-releases, unless one is named."""
    own_prerelease = (
        have.is_prerelease
        and not want.is_prerelease
        and have.base == want.base
        and want.post in (None, have.post)
    )
    return have.public_key < want.public_key and not own_prerelease


def _greater(have: Version, want: Version) -> bool:
    """`>1.7` leaves out 1.7's own post-releases, unless one is named."""
    own_post = (
        have.post is not None
        and want.post is None
        and want.dev is None
        and (have.base, have.pre) == (want.base, want.pre)
    )
    return have.public_key > want.public_key and not own_post


def _starts_with(have: Version, epoch: int, prefix: tuple[int, ...]) -> bool:
    padded = have.release + (0,) * (len(prefix) - len(have.release))
    return have.epoch == epoch and padded[: len(prefix)] == prefix


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def _stripped(release: tuple[int, ...]) -> tuple[int, ...]:
    end = len(release)
    while end > 1 and release[end - 1] == 0:
        end -= 1
    return release[:end]


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
        if match is None or len(marker) > _MOST_MARKER:
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
