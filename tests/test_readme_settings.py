"""The README tells every setting as the code has it."""

from __future__ import annotations

from pathlib import Path

from bootstrap.settings import settings_table

README = Path(__file__).parent.parent / "README.md"
START, END = "<!-- settings -->", "<!-- /settings -->"


def test_the_table_in_the_readme_is_the_one_the_code_makes() -> None:
    text = README.read_text("utf-8")
    assert text.count(START) == text.count(END) == 1
    shown = text.partition(START)[2].partition(END)[0].strip()
    assert shown == settings_table(), f"put this between {START} and {END}:\n{settings_table()}"
