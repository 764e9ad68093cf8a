"""Sizes, names, paths and commands for people to read and type."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from json import JSONDecodeError
from typing import Any

#: The byte order mark that Windows programs put before UTF-8.
BOM = "\ufeff"
KB, MB, GB = 1024, 1024**2, 1024**3
# No file system holds more; larger numbers come from wrong headers.
_MOST_SIZE = 1 << 63
MOST_NAMED = 5
# Control characters, surrogates, and invisible characters.
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)
#: Where to set variables, as part of a sentence.
IN_ENDPOINT = "in the endpoint's environment variables"
# Not more commands than this at once: fix these, then check again.
MOST_AT_ONCE = 20
MOST_PATHS = 50
# The platform's two mount points of one volume.
SERVERLESS, POD = "/runpod-volume", "/workspace"
_ON_POD = "On a Pod with this volume"
_CODE = re.compile(r"`[^`]*`")
# As a word of a command, not in a pattern for sed.
_SERVERLESS_PATH = re.compile(rf"(?<=[ '\"`]){SERVERLESS}(?=[/ '\"`])")


def whole(text: str) -> int | None:
    """The number in up to 18 ASCII digits; None for anything else. `int` would also accept
    other alphabets' digits, and raise for thousands of digits."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 18 else None


def size_text(size: int) -> str:
    """A number of bytes as `6.5 GiB`: as `df -h`, `ls -lh` and `nvidia-smi` count."""
    size = min(size, _MOST_SIZE)
    for unit, name in ((GB, "GiB"), (MB, "MiB"), (KB, "KiB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}" if size < 10 * unit else f"{size / unit:,.0f} {name}"
    return "1 byte" if size == 1 else f"{size} bytes"


def pluralize(count: int, one: str, many: str = "") -> str:
    """`1 file`, `2 files`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def printable(name: str) -> str:
    """A file name for a sentence: unprintable characters are escaped, outer spaces visible."""
    text = _UNPRINTABLE.sub(_escaped, name)
    return (
        f"'{text}'"
        if text != text.strip() or any(p != p.strip() for p in text.split("/"))
        else text
    )


def joined(texts: Sequence[str], most: int, joint: str = ", ", what: str = "more") -> str:
    """The first few texts and how many more `what` there are."""
    more, said = len(texts) - most, joint.join(texts[:most])
    return f"{said}{joint.rstrip(' ,')} and {more:,} {what}" if more > 0 else said


def trailing_comma(problem: JSONDecodeError) -> tuple[int, int, str] | None:
    """(line, column) of a trailing comma, and the bracket after it; None if something else is wrong
    with the text."""
    comma = problem.doc.rfind(",", 0, problem.pos + 1)
    closed = re.compile(r",\s*([}\]])").match(problem.doc, comma) if comma >= 0 else None
    if closed is None or closed.end() <= problem.pos:
        return None
    column = comma - problem.doc.rfind("\n", 0, comma)
    return problem.doc.count("\n", 0, comma) + 1, column, closed[1]


def summarize_list(names: Sequence[str], most: int = MOST_NAMED) -> str:
    """The first few names and how many more there are."""
    return joined([printable(name) for name in names], most)


def shell_quote(*words: str) -> str:
    """Words, quoted as a command for bash."""
    return " ".join(_typed_word(word) for word in words)


def _typed_word(word: str) -> str:
    if not _UNPRINTABLE.search(word):
        return shlex.quote(word)
    plain = word.replace("\\", "\\\\").replace("'", "\\'")
    return "$'" + _UNPRINTABLE.sub(_escaped_bytes, plain) + "'"


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8 (PEP 383)
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def _escaped_bytes(match: re.Match[str]) -> str:
    data = match[0].encode("utf-8", "surrogateescape" if ord(match[0]) >= 0xDC80 else "replace")
    return "".join(f"\\x{byte:02x}" for byte in data)


def without_tabs(file: str) -> str:
    """The command that indents a file's lines with two spaces for each tab, and keeps the old
    one."""
    return f"sed -i.bak -e ':a' -e 's/^\\( *\\)\\t/\\1  /' -e 'ta' {shell_quote(file)}"


def words(paths: Iterable[str]) -> str:
    """Paths as words of a command, `MOST_AT_ONCE` at most."""
    return shell_quote(*list(paths)[:MOST_AT_ONCE])


def chained(commands: Sequence[str]) -> str:
    """Commands as one line, `MOST_AT_ONCE` at most."""
    return " && ".join(commands[:MOST_AT_ONCE])


def on_pod(command: str, root: str, then: str = "") -> str:
    """A fix that is a command, for a volume seen at `root`."""
    fix = f"{_ON_POD}: `{command}`. {then}".rstrip()
    return as_on_pod(fix) if root == SERVERLESS else fix


def as_on_pod(fix: str) -> str:
    """A fix whose commands name the volume as Serverless does, as it is typed on a Pod: commands
    are not typed on a worker."""
    there = _CODE.sub(lambda command: _SERVERLESS_PATH.sub(POD, command[0]), fix)
    if there == fix:
        return fix
    there = there.removeprefix(f"{_ON_POD}: ")
    if there.startswith("`"):
        return f"{_ON_POD}, which is {POD} there: {there}"
    return f"{there} (That is {_ON_POD[0].lower()}{_ON_POD[1:]}, which is {POD} there.)"


def about(paths: Sequence[str], command: str = "") -> dict[str, Any]:
    """Details of a finding about paths, limited in number; `command` is the fix to type."""
    details: dict[str, Any] = {"paths": [printable(p) for p in paths[:MOST_PATHS]]}
    details["count"] = len(paths)
    return {**details, "command": command} if command else details
