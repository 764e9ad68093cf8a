"""What all command lines share. Input: argparse with suggestions for typos, and help that ends with
examples. Output: findings, worst first, wrapped to the terminal, each command on its own line for
copying; plain ASCII if it is not a terminal."""

from __future__ import annotations

import argparse
import difflib
import os
import re
import shutil
import signal
import textwrap
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TextIO

from bootstrap.core.findings import Finding, Severity, docs_url, errors_in, worst_first
from bootstrap.core.log import show
from bootstrap.core.text import SERVERLESS

WRONG_USE = 2
PROGRAM = "comfyui-worker"
# How each of its commands is typed in a clone.
_IN_A_CLONE = {
    "serve": "python -m handler",
    "serve --local": "python -m handler --rp_serve_api",
    "boot": "python -m bootstrap",
    "models": "python -m bootstrap models",
    "nodes": "python -m bootstrap nodes",
    "doctor": "python3 scripts/check_volume.py",
    "submit": "python3 scripts/submit.py",
    "params": "python3 scripts/make_params.py",
}
_MARKS = {
    Severity.OK: ("✓", "+", "32"),
    Severity.INFO: ("•", "-", "36"),
    Severity.WARNING: ("!", "!", "33"),
    Severity.ERROR: ("✗", "x", "31"),
}
_DIM, _BOLD = "2", "1"
_LEAST_WIDTH = 40
# A command comes after a colon or at the beginning; other code is part of its sentence.
_COMMAND = re.compile(r"(?:^|:\s+)`([^`]*\s[^`]*)`")
# Behind these bash reads on in the next line.
_JOINTS = ("&&", "|", ";")
_CODE, _NO_BREAK = re.compile(r"`[^`]+`"), "\0"
_ON_POD = re.compile(r"On a Pod with this volume:?$")


class Parser(argparse.ArgumentParser):
    """argparse's, but a wrong argument is reported in one line, with the nearest valid one."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        options.setdefault("allow_abbrev", False)
        super().__init__(*arguments, **options)

    def error(self, message: str) -> NoReturn:
        """Report what is wrong, and exit with `WRONG_USE`."""
        guess = nearest(*self._misspelt(message))
        meant = f" Did you mean {guess}?" if guess else ""
        self.exit(WRONG_USE, f"{self.prog}: {message}.{meant}\nSee {self.prog} --help.\n")

    def _misspelt(self, message: str) -> tuple[str, list[str]]:
        """The misspelt word, and the valid ones."""
        if unknown := re.search(r"unrecognized arguments: (--?[\w-]+)", message):
            return unknown[1], self._options()
        if choice := re.search(r"invalid choice: '([^']*)'", message):
            return choice[1], [str(c) for a in self._actions for c in a.choices or ()]
        return "", []

    def _options(self) -> list[str]:
        """Its own, and those of its commands."""
        commands = [a for a in self._actions if isinstance(a, argparse._SubParsersAction)]
        below = [parser for action in commands for parser in action.choices.values()]
        return [o for parser in (self, *below) for a in parser._actions for o in a.option_strings]


def nearest(word: str, known: Sequence[str]) -> str:
    """The known word that was most likely meant; empty if none is close."""
    return next(iter(difflib.get_close_matches(word, known, 1, 0.6)), "")


def as_typed(command: str, prog: str) -> str:
    """How to type `command` (`serve`, `models pull`) in the same form as `prog`: the installed
    program, or a clone's."""
    if prog.split(maxsplit=1)[0] == PROGRAM:
        return f"{PROGRAM} {command}"
    name, _, rest = command.partition(" ")
    return _IN_A_CLONE.get(command) or f"{_IN_A_CLONE[name]} {rest}".rstrip()


def closing(variables: Mapping[str, str], examples: Sequence[str], codes: str) -> str:
    """The end of a command's help: its variables, if it reads any, examples and exit codes."""
    width = max(map(len, variables), default=0) + 2
    read = [f"  {name:<{width}}{text}" for name, text in variables.items()]
    typed = [f"  {example}" for example in examples]
    environment = ("environment:", *read, "") if read else ()
    return "\n".join((*environment, "examples:", *typed, "", codes))


@dataclass(frozen=True)
class Style:
    """How text looks: `width` in columns (None: lines are not wrapped), colours, marks."""

    width: int | None = None
    colour: bool = False
    unicode: bool = False

    def painted(self, text: str, code: str) -> str:
        """With an ANSI colour, if colours are on."""
        return f"\033[{code}m{text}\033[0m" if self.colour and text else text

    def dim(self, text: str) -> str:
        """Dimmed."""
        return self.painted(text, _DIM)

    def bold(self, text: str) -> str:
        """Bold."""
        return self.painted(text, _BOLD)

    def linked(self, text: str, address: str) -> str:
        """A clickable link, if the terminal supports it."""
        return f"\033]8;;{address}\033\\{text}\033]8;;\033\\" if self.colour else text

    def wrapped(self, text: str, first: str = "", indent: str = "") -> list[str]:
        """`text` after `first`, further lines after `indent`. Neither words nor what is between
        backticks is cut."""
        if self.width is None:
            return [f"{first}{text}"]
        lines = textwrap.wrap(
            _CODE.sub(lambda code: code[0].replace(" ", _NO_BREAK), text),
            max(self.width, _LEAST_WIDTH),
            initial_indent=first,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
        return [line.replace(_NO_BREAK, " ") for line in lines]

    def command(self, text: str, indent: str) -> list[str]:
        """A command as it can be copied: where it is too long for a line, broken where bash goes on
        in the next one. A word is never cut."""
        if self.width is None or len(indent) + len(text) <= self.width:
            return [f"{indent}{text}"]
        lines = [indent]
        for part in _parts_of(text):
            if lines[-1].strip() and len(lines[-1]) + len(" ".join(part)) >= self.width:
                lines.append(f"{indent}  ")
            for word in part:
                if lines[-1].strip() and len(lines[-1]) + len(word) + 3 > self.width:
                    lines[-1] += "" if lines[-1].endswith(_JOINTS) else " \\"
                    lines.append(f"{indent}    ")
                lines[-1] += f" {word}" if lines[-1].strip() else word
        return lines


def _parts_of(command: str) -> list[list[str]]:
    """The words of a command as they are typed, a list for each behind which bash reads on."""
    parts = [[""]]
    quote, escaped = "", False
    for character in command:
        word = parts[-1][-1]
        if character == " " and not quote and not escaped:
            if word.endswith(_JOINTS):
                parts.append([""])
            else:
                parts[-1].append("")
            continue
        parts[-1][-1] += character
        if escaped:
            escaped = False
        elif character == "\\" and quote != "'":
            escaped = True
        elif quote:
            quote = "" if character == quote[-1] else quote
        elif character in "'\"":
            quote = "$'" if character == "'" and word.endswith("$") else character
    return parts


PLAIN = Style()


def style_of(stream: TextIO) -> Style:
    """For this stream: https://no-color.org and `TERM=dumb` turn colours off."""
    if not stream.isatty():
        return PLAIN
    plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
    encoding = (getattr(stream, "encoding", None) or "").lower().replace("-", "")
    return Style(shutil.get_terminal_size().columns, not plain, encoding == "utf8")


def findings_text(
    findings: Iterable[Finding],
    style: Style = PLAIN,
    root: str = "",
    repaired: Collection[str] = (),
) -> str:
    """All findings, worst first. Paths are relative to `root`; `repaired` are the codes that
    `--fix` repairs."""
    return "\n".join(
        line
        for finding in worst_first(findings)
        for line in _finding_lines(finding, style, root, finding.code in repaired)
    )


def _finding_lines(finding: Finding, style: Style, root: str, repaired: bool) -> Iterator[str]:
    fancy, ascii_mark, colour = _MARKS[finding.severity]
    mark = style.painted(fancy if style.unicode else ascii_mark, colour)
    code = f"[{finding.code}]"
    *most, last = style.wrapped(f"{relative(finding.message, root)} {code}", "  ", "  ")
    lines = [*most, last.replace(code, style.linked(style.dim(code), docs_url(finding.code)))]
    yield f"{mark}{lines[0][1:]}"
    yield from lines[1:]
    for part, is_command in _parts(finding.fix, root):
        if is_command:
            yield from map(style.bold, style.command(part, "      "))
        else:
            yield from style.wrapped(part, "    ", "    ")
    if repaired:
        yield f"    {style.dim('--fix repairs this.')}"


def _parts(fix: str, root: str) -> Iterator[tuple[str, bool]]:
    """The fix as prose and commands, in order."""
    pieces = _COMMAND.split(fix)
    for index, piece in enumerate(pieces):
        if index % 2:
            yield piece, True
            continue
        spans = enumerate(piece.split("`"))  # the text between them may be part of the command
        piece = "`".join(text if n % 2 else relative(text, root) for n, text in spans)
        text = piece.strip() if index == 0 else piece.lstrip(" .,;").strip()
        text = text[:1].upper() + text[1:] if index else text
        if index + 1 < len(pieces):
            # The reader is already on the machine where to type it.
            text = _ON_POD.sub("", text).strip() if root and root != SERVERLESS else text
            text = f"{text}:" if text and text[-1] not in ".:" else text
        if text:
            yield text, False


def relative(text: str, root: str) -> str:
    """Paths in `text` relative to `root`, which was printed before."""
    if not root or root == "/":
        return text
    return re.sub(rf"(?<![\w./=-]){re.escape(root)}/(?=[\w.'])", "", text)


def report(findings: Sequence[Finding], out: TextIO) -> bool:
    """Print them and their fixes; True if one is an error."""
    for finding in findings:
        for line in sentences(finding):
            show_wrapped(line, out)
    return bool(errors_in(findings))


def sentences(finding: Finding) -> list[str]:
    """`error[code]: …`, and, if it has a fix, `hint: …`."""
    code = f"[{finding.code}]" if finding.code else ""
    hint = [f"hint: {finding.fix}"] if finding.fix else []
    return [f"{finding.severity.value}{code}: {finding.message}", *hint]


def show_wrapped(line: str, out: TextIO, indent: str = "  ") -> None:
    """Print a line, wrapped where `out` is a terminal."""
    for part in style_of(out).wrapped(line, indent=indent):
        show(f"{part}\n", out)


def stop_on_signals() -> threading.Event:
    """Ctrl-C and a Pod's shutdown stop cleanly, so that downloads can resume."""
    stop = threading.Event()
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
    return stop
