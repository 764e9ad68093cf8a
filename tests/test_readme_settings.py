"""The README tells every setting as the code has it."""

from __future__ import annotations

from pathlib import Path

import pytest

from bootstrap.settings import settings_table

READMES = [Path(__file__).parent.parent / name for name in ("README.md", "README.ru.md")]
START, END = "<!-- settings -->", "<!-- /settings -->"


@pytest.mark.parametrize("readme", READMES, ids=lambda readme: readme.name)
def test_the_table_in_the_readme_is_the_one_the_code_makes(readme: Path) -> None:
    text = readme.read_text("utf-8")
    assert text.count(START) == text.count(END) == 1
    shown = text.partition(START)[2].partition(END)[0].strip()
    assert shown == settings_table(), f"put this between {START} and {END}:\n{settings_table()}"
