"""Pure: what a requirements.txt or a pyproject.toml asks for (PEP 508, pip's file format).

A subset with the standard library alone, since a bare Pod has no `packaging`. What is not
understood is kept in `unread`: whoever judges says nothing about it, so no alarm is false.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from bootstrap.environment.versions import are_specifiers

MOST_REQUIREMENTS = 300
_MOST_LINE = 500
_MOST_UNREAD = 20
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_PLAIN = re.compile(
    rf"(?P<name>{_NAME})\s*(?:\[(?P<extras>[^\]]*)\])?\s*(?P<rest>.*)", re.ASCII | re.DOTALL
)
_ADDRESS = re.compile(r"(?:(?:git|hg|svn|bzr)\+)?[a-z][a-z0-9+.-]*://\S+", re.IGNORECASE)
_EGG = re.compile(rf"[#&]egg=({_NAME})", re.ASCII)
_WHEEL = re.compile(r"/([A-Za-z0-9_.]+)-([^-/]+)-(?:[^-/]+-)?[^-/]+-[^-/]+-[^-/]+\.whl", re.ASCII)
_COMMENT = re.compile(r"(^|\s)#.*$")
_PER_LINE_OPTIONS = re.compile(r"\s--?(?:hash|config-settings|global-option|install-option)\b.*$")
_INCLUDE = re.compile(r"(?:-r|--requirement)[\s=]*(?P<file>\S.*)")
_EDITABLE = re.compile(r"(?:-e|--editable)[\s=]+")


@dataclass(frozen=True)
class Requirement:
    """One package that is asked for.

    `name` is normalised (PEP 503), `text` what to give to pip, without its marker. `specifiers`
    is "" where any version will do; `url` is where it comes from when it names a place.
    """

    name: str
    text: str
    specifiers: str = ""
    extras: tuple[str, ...] = ()
    marker: str = ""
    url: str = ""


@dataclass(frozen=True)
class Wishes:
    """What a file asks for; `includes` are the files it names with -r, `unread` lines that were
    not understood."""

    requirements: tuple[Requirement, ...] = ()
    includes: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()


def normalised(name: str) -> str:
    """A package's name as it is compared: `Foo.Bar_baz` is `foo-bar-baz` (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def parse_file(text: str) -> Wishes:
    """A requirements.txt. Options that say where packages come from are passed over."""
    lines = [_without_comment(line) for line in _logical_lines(text)]
    return _parse([line for line in lines if line])


def parse_pyproject(text: str) -> Wishes:
    """`[project] dependencies` of a pyproject.toml; nothing of its other tables."""
    return _parse([line.strip() for line in _project_dependencies(text)])


def parse_requirement(line: str) -> Requirement | None:
    """One requirement as it stands in a file or a list; None when it is not understood."""
    line = _PER_LINE_OPTIONS.sub("", line.strip())
    if len(line) > _MOST_LINE:
        return None
    if _ADDRESS.match(line):
        return _from_address(line)
    match = _PLAIN.fullmatch(line)
    if match is None:
        return None
    extras = tuple(e.strip() for e in (match["extras"] or "").split(",") if e.strip())
    if not all(re.fullmatch(_NAME, extra) for extra in extras):
        return None
    rest = match["rest"].strip()
    if rest.startswith("@"):
        return _direct(match["name"], extras, rest[1:].strip())
    specifiers, semicolon, marker = rest.partition(";")
    specifiers = re.sub(r"\s+", "", specifiers.strip().strip("()")).strip(",")
    if not are_specifiers(specifiers) or (semicolon and not marker.strip()):
        return None
    listed = f"[{','.join(extras)}]" if extras else ""
    return Requirement(
        normalised(match["name"]),
        f"{match['name']}{listed}{specifiers}",
        specifiers,
        extras,
        marker.strip(),
    )


def _parse(lines: list[str]) -> Wishes:
    requirements: list[Requirement] = []
    includes: list[str] = []
    unread: list[str] = []
    for line in lines:
        include = _INCLUDE.fullmatch(line)
        if include is not None:
            includes.append(include["file"].strip().strip("'\""))
            continue
        line = _EDITABLE.sub("", line, count=1) if _EDITABLE.match(line) else line
        if line.startswith("-"):
            continue
        requirement = parse_requirement(line)
        if requirement is None:
            unread.append(line[:_MOST_LINE])
        else:
            requirements.append(requirement)
    return Wishes(
        tuple(dict.fromkeys(requirements))[:MOST_REQUIREMENTS],
        tuple(dict.fromkeys(includes)),
        tuple(unread[:_MOST_UNREAD]),
    )


def _from_address(line: str) -> Requirement | None:
    """`git+https://…#egg=name` and a wheel's address name a package; others do not."""
    address, _, marker = line.partition(" ;")
    address = address.strip()
    if " " in address:
        return None
    egg, wheel = _EGG.search(address), _WHEEL.search(address)
    found = egg[1] if egg else wheel[1] if wheel else None
    if found is None:
        return None
    return Requirement(normalised(found), address, marker=marker.strip(), url=address)


def _direct(name: str, extras: tuple[str, ...], rest: str) -> Requirement | None:
    """`name @ https://…`; a marker follows after a space and a semicolon."""
    address, _, marker = rest.partition(" ;")
    address = address.strip()
    if not _ADDRESS.fullmatch(address):
        return None
    listed = f"[{','.join(extras)}]" if extras else ""
    text = f"{name}{listed} @ {address}"
    return Requirement(normalised(name), text, "", extras, marker.strip(), address)


def _logical_lines(text: str) -> list[str]:
    """Lines, with those that end in a backslash joined to the next."""
    joined: list[str] = []
    open_line = ""
    for line in text.lstrip("\ufeff").splitlines():
        if line.endswith("\\") and not line.lstrip().startswith("#"):
            open_line += line[:-1]
            continue
        joined.append(open_line + line)
        open_line = ""
    return [*joined, open_line] if open_line else joined


def _without_comment(line: str) -> str:
    return _COMMENT.sub("", line).strip()


# White space within a line: `\s` after `^` would go over all empty lines, again at each of them.
_HEADER = re.compile(r"^[ \t]*\[[^\[\]\n]+\][ \t]*(?:#.*)?\r?$", re.MULTILINE)
_PROJECT = re.compile(r"^[ \t]*\[[ \t]*project[ \t]*\][ \t]*(?:#.*)?\r?$", re.MULTILINE)
_KEY = r"^[ \t]*{}[ \t]*=[ \t]*"
_ITEM = re.compile(r"""\s*(?:#[^\n]*\n|,|(?P<item>"(?:[^"\\\n]|\\.)*"|'[^'\n]*'))""")


def project_table(text: str) -> str:
    """The `[project]` table of a pyproject.toml, as text; Python 3.10 has no reader of TOML."""
    start = _PROJECT.search(text)
    if start is None:
        return ""
    end = _HEADER.search(text, start.end())
    return text[start.end() : end.start() if end else len(text)]


def project_text(text: str, key: str) -> str | None:
    """A text in the `[project]` table, such as `version`; None when it is not there."""
    match = re.search(
        _KEY.format(re.escape(key)) + r"""(?:"([^"\n]*)"|'([^'\n]*)')""",
        project_table(text),
        re.MULTILINE,
    )
    return (match[1] if match[1] is not None else match[2]) if match else None


def _project_dependencies(text: str) -> list[str]:
    table = project_table(text)
    start = re.search(_KEY.format("dependencies") + r"\[", table, re.MULTILINE)
    if start is None:
        return []
    items: list[str] = []
    end = start.end()
    while match := _ITEM.match(table, end):
        if match["item"]:
            quote, inner = match["item"][0], match["item"][1:-1]
            items.append(re.sub(r"\\(.)", r"\1", inner) if quote == '"' else inner)
        end = match.end()
    return items
