"""Pictures in the format and with the metadata that a request asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo

from bootstrap.core.files import open_regular
from handler.output_options import OutputOptions

_SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
# Where ComfyUI itself puts them in WebP, and its editor finds them again.
_EXIF_PLACES = {"prompt": 0x0110, "workflow": 0x010F}
_PNG_LEVEL = 4  # as ComfyUI saves


class NotWritten(Exception):
    """A picture cannot be given the wanted form; `str()` is the reason."""


def rewritten(source: Path, folder: Path, options: OutputOptions) -> Path | None:
    """A new file in `folder` in the wanted form; None when `source` has it already.

    Raises NotWritten for what Pillow does not read, and for animations, which would lose frames.
    """
    try:
        with open_regular(source) as file, Image.open(file) as picture:
            wanted = options.format or (picture.format or "").lower()
            same = wanted == (picture.format or "").lower()
            if same and (options.metadata or not _has_metadata(picture)):
                return None
            if getattr(picture, "n_frames", 1) > 1:
                raise NotWritten("it is an animation")
            if wanted not in _SUFFIXES:
                raise NotWritten(f"{picture.format} cannot be written without loss")
            target = folder / (source.stem + (_SUFFIXES[wanted] if not same else source.suffix))
            _save(picture, target, wanted, same, options)
            return target
    except NotWritten:
        raise
    except Exception as problem:  # noqa: BLE001  # Pillow's readers raise whatever they like
        raise NotWritten(f"{type(problem).__name__}: {problem}"[:200]) from None


def _save(picture: Any, target: Path, wanted: str, same: bool, options: OutputOptions) -> None:
    texts = _texts(picture) if options.metadata else {}
    if wanted == "png":
        info = PngInfo()
        for key, value in texts.items():
            info.add_text(key, value)
        picture.save(target, "PNG", compress_level=_PNG_LEVEL, pnginfo=info)
        return
    exif = _exif(picture, texts) if options.metadata else Image.Exif()
    if wanted == "jpeg":
        quality: int | str = "keep" if same else options.quality
        _flat(picture).save(target, "JPEG", quality=quality, exif=exif)
        return
    lossless = options.quality == 100 or same
    picture.save(target, "WEBP", quality=options.quality, lossless=lossless, exif=exif)


def _has_metadata(picture: Any) -> bool:
    return bool(_texts(picture)) or bool(picture.getexif()) or bool(picture.info.get("xmp"))


def _texts(picture: Any) -> dict[str, str]:
    """The texts of a PNG: ComfyUI's `prompt` and `workflow` among them."""
    if not isinstance(picture, PngImageFile):
        return {}
    return {str(key): str(value) for key, value in picture.text.items()}


def _exif(picture: Any, texts: dict[str, str]) -> Image.Exif:
    exif: Image.Exif = picture.getexif()
    for key, value in texts.items():
        if key in _EXIF_PLACES:
            exif[_EXIF_PLACES[key]] = f"{key}:{value}"
    return exif


def _flat(picture: Any) -> Any:
    """Without transparency, which JPEG has not: on white. The very picture where nothing is to do,
    since only that can be saved again without loss."""
    if picture.mode in ("RGB", "L", "CMYK"):
        return picture
    if "A" in picture.getbands() or "transparency" in picture.info:
        layered = picture.convert("RGBA")
        ground = Image.new("RGBA", layered.size, "white")
        return Image.alpha_composite(ground, layered).convert("RGB")
    return picture.convert("RGB")
