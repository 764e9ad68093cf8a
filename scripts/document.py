"""`make docs`: write what the documents hold of the code: codes, settings, a chart.

Hand-written text stays; what stands between two markers is replaced. Tests compare all of it with
the code, so run this after adding a code or a setting, or after a benchmark.
"""

from __future__ import annotations

import fnmatch
import importlib
import json
import pkgutil
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import bootstrap
import handler
from bootstrap.config import settings_table
from scripts.chart import LANGUAGES, cold_starts
from scripts.errors import CODES

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
TROUBLESHOOTING = (DOCS / "troubleshooting.md", DOCS / "troubleshooting.ru.md")
SETTINGS = (DOCS / "settings.md", DOCS / "settings.ru.md")
_RUSSIAN = DOCS / "settings.ru.json"
_RUSSIAN_CODES = DOCS / "codes.ru.json"
_CODES = re.compile(r"(<!-- codes: ([^\n<>]*) -->\n)(?:(?!<!--).)*(<!-- /codes -->\n)", re.DOTALL)
_SETTINGS = re.compile(r"(<!-- settings -->\n)(?:(?!<!--).)*(<!-- /settings -->\n)", re.DOTALL)


def all_codes() -> dict[str, str]:
    """Every code and its meaning, from the `CODES` of all modules, the client's too."""
    codes = dict(CODES)
    for package in (bootstrap, handler):
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if not module.name.endswith("__main__"):
                codes.update(getattr(importlib.import_module(module.name), "CODES", {}))
    return codes


def russian_codes() -> dict[str, str]:
    """Every code's meaning in Russian."""
    codes: dict[str, str] = json.loads(_RUSSIAN_CODES.read_text("utf-8"))
    return codes


def with_codes(page: str, codes: Mapping[str, str]) -> str:
    """The troubleshooting page with a table under each section of the codes that its marker names.

    A code goes where its pattern is the longest; each row is an anchor, which links lead to.
    """
    patterns = [pattern for found in _CODES.finditer(page) for pattern in found[2].split()]
    home = {code: _nearest(code, patterns) for code in codes}

    def table(found: re.Match[str]) -> str:
        here = [code for code in sorted(codes) if home[code] in found[2].split()]
        rows = [f'| <a id="{code}"></a>`{code}` | {codes[code]} |' for code in here]
        return "\n".join([f"{found[1]}\n| | |\n|---|---|", *rows, f"\n{found[3]}"])

    return _CODES.sub(table, page)


def with_settings(page: str, russian: bool) -> str:
    """A settings page with the present table between its two markers."""
    table = settings_table()
    if russian:
        words = json.loads(_RUSSIAN.read_text("utf-8"))
        table = "\n".join(_translated(table.splitlines(), words))
    return _SETTINGS.sub(lambda found: f"{found[1]}\n{table}\n\n{found[2]}", page)


def documents() -> dict[Path, str]:
    """Every file that holds something of the code, as it should be now."""
    starts = (DOCS / "benchmarks.md").read_text("utf-8")
    pages = {
        page: with_codes(page.read_text("utf-8"), codes)
        for page, codes in zip(TROUBLESHOOTING, (all_codes(), russian_codes()), strict=True)
    }
    pages |= {
        page: with_settings(page.read_text("utf-8"), page.name.endswith(".ru.md"))
        for page in SETTINGS
    }
    charts = {
        DOCS / "images" / f"cold-starts{end}.svg": cold_starts(starts, language)
        for language, end in LANGUAGES.items()
    }
    return pages | charts


def main() -> int:
    """Write all documents that are made from code."""
    for path, text in documents().items():
        path.write_text(text, "utf-8")
    return 0


def _nearest(code: str, patterns: list[str]) -> str:
    fitting = [p for p in patterns if fnmatch.fnmatchcase(code, p)]
    return max(fitting, key=lambda p: (p == code, len(p)), default="")


def russian(cell: str, words: Mapping[str, str]) -> str:
    """A cell of the table in Russian; KeyError for one that docs/settings.ru.json does not have."""
    if found := re.fullmatch(r"a (whole )?number from (\S+) to (\S+)", cell):
        low, high = (bound.replace(",", "\u00a0") for bound in (found[2], found[3]))
        return f"{'целое число' if found[1] else 'число'} от {low} до {high}"
    if re.fullmatch(r"(`[^`]+` or )*`[^`]+`", cell):
        return " или ".join(cell.replace("` or `", "`, `").rsplit(", ", 1))
    return cell if re.fullmatch(r"[\w.–-]*", cell) and cell not in words else words[cell]


def _translated(rows: list[str], words: Mapping[str, str]) -> Iterator[str]:
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        yield f"| {' | '.join(russian(cell, words) for cell in cells)} |"


if __name__ == "__main__":
    sys.exit(main())
