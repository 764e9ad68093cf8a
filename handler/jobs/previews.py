"""Small, infrequent previews for a job's progress."""

from __future__ import annotations

import asyncio
import base64
import io
import struct
import time

from PIL import Image

from handler.common.blocking import Pool, TimeUp
from handler.request.fields import ProgressOptions
from handler.sdk.progress import Progress

_PREVIEW_EVERY = 2.0  # seconds
_CONVERT_SECONDS = 5.0
_MOST_BYTES = 24_000  # of one JPEG; base64 adds a third
_LARGEST_FRAME = 16_000_000  # bytes
_MOST_PIXELS = 64_000_000
# The types of ComfyUI's binary socket messages (server.py, BinaryEventTypes).
_PREVIEW, _PREVIEW_WITH_METADATA = 1, 4


class Previews:
    """The previews of one job. Of frames that come too fast only the newest is used. Call it in the
    event loop."""

    def __init__(self, options: ProgressOptions, progress: Progress, local: Pool) -> None:
        self._options = options
        self._progress = progress
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
            self._progress.preview(f"data:image/jpeg;base64,{encoded}")


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
