"""The client's previews: shown by known protocols, saved, and never passed on as they came."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from scripts.preview import Previews, drawn, image_in, protocol_of


def jpeg(side: int = 40, colour: str = "red") -> bytes:
    made = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(made, "JPEG", quality=95)
    return made.getvalue()


def update(image: bytes) -> dict[str, Any]:
    text = base64.b64encode(image).decode()
    return {"stage": "running", "preview": f"data:image/jpeg;base64,{text}"}


@pytest.mark.parametrize(
    ("env", "protocol"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm", "KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, "kitty"),
        ({"TERM": "foot"}, "sixel"),
        ({"TERM": "xterm-256color"}, None),
        ({"TERM": "screen-256color", "KITTY_WINDOW_ID": "1"}, None),
        ({}, None),
    ],
)
def test_the_terminal_says_how_it_shows_pictures(env: dict[str, str], protocol: str | None) -> None:
    assert protocol_of(env) == protocol


def test_kitty_gets_a_png_in_chunks() -> None:
    made = io.BytesIO()
    Image.effect_noise((200, 200), 90).convert("RGB").save(made, "JPEG")
    text = drawn(made.getvalue(), "kitty")
    chunks = re.findall(r"\033_G([^;]*);([^\033]*)\033\\", text)
    assert chunks[0][0].startswith("a=T,f=100") and chunks[-1][0].endswith("m=0")
    assert len(chunks) > 1 and all(len(chunk) <= 4096 for _, chunk in chunks)
    picture = Image.open(io.BytesIO(base64.b64decode("".join(chunk for _, chunk in chunks))))
    assert (picture.format, picture.size) == ("PNG", (200, 200))


def test_sixel_draws_each_pixel() -> None:
    image = Image.new("RGB", (20, 13), "red")
    image.paste("blue", (10, 0, 20, 13))
    made = io.BytesIO()
    image.save(made, "PNG")
    assert pixels(drawn(made.getvalue(), "sixel"), 20, 13) == list(image.getdata())


def pixels(text: str, width: int, height: int) -> list[tuple[int, ...]]:
    """What a terminal would show."""
    body = text[text.index("\033Pq") + 3 : text.index("\033\\")]
    palette: dict[int, tuple[int, ...]] = {}
    shown: list[list[tuple[int, ...]]] = [[(0, 0, 0)] * width for _ in range(height)]
    top = column = current = 0
    for token in re.findall(r"#\d+(?:;2;\d+;\d+;\d+)?|[$-]|[?-~]", body):
        if token.startswith("#"):
            number, *colour = re.findall(r"\d+", token)
            current = int(number)
            if colour:
                palette[current] = tuple(round(int(v) * 2.55) for v in colour[1:])
        elif token == "$":
            column = 0
        elif token == "-":
            top, column = top + 6, 0
        else:
            for row in range(6):
                if (ord(token) - 63) >> row & 1:
                    shown[top + row][column] = palette[current]
            column += 1
    return [pixel for row in shown for pixel in row]


@pytest.mark.parametrize(
    "output",
    [
        None,
        "text",
        {"preview": 7},
        {"preview": "data:image/png;base64,iVBORw0KGgo="},
        {"preview": "data:image/jpeg;base64,\033]0;evil\007"},
        {"preview": "data:image/jpeg;base64," + base64.b64encode(b"\033[2Jevil").decode()},
        {"preview": "data:image/jpeg;base64," + "A" * 2_000_000},
    ],
)
def test_what_is_not_a_preview_is_not_taken_for_one(output: Any) -> None:
    assert image_in(output) is None


def test_a_broken_or_large_picture_is_not_drawn() -> None:
    assert drawn(b"\xff\xd8\xff\033[2J", "kitty") == ""
    assert drawn(jpeg(600), "kitty") == "" and drawn(jpeg(), None) == ""


def test_the_last_one_is_saved_and_no_file_is_replaced(tmp_path: Path) -> None:
    previews = Previews({"TERM": "xterm-kitty"}, True)
    assert previews.save(tmp_path) is None
    assert previews.drawn(update(jpeg(40, "red")))
    assert previews.drawn(update(jpeg(40, "red"))) == "", "shown already"
    previews.drawn(update(jpeg(40, "blue")))
    previews.drawn({"stage": "delivering"})
    (tmp_path / "preview.jpg").write_bytes(b"mine")
    place = previews.save(tmp_path)
    assert place is not None and place.read_bytes() == jpeg(40, "blue")
    assert (tmp_path / "preview.jpg").read_bytes() == b"mine"


def test_off_a_terminal_nothing_is_drawn() -> None:
    assert Previews({"TERM": "xterm-kitty"}, False).drawn(update(jpeg())) == ""
