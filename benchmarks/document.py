"""docs/benchmarks.md: each benchmark replaces its own section and leaves the others alone."""

from __future__ import annotations

import re
from pathlib import Path

FILE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
_HEAD = (
    "# Benchmarks\n\nWritten by the benchmarks themselves (`benchmarks/`); change them, not this.\n"
)


def put_section(name: str, text: str, file: Path = FILE) -> None:
    """Write a section between its two markers, at the end where it isn't there yet."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    section = f"{begin}\n{text.strip()}\n{end}"
    document = file.read_text(encoding="utf-8") if file.exists() else _HEAD
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if pattern.search(document):
        document = pattern.sub(lambda _: section, document)
    else:
        document = f"{document.rstrip()}\n\n{section}\n"
    file.write_text(document, encoding="utf-8")
