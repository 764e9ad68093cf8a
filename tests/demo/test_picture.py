"""The README's picture: the checker's current output on the broken volume, except for figures."""

from __future__ import annotations

import html
import re

from demo.picture import PICTURE, make


def words(svg: str) -> list[str]:
    """The picture's lines without their figures, which differ from machine to machine."""
    lines: dict[str, str] = {}
    for y, text in re.findall(r'<text [^>]*?y="([\d.]+)"[^>]*>(.*?)</text>', svg):
        lines[y] = lines.get(y, "") + html.unescape(text).replace("\xa0", " ")
    return [re.sub(r"[\d.,]+", "0", line).strip() for line in lines.values()]


def test_the_picture_of_the_report_is_what_the_checker_says() -> None:
    drawn = words(PICTURE.read_text("utf-8"))
    assert drawn[0] == "$ python0 check_volume0py /workspace"
    assert drawn == words(make()), "run `make picture`"
