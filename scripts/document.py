"""`make docs`: write what the documents hold of the code – codes and settings.

docs/codes.md lists every finding and error code; the README's table lists every setting. Tests
compare both with the code, so run this after adding one.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from pathlib import Path

import bootstrap
import handler
from bootstrap.config import settings_table

ROOT = Path(__file__).resolve().parent.parent
CODES_FILE = ROOT / "docs" / "codes.md"
READMES = (ROOT / "README.md", ROOT / "README.ru.md")
_HEAD = """# Every code

Findings (in the boot report, from the checker, in diagnostics) and job errors (`error_code` in a
reply) share one list. A code never changes its meaning; the sentence beside it, with the actual
values and the fix, may get better. Written by `make docs` from the code.
"""
_BEGIN, _END = "<!-- settings -->\n", "<!-- /settings -->"


def all_codes() -> dict[str, str]:
    """Every code and its meaning, from the `CODES` of all modules."""
    codes: dict[str, str] = {}
    for package in (bootstrap, handler):
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if not module.name.endswith("__main__"):
                codes.update(getattr(importlib.import_module(module.name), "CODES", {}))
    return codes


def codes_document() -> str:
    """docs/codes.md: a table for each family, in order of the alphabet."""
    families: dict[str, list[str]] = {}
    for code, meaning in sorted(all_codes().items()):
        families.setdefault(code.split(".")[0], []).append(f"| `{code}` | {meaning} |")
    tables = [
        f"\n## {family}\n\n| code | meaning |\n|---|---|\n" + "\n".join(rows) + "\n"
        for family, rows in families.items()
    ]
    return _HEAD + "".join(tables)


def with_settings(readme: str) -> str:
    """The text of a README with the present table of settings between its two markers."""
    before, begin, rest = readme.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    return f"{before}{begin}{settings_table()}\n{end}{after}" if end else readme


def main() -> int:
    """Write all documents that are made from code."""
    CODES_FILE.write_text(codes_document(), "utf-8")
    for readme in READMES:
        if readme.exists():
            readme.write_text(with_settings(readme.read_text("utf-8")), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
