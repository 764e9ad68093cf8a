"""Pictures: results in the requested format, and small, infrequent previews while a job runs."""

from __future__ import annotations

import asyncio
import base64
import io
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo

from bootstrap.core.files import open_regular
from handler.common.blocking import Pool, TimeUp
from handler.request.fields import OutputOptions, ProgressOptions

_SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
# Where ComfyUI itself puts them in WebP, and its editor reads them.
_EXIF_PLACES = {"prompt": 0x0110, "workflow": 0x010F}
_PNG_LEVEL = 4  # as ComfyUI saves
_MOST_EXIF = 65_533  # bytes in a JPEG
_LEFT_OUT = "lacks its workflow, for which a JPEG has only 64 KB; png and webp keep it"
_PREVIEW_EVERY = 2.0  # seconds
_CONVERT_SECONDS = 5.0
_MOST_BYTES = 24_000  # of one JPEG; base64 adds a third
_LARGEST_FRAME = 16_000_000  # bytes
_MOST_PIXELS = 64_000_000
# The types of ComfyUI's binary socket messages (server.py, BinaryEventTypes).
_PREVIEW, _PREVIEW_WITH_METADATA = 1, 4


class NotWritten(Exception):
    """A picture cannot be converted; `str()` is the reason."""


def rewritten(source: Path, folder: Path, options: OutputOptions, losses: list[str]) -> Path | None:
    """A new file in `folder` in the requested format; None if `source` already is. What it lacks
    is added to `losses`, as what follows its name in a warning. Raises NotWritten if Pillow cannot
    read it, and for animations, which would lose frames.
    """
    try:
        with open_regular(source) as file, Image.open(file) as picture:
            form = options.format or (picture.format or "").lower()
            same = form == (picture.format or "").lower()
            if same and (options.metadata or not _has_metadata(picture)):
                return None
            if getattr(picture, "n_frames", 1) > 1:
                raise NotWritten("it is an animation")
            if form not in _SUFFIXES:
                raise NotWritten(f"{picture.format} cannot be written without loss")
            target = folder / (source.stem + (_SUFFIXES[form] if not same else source.suffix))
            if _save(picture, target, form, same, options):
                losses.append(_LEFT_OUT)
            return target
    except NotWritten:
        raise
    except Exception as problem:  # noqa: BLE001  # Pillow's readers raise anything
        raise NotWritten(f"{type(problem).__name__}: {problem}"[:200]) from None


def _save(picture: Any, target: Path, form: str, same: bool, options: OutputOptions) -> bool:
    """Was metadata left out because it is too large for the format?"""
    texts = _texts(picture) if options.metadata else {}
    if form == "png":
        info = PngInfo()
        for key, value in texts.items():
            info.add_text(key, value)
        picture.save(target, "PNG", compress_level=_PNG_LEVEL, pnginfo=info)
        return False
    exif = _exif(picture, texts) if options.metadata else Image.Exif()
    if form == "jpeg":
        quality: int | str = "keep" if same else options.quality
        cut = _shorten(exif)
        _flat(picture).save(target, "JPEG", quality=quality, exif=exif)
        return cut
    lossless = options.quality == 100 or same
    picture.save(target, "WEBP", quality=options.quality, lossless=lossless, exif=exif)
    return False


def _has_metadata(picture: Any) -> bool:
    return bool(_texts(picture)) or bool(picture.getexif()) or bool(picture.info.get("xmp"))


def _texts(picture: Any) -> dict[str, str]:
    """A PNG's text chunks, among them ComfyUI's `prompt` and `workflow`."""
    if not isinstance(picture, PngImageFile):
        return {}
    return {str(key): str(value) for key, value in picture.text.items()}


def _exif(picture: Any, texts: dict[str, str]) -> Image.Exif:
    exif: Image.Exif = picture.getexif()
    for key, value in texts.items():
        if key in _EXIF_PLACES:
            exif[_EXIF_PLACES[key]] = f"{key}:{value}"
    return exif


def _shorten(exif: Image.Exif) -> bool:
    """Remove the workflow, and if need be the prompt, where they are too large for a JPEG."""
    before = len(exif)
    for place in ("workflow", "prompt"):
        if len(exif.tobytes()) > _MOST_EXIF:
            exif.pop(_EXIF_PLACES[place], None)
    return len(exif) < before


def _flat(picture: Any) -> Any:
    """On white, since JPEG has no transparency. The same object if nothing changes, since only that
    can be saved without loss."""
    if picture.mode in ("RGB", "L", "CMYK"):
        return picture
    if "A" in picture.getbands() or "transparency" in picture.info:
        layered = picture.convert("RGBA")
        ground = Image.new("RGBA", layered.size, "white")
        return Image.alpha_composite(ground, layered).convert("RGB")
    return picture.convert("RGB")


class Previews:
    """The previews of one job. Of frames that come too fast only the newest is used. Call it in the
    event loop."""

    def __init__(self, options: ProgressOptions, send: Callable[[str], None], local: Pool) -> None:
        """`send` gets each preview as a data URI."""
        self._options = options
        self._send = send
        self._local = local
        self._newest = b""
        self._made_at = -_PREVIEW_EVERY
        self._making: asyncio.Task[None] | None = None

    def on_frame(self, frame: bytes) -> None:
        """Handle a binary socket message. Cheap, and never raises."""
        if not self._options.previews or len(frame) > _LARGEST_FRAME:
            return
        self._newest = frame
        if self._making is None or self._making.done():
            self._making = asyncio.create_task(self._make())

    def end(self) -> None:
        """The job has been computed or has failed: stop."""
        if self._making is not None:
            self._making.cancel()

    async def _make(self) -> None:
        await asyncio.sleep(max(self._made_at + _PREVIEW_EVERY - time.monotonic(), 0.0))
        frame, size = self._newest, self._options.preview_size
        self._made_at = time.monotonic()
        try:
            image = await self._local.run(lambda: small_jpeg(frame, size), _CONVERT_SECONDS)
        except TimeUp:
            return
        if image is not None:
            encoded = base64.b64encode(image).decode()
            self._send(f"data:image/jpeg;base64,{encoded}")


def small_jpeg(frame: bytes, size: int) -> bytes | None:
    """The picture in a frame, at most `size` pixels a side and 24 KB; None if there is none."""
    content = _picture_in(frame)
    if content is None:
        return None
    try:
        with Image.open(io.BytesIO(content)) as opened:
            if opened.width * opened.height > _MOST_PIXELS:
                return None
            opened.draft("RGB", (size, size))
            picture = opened.convert("RGB")
    except Exception:  # noqa: BLE001  # Pillow's readers raise anything; the next frame may be fine
        return None
    for side, quality in ((size, 75), (size, 50), (size // 2, 50), (size // 4, 40)):
        picture.thumbnail((side, side))
        made = io.BytesIO()
        picture.save(made, "JPEG", quality=quality)
        if made.tell() <= _MOST_BYTES:
            return made.getvalue()
    return None


def _picture_in(frame: bytes) -> bytes | None:
    """The picture's bytes after a frame's header: its type, and the format or the length of its
    metadata."""
    if len(frame) < 8:
        return None
    kind, second = struct.unpack_from(">II", frame)
    if kind == _PREVIEW:
        return frame[8:]
    if kind == _PREVIEW_WITH_METADATA and len(frame) > 8 + second:
        return frame[8 + second :]
    return None
