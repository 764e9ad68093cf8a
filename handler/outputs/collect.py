"""Turns what a job produced into results: found on disk, described, in the requested format."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo

from bootstrap.core.files import open_regular
from handler.common.errors import JobError
from handler.common.media_types import HEAD_BYTES, kind_of, mime_type
from handler.outputs.local_files import LocalFiles, stamp_from, stamp_of
from handler.outputs.results import (
    NO_OUTPUT,
    DeliveryOptions,
    Produced,
    ProducedFile,
    ProducedText,
    Result,
)
from handler.outputs.volume_store import tagged
from handler.request.fields import OutputOptions

_SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
# Where ComfyUI itself puts them in WebP, and its editor reads them.
_EXIF_PLACES = {"prompt": 0x0110, "workflow": 0x010F}
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # the same results give the same file
_BLOCK = 1024 * 1024
_PNG_LEVEL = 4  # as ComfyUI saves


class NotWritten(Exception):
    """A picture cannot be converted; `str()` is the reason."""


def rewritten(source: Path, folder: Path, options: OutputOptions) -> Path | None:
    """A new file in `folder` in the requested format; None if `source` already is. Raises
    NotWritten if Pillow cannot read it, and for animations, which would lose frames.
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
            _save(picture, target, form, same, options)
            return target
    except NotWritten:
        raise
    except Exception as problem:  # noqa: BLE001  # Pillow's readers raise anything
        raise NotWritten(f"{type(problem).__name__}: {problem}"[:200]) from None


def _save(picture: Any, target: Path, form: str, same: bool, options: OutputOptions) -> None:
    texts = _texts(picture) if options.metadata else {}
    if form == "png":
        info = PngInfo()
        for key, value in texts.items():
            info.add_text(key, value)
        picture.save(target, "PNG", compress_level=_PNG_LEVEL, pnginfo=info)
        return
    exif = _exif(picture, texts) if options.metadata else Image.Exif()
    if form == "jpeg":
        quality: int | str = "keep" if same else options.quality
        _flat(picture).save(target, "JPEG", quality=quality, exif=exif)
        return
    lossless = options.quality == 100 or same
    picture.save(target, "WEBP", quality=options.quality, lossless=lossless, exif=exif)


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


@dataclass
class CollectedOutputs:
    """Results, each file once, in the order of their nodes; the reported files; warnings about
    others."""

    results: list[Result] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def for_each_node(self) -> list[tuple[str, Result]]:
        """(node id, result) for all nodes in order; a file that two reported appears twice, as in
        worker-comfyui."""
        places = [(r.place, r.node_id, r) for r in self.results]
        places += [(place, node, r) for r in self.results for place, node in r.repeats]
        return [(node, r) for _, node, r in sorted(places, key=lambda item: item[0])]


def collect_outputs(
    produced: Iterable[Produced], files: LocalFiles, job_tag: str
) -> CollectedOutputs:
    """Find everything. Raises JobError if files were reported and none of them is on disk."""
    found = CollectedOutputs()
    by_file: dict[Path, Result] = {}
    missing: list[str] = []
    items = list(produced)
    for place, item in enumerate(items):
        if isinstance(item, ProducedText):
            found.results.append(Result(item.node_id, "text", text=item.text, place=place))
            continue
        local = files.find(item)
        if local is not None and local in by_file:
            _repeat(by_file[local], item.node_id, place)
            continue
        try:
            result = None if local is None else _result(item, local, files, job_tag)
        except OSError:  # removed, or replaced by something other than a file
            result = None
        if local is None or result is None:
            missing += [] if item.guessed else [item.filename]
        else:
            result.place = place
            by_file[local] = result
            found.results.append(result)
    found.files = list(by_file)
    if missing and not found.results:
        raise JobError(
            "job.result_missing",
            f"ComfyUI reported {', '.join(missing[:5])}, but no such file is on disk.",
            "Send the job again; if it stays, a custom node saves somewhere else than it says.",
            files=missing,
        )
    found.warnings = [f"{name} was reported by ComfyUI but is not on disk" for name in missing]
    if items and not found.results:
        found.warnings.append(NO_OUTPUT)
    return found


def _repeat(result: Result, node_id: str, place: int) -> None:
    """A file that another node has reported; one that a node reports twice counts once."""
    if node_id not in (result.node_id, *(node for _, node in result.repeats)):
        result.repeats.append((place, node_id))


def rewrite(result: Result, options: DeliveryOptions, scratch: Path) -> None:
    """Convert a picture, into a new file below `scratch`."""
    assert result.local is not None
    folder = scratch / result.subfolder
    folder.mkdir(parents=True, exist_ok=True)
    try:
        changed = rewritten(result.local, folder, options.output)
    except NotWritten as problem:
        result.warnings.append(f"{result.filename} is returned as it was saved: {problem}")
        return
    if changed is not None:
        result.filename = tagged(changed.name, options.job_tag)
        result.path = None
        _describe(result, changed)


def write_out(result: Result, job_tag: str, scratch: Path) -> None:
    """Write text into a file."""
    scratch.mkdir(parents=True, exist_ok=True)
    name = f"text_{result.node_id}.txt".replace("/", "_")[-100:]
    local = scratch / name
    local.write_text(result.text or "", "utf-8", "replace")
    result.filename = tagged(name, job_tag)
    result.mime_type, result.size, result.local = "text/plain", local.stat().st_size, local
    result.stamp = stamp_of(local)


def zipped(results: Sequence[Result], job_tag: str, scratch: Path) -> Result:
    """One file with all of them, uncompressed: pictures and video would hardly get smaller."""
    scratch.mkdir(parents=True, exist_ok=True)
    local = scratch / "results.zip"
    with zipfile.ZipFile(local, "w", zipfile.ZIP_STORED) as archive:
        for result in results:
            assert result.local is not None
            place = zipfile.ZipInfo((result.subfolder / result.filename).as_posix(), _ZIP_DATE)
            with (
                open_regular(result.local) as source,
                archive.open(place, "w", force_zip64=True) as target,
            ):
                shutil.copyfileobj(source, target, _BLOCK)
    made = Result(results[0].node_id, "file", filename=tagged(local.name, job_tag))
    made.place, made.contains = results[0].place, list(results)
    _describe(made, local)
    return made


def _result(item: ProducedFile, local: Path, files: LocalFiles, job_tag: str) -> Result:
    inside = local.is_relative_to(files.output)
    result = Result(
        item.node_id,
        "file",
        local,
        source=local,
        filename=tagged(local.name, job_tag),
        subfolder=local.parent.relative_to(files.output) if inside else Path(),
        type="temp" if item.guessed and files.is_temp(local) else item.type,
        path=files.place_on_volume(local),
    )
    if result.path is not None:
        result.filename = local.name
    _describe(result, local)
    return result


def _describe(result: Result, local: Path) -> None:
    """Set type, kind and size from the file itself. Raises OSError."""
    with open_regular(local) as file:
        head = file.read(HEAD_BYTES)
        status = os.fstat(file.fileno())
    result.mime_type = mime_type(head, local.name)
    result.kind = kind_of(result.mime_type)
    result.size, result.stamp = status.st_size, stamp_from(status)
    result.local = local


def deduplicate_names(results: Iterable[Result]) -> None:
    """Make the names unique: `a.png` and `a.webp` may both have become JPEG."""
    seen: set[Path] = set()
    for result in results:
        if result.local is None:
            continue
        name, number = Path(result.filename), 1
        while result.subfolder / result.filename in seen:
            number += 1
            result.filename = f"{name.stem}-{number}{name.suffix}"
        seen.add(result.subfolder / result.filename)
