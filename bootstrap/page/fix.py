"""A fix cut into prose, values and commands.

Only what is a whole command may be offered for copying: half of `rm -- 'a; b'`, or a command with
the sentence's next words behind it, deletes the wrong thing. In doubt it is prose.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from enum import Enum

from bootstrap.page.text import is_unseen


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
