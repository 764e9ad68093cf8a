"""Findings as cards, grouped by what they are about, worst first, within a budget of bytes.

Only what is a whole command may be offered for copying: half of `rm -- 'a; b'`, or a command with
the sentence's next words behind it, deletes the wrong thing. In doubt it is prose.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from bootstrap.core.findings import OTHER, SECTIONS, Severity, docs_url
from bootstrap.core.findings import section_of as section_of_code
from bootstrap.core.text import counted
from bootstrap.doctor.html.text import (
    breakable,
    escaped,
    is_unseen,
    items,
    mapping,
    mappings,
    number,
    plain,
    safe,
)

MOST_FINDINGS = 300
_MOST_MESSAGE, _MOST_FIX, _MOST_CODE = 1200, 3000, 80
_A_CODE = re.compile(r"[a-z0-9_]{1,40}\.[a-z0-9_]{1,40}")
_MOST_PATHS, _MOST_PATH, _FEW_PATHS = 20, 200, 5
MARKS: Mapping[Severity, tuple[str, str]] = {
    Severity.ERROR: ("✗", "Error"),
    Severity.WARNING: ("!", "Warning"),
    Severity.INFO: ("i", "Note"),
    Severity.OK: ("✓", "Fine"),
}


class Kind(Enum):
    """How a piece of a fix is set."""

    PROSE = "prose"
    VALUE = "value"
    COMMAND = "command"


@dataclass(frozen=True)
class Piece:
    """A part of a fix; the pieces of a fix are in its order."""

    kind: Kind
    text: str


_PROGRAMS = frozenset(
    "apt apt-get cat cd chmod chown cmp cp curl df docker du export find fusermount git grep "
    "huggingface-cli hf kill ldd ln ls mkdir mount mv nvidia-smi pip pip3 python python3 readlink "
    "rm rmdir rsync sed sort stat sudo tail tar touch ulimit umount uname unset unzip uv "
    "wget".split()
)
# Words that go on with the sentence. As words of a command they would be bare file names, and
# the fixes name files by their paths.
_SENTENCE = frozenset(
    "a again all also and as at before but by deletes does first for from if in into is it lists "
    "moves of on once or shows so that the then there to until when where which with".split()
)
# Programs whose arguments need not look like any: `pip install insightface`.
_OF_PLAIN_WORDS = frozenset({"apt", "apt-get", "docker", "git", "pip", "pip3", "sudo", "uv"})
# Programs of which every word is an option, a mode or a path that was typed in full: a plain word
# behind them is the sentence's.
_OF_PATHS = frozenset({"chmod", "chown", "cmp", "cp", "ln", "mkdir", "mv", "rm", "rmdir"})
_SEPARATORS = frozenset({"&&", "||", "|", ";"})
_WORD = re.compile(
    r"""\s*((?:[^\s"'\\;|&]|\\.|'[^']*'|"(?:[^"\\]|\\.)*")+|&&|\|\|?|;|&)""", re.DOTALL
)
# Where a bare command may begin: at the start, or after what announces it.
_START = re.compile(r"(?:^|(?<=: ))(?=[a-z/])")


def pieces(fix: str) -> list[Piece]:
    """Cut a fix. The pieces' texts are parts of it; only white space and backticks get lost."""
    spans = fix.split("`")
    if len(spans) % 2 == 1 and all(_balanced(span) for span in spans[1::2]):
        found: list[Piece] = []
        for index, span in enumerate(spans):
            found += [_quoted(span)] if index % 2 else _bare(span)
    else:
        found = [Piece(Kind.PROSE, fix)]
    return [piece for piece in found if piece.text.strip()]


def _balanced(text: str) -> bool:
    try:
        return bool(shlex.split(text))
    except ValueError:
        return False


def _quoted(span: str) -> Piece:
    """What stands between backticks: a command, or a value or key that the sentence names."""
    whole = _is_program(span.split(maxsplit=1)[0]) and not any(is_unseen(c) for c in span)
    return Piece(Kind.COMMAND if whole else Kind.VALUE, span)


def _is_program(word: str) -> bool:
    """`pip`, `/x/venv/bin/python`; of paths only those whose last part is a program's name."""
    return word.rpartition("/")[2] in _PROGRAMS


def _bare(text: str) -> list[Piece]:
    """Prose that may hold commands without backticks."""
    found: list[Piece] = []
    done = 0
    for start in (match.start() for match in _START.finditer(text)):
        end = _command_end(text, start) if start >= done else start
        if end > start:
            found += [Piece(Kind.PROSE, text[done:start]), Piece(Kind.COMMAND, text[start:end])]
            done = end
    return [*found, Piece(Kind.PROSE, text[done:])]


def _command_end(text: str, start: int) -> int:
    """Where the command that begins at `start` ends; `start` if there is none for certain."""
    end, words, expects_program, program = start, 0, True, ""
    while match := _WORD.match(text, end):
        word = match[1]
        if word in _SEPARATORS:
            if expects_program or not _begins_program(text, match.end()):
                break
            expects_program = True
        elif expects_program:
            if not _is_program(word):
                break
            expects_program, program = False, word
        elif _goes_on(word, program):
            break
        end, words = match.end(), words + 1
    command = text[start:end]
    certain = words > 1 and not expects_program and not _runs_into(text, end, command)
    return end if certain and _looks_typed(command) and _balanced(command) else start


def _goes_on(word: str, program: str) -> bool:
    """Does the sentence go on with this word, rather than the command?"""
    plain_word = program in _OF_PATHS and word.isalpha()
    return plain_word or word in _SENTENCE or word.startswith("(")


def _looks_typed(command: str) -> bool:
    """`find a larger machine` is a sentence."""
    program = command.split(maxsplit=1)[0]
    return program in _OF_PLAIN_WORDS or bool(re.search(r"""[/$='"]| -""", command))


def _begins_program(text: str, at: int) -> bool:
    match = _WORD.match(text, at)
    return match is not None and _is_program(match[1])


def _runs_into(text: str, end: int, command: str) -> bool:
    """Is it uncertain where the last word ends? The sentence's punctuation sticks to it, and may
    be the path's; it is an option without its path; a quote behind it never closes."""
    sticks = command[-1] in ".,:?!)…" or command.rsplit(maxsplit=1)[-1].startswith("-")
    torn = end < len(text) and not text[end].isspace() and text[end] != ";"
    unread = bool(text[end:].strip()) and not _WORD.match(text, end)
    return sticks or torn or unread or any(is_unseen(c) for c in command)


@dataclass(frozen=True)
class Shown:
    """One finding of the report and what it looks like."""

    severity: Severity
    section: str
    html: str


def severity_of(finding: Mapping[str, Any]) -> Severity:
    """The finding's severity; a note when the report has another word for it."""
    try:
        return Severity(finding.get("severity"))
    except ValueError:
        return Severity.INFO


def section_of(finding: Mapping[str, Any]) -> str:
    """The heading a finding stands under."""
    return section_of_code(plain(finding.get("code"), _MOST_CODE))


def findings_html(findings: object, most_bytes: int) -> str:
    """All sections that have findings. Beyond `most_bytes` the least important are left out."""
    ordered = sorted(mappings(findings), key=lambda f: -severity_of(f).rank)
    shown = _within_budget(ordered, most_bytes)
    sections = "".join(
        _section(name, [s for s in shown if s.section == name]) for name in (*SECTIONS, OTHER)
    )
    left_out = len(ordered) - len(shown)
    note = f"{counted(left_out, 'more finding')} not shown here; --json has all of them."
    return sections + (f'<p class="note">{note}</p>' if left_out else "")


def _within_budget(findings: Iterable[Mapping[str, Any]], left: int) -> list[Shown]:
    shown: list[Shown] = []
    for finding in findings:
        severity = severity_of(finding)
        item = Shown(severity, section_of(finding), _finding(finding, severity))
        left -= len(item.html.encode())
        if left < 0 or len(shown) == MOST_FINDINGS:
            break
        shown.append(item)
    return shown


def _section(name: str, found: Sequence[Shown]) -> str:
    if not found:
        return ""
    anchor = name.lower()
    notable = "".join(item.html for item in found if item.severity is not Severity.OK)
    good = [item.html for item in found if item.severity is Severity.OK]
    heading = f'<h2 id="{anchor}">{name}</h2>'
    start = f'<section class="card findings" aria-labelledby="{anchor}">'
    if not notable:
        return f"{start}{_folded(good, heading)}</section>\n"
    top = f'<div class="top">{heading}<p class="tally">{_tally(found)}</p></div>'
    return f"{start}{top}{notable}{_folded(good)}</section>\n"


def _folded(good: Sequence[str], heading: str = "") -> str:
    """Good news in one line; a section with nothing else has its heading in it."""
    if not good:
        return ""
    words = counted(len(good), "check is fine", "checks are fine")
    summary = f"{heading}{_mark(Severity.OK)}{words}"
    return f"<details><summary>{summary}</summary>{''.join(good)}</details>"


def _tally(found: Sequence[Shown]) -> str:
    """How many of each kind, the bad ones only: the fold says how many are good."""
    words = {Severity.ERROR: ("error", ""), Severity.WARNING: ("warning", "")}
    parts = []
    for severity, (one, many) in words.items():
        if count := sum(item.severity is severity for item in found):
            parts.append(f'<span class="{severity.value}">{counted(count, one, many)}</span>')
    return " ".join(parts)


def _mark(severity: Severity) -> str:
    """A sign besides the colour, with its name for those who see neither."""
    sign, name = MARKS[severity]
    return f'<span class="mark {severity.value}" role="img" aria-label="{name}">{sign}</span>'


def _finding(finding: Mapping[str, Any], severity: Severity) -> str:
    code = f"<code>{safe(finding.get('code'), _MOST_CODE)}</code>"
    if severity is not Severity.OK and _A_CODE.fullmatch(named := str(finding.get("code"))):
        code = f'<a href="{docs_url(named)}" rel="noreferrer">{code}</a>'
    host = ""
    if finding.get("host_fault") is True:
        host = ' <span class="host">this machine’s fault</span>'
    return (
        f'<article class="finding {severity.value}">{_mark(severity)}<div class="said">'
        f'<p class="message" dir="auto">{_message(finding)}</p>{_fix(finding)}{_paths(finding)}'
        f'<p class="code">{code}{host}</p></div></article>\n'
    )


def _message(finding: Mapping[str, Any]) -> str:
    """The sentence; what stands between backticks is a value that it names."""
    spans = plain(finding.get("message"), _MOST_MESSAGE).split("`")
    if len(spans) % 2 == 0:  # a backtick that belongs to a name
        return breakable("`".join(spans))
    return "".join(
        f"<code>{breakable(span)}</code>" if index % 2 and span else breakable(span)
        for index, span in enumerate(spans)
    )


def _fix(finding: Mapping[str, Any]) -> str:
    given = finding.get("fix")
    fix = given.strip() if isinstance(given, str) else ""
    if not fix:
        return ""
    if len(fix) > _MOST_FIX:
        # A command that was cut must not look like one that can be typed.
        inner = (
            f"<p>{escaped(plain(fix, _MOST_FIX, keep_lines=True))}</p>"
            '<p class="note">Shortened here; --json has the whole of it.</p>'
        )
    else:
        inner = _pieces(pieces(fix))
    return f'<div class="fix"><h3>Fix</h3>{inner}</div>'


def _pieces(cut: Sequence[Piece]) -> str:
    """Prose and values run on in one paragraph; a command stands by itself."""
    html, open_paragraph = [], False
    for piece in cut:
        if piece.kind is Kind.COMMAND:
            html.append("</p>" if open_paragraph else "")
            html.append(
                f'<pre class="command" tabindex="0"><code>{escaped(piece.text)}</code></pre>'
            )
            open_paragraph = False
            continue
        # A command now stands by itself, so the full stop behind it goes.
        said = piece.text if open_paragraph else piece.text.lstrip(" .,;:")
        if not said:
            continue
        html.append("" if open_paragraph else "<p>")
        text = escaped(plain(said, _MOST_FIX * 10, keep_lines=True))
        html.append(f"<code>{text}</code>" if piece.kind is Kind.VALUE else text)
        open_paragraph = True
    return "".join(html) + ("</p>" if open_paragraph else "")


def _paths(finding: Mapping[str, Any]) -> str:
    """The paths of a finding that is about more than its sentence names."""
    details = mapping(finding.get("details"))
    paths = [path for path in items(details.get("paths")) if isinstance(path, str)]
    if len(paths) <= _FEW_PATHS:
        return ""
    rows = "".join(
        f"<li><bdi>{breakable(plain(path, _MOST_PATH))}</bdi></li>" for path in paths[:_MOST_PATHS]
    )
    count = max(int(number(details.get("count"))), len(paths))
    more = count - min(len(paths), _MOST_PATHS)
    rows += f"<li>and {more:,} more</li>" if more > 0 else ""
    return (
        f'<details class="paths"><summary>{counted(count, "path")}</summary><ul>{rows}</ul>'
        "</details>"
    )
