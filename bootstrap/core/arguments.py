"""Command lines: argparse with a guess at what was meant, and help that ends in examples."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

WRONG_USE = 2


class Parser(argparse.ArgumentParser):
    """As argparse's, but a wrong argument is one line, with the nearest right one."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        options.setdefault("allow_abbrev", False)
        super().__init__(*arguments, **options)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and end with `WRONG_USE`."""
        guess = nearest(*self._misspelt(message))
        meant = f" Did you mean {guess}?" if guess else ""
        self.exit(WRONG_USE, f"{self.prog}: {message}.{meant}\nSee {self.prog} --help.\n")

    def _misspelt(self, message: str) -> tuple[str, list[str]]:
        """The word that is wrong, and those that there are."""
        if unknown := re.search(r"unrecognized arguments: (--?[\w-]+)", message):
            return unknown[1], [o for a in self._actions for o in a.option_strings]
        if choice := re.search(r"invalid choice: '([^']*)'", message):
            return choice[1], [str(c) for a in self._actions for c in a.choices or ()]
        return "", []


def nearest(word: str, known: Sequence[str]) -> str:
    """The known word that it most likely stands for; empty where none is near."""
    return next(iter(difflib.get_close_matches(word, known, 1, 0.6)), "")


def closing(variables: Mapping[str, str], examples: Sequence[str], codes: str = "") -> str:
    """The end of a command's help: what it reads, how it is typed, how it ends."""
    parts = []
    if variables:
        width = max(map(len, variables)) + 2
        lines = [f"  {name:<{width}}{text}" for name, text in variables.items()]
        parts.append("\n".join(("environment:", *lines)))
    parts.append("\n".join(("examples:", *(f"  {example}" for example in examples))))
    return "\n\n".join([*parts, codes] if codes else parts)
