"""A worker's previews: shown if the terminal can show pictures, and the last one saved.

Kitty's protocol (kitty, Ghostty, WezTerm, Konsole) and sixel (foot, mlterm, mintty and others) are
detected by the terminal's variables; both need Pillow. The picture is decoded and re-encoded, so
that no server data reaches the terminal unchanged.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from scripts.saving import created

_HEAD = "data:image/jpeg;base64,"
_MOST_CHARACTERS = 1_000_000
_JPEG = b"\xff\xd8\xff"
_KITTY_CHUNK = 4096
_MOST_SIDE = 512
_COLOURS = 64


class Previews:
    """One job's previews."""

    def __init__(self, env: Mapping[str, str], terminal: bool) -> None:
        self._protocol = protocol_of(env) if terminal else None
        self._last = b""

    def drawn(self, output: Any) -> str:
        """The escape sequences for the preview in a job's output; empty if there is no new one, or
        the terminal cannot show it."""
        image = image_in(output)
        if image is None or image == self._last:
            return ""
        self._last = image
        return drawn(image, self._protocol)

    def save(self, folder: Path) -> Path | None:
        """The last one as `preview.jpg`, or the next name that is free; None without any. Raises
        OSError."""
        if not self._last:
            return None
        folder.mkdir(parents=True, exist_ok=True)
        place, file = created(folder, "preview.jpg")
        with file:
            file.write(self._last)
        return place


def image_in(output: Any) -> bytes | None:
    """The JPEG of a progress update."""
    text = output.get("preview") if isinstance(output, Mapping) else None
    if not isinstance(text, str) or not text.startswith(_HEAD) or len(text) > _MOST_CHARACTERS:
        return None
    try:
        image = base64.b64decode(text[len(_HEAD) :], validate=True)
    except binascii.Error:
        return None
    return image if image.startswith(_JPEG) else None


def protocol_of(env: Mapping[str, str]) -> str | None:
    """`kitty` or `sixel`, by the terminal's variables; None if neither."""
    term, program = env.get("TERM", ""), env.get("TERM_PROGRAM", "").lower()
    if "TMUX" in env or term.startswith("screen"):  # these pass neither on
        return None
    if "KITTY_WINDOW_ID" in env or "kitty" in term or program in ("wezterm", "ghostty"):
        return "kitty"
    if "KONSOLE_VERSION" in env:
        return "kitty"
    sixel = term.startswith(("foot", "mlterm", "yaft")) or "sixel" in term or program == "mintty"
    return "sixel" if sixel else None


def drawn(image: bytes, protocol: str | None) -> str:
    """The escape sequences for a picture; empty without Pillow, or if it is not a picture."""
    if protocol is None:
        return ""
    try:
        from PIL import Image

        with Image.open(io.BytesIO(image)) as opened:
            if max(opened.size) > _MOST_SIDE:
                return ""
            picture = opened.convert("RGB")
    except Exception:  # noqa: BLE001  # no Pillow, or not a picture: there is the line of text
        return ""
    return "".join(_kitty(picture) if protocol == "kitty" else _sixel(picture)) + os.linesep


def _kitty(picture: Any) -> Iterator[str]:
    """https://sw.kovidgoyal.net/kitty/graphics-protocol/: PNG in chunks of base64."""
    made = io.BytesIO()
    picture.save(made, "PNG")
    text = base64.b64encode(made.getvalue()).decode()
    chunks = [text[at : at + _KITTY_CHUNK] for at in range(0, len(text), _KITTY_CHUNK)]
    for number, chunk in enumerate(chunks):
        head = "a=T,f=100,q=2," if number == 0 else ""
        yield f"\033_G{head}m={int(number + 1 < len(chunks))};{chunk}\033\\"


def _sixel(picture: Any) -> Iterator[str]:
    """https://vt100.net/docs/vt3xx-gp/chapter14.html: bands of six rows, each colour by itself."""
    small = picture.quantize(_COLOURS)
    palette, pixels = small.getpalette(), small.load()
    yield "\033Pq"
    for index in range(len(palette) // 3):
        red, green, blue = (round(v / 2.55) for v in palette[3 * index : 3 * index + 3])
        yield f"#{index};2;{red};{green};{blue}"
    for top in range(0, small.height, 6):
        rows = range(top, min(top + 6, small.height))
        bits: dict[int, list[int]] = {}
        for row in rows:
            for column in range(small.width):
                line = bits.setdefault(pixels[column, row], [0] * small.width)
                line[column] |= 1 << (row - top)
        for index, line in bits.items():
            yield f"#{index}{''.join(chr(63 + six) for six in line)}$"
        yield "-"
    yield "\033\\"
