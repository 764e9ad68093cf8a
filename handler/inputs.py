"""A job's input files -> ComfyUI's input folder, under names no other job uses."""

from __future__ import annotations

import base64
import binascii
import os
import re
import shutil
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from handler.errors import JobError
from handler.requests import InputImage
from handler.workflow import Workflow

_DATA_URI = re.compile(r"data:[\w.+/-]*(?:;[\w=.+-]+)*;base64,", re.IGNORECASE)
_FILE_NAME = re.compile(r"(?P<path>[^\0\n]{1,255}\.[A-Za-z0-9]{2,5})(?: \[input\])?")
_MAX_NAME_BYTES = 200  # leaves room for the job's mark within the 255 of most file systems


def place_images(
    images: Iterable[InputImage], workflow: Workflow, folder: Path, mark: str
) -> list[Path]:
    """Write `images` into `folder` and let `workflow` refer to them; the files written.

    `mark` is a word that only this job uses. All images are decoded before the first is written.
    Raises JobError for bad names and data.
    """
    decoded = [(checked_name(image.name), _decode(image)) for image in images]
    written: list[Path] = []
    for name, content in decoded:
        path = folder / _marked(name, mark)
        written.append(path)
        try:
            path.write_bytes(content)
        except OSError as problem:
            remove(written)
            raise JobError(
                "image.not_stored",
                f"Image {name} could not be written to {folder}: {problem.strerror}.",
                "Give the endpoint a larger container disk, or set WORK_DIR to a larger one.",
            ) from None
        _rename_in(workflow, name, path.name)
    return written


def remove(files: Iterable[Path]) -> None:
    """Delete a job's input files; those already gone don't matter."""
    for file in files:
        file.unlink(missing_ok=True)


def fetch_from_volume(workflow: Workflow, volume_input: Path, folder: Path) -> None:
    """Copy files that the workflow names from the volume's `ComfyUI/input/` into `folder`.

    ComfyUI's input folder is local, and from version 0.28 on it refuses links that lead out of it.
    A file that is not there is left for ComfyUI to complain about. Raises JobError when there is
    no room for a copy.
    """
    root = Path(os.path.realpath(volume_input))
    for node in workflow.values():
        for value in node["inputs"].values():
            match = _FILE_NAME.fullmatch(value) if isinstance(value, str) else None
            if match is None or not _is_text(value):
                continue
            wanted = os.path.normpath(match["path"])
            source = Path(os.path.realpath(root / wanted))
            inside = not wanted.startswith(("/", "../")) and source.is_relative_to(root)
            if inside and os.path.isfile(source):
                _copy_if_newer(source, folder / wanted)


def checked_name(name: str) -> str:
    """`name` in NFC if it is one plain file name. Raises JobError."""
    plain = unicodedata.normalize("NFC", name)
    problem = _problem_with(plain)
    if problem is None:
        return plain
    shown = plain if len(plain) <= 60 else plain[:57] + "…"
    raise JobError(
        "image.bad_name",
        f"The image name {shown!r} {problem}.",
        "Use a plain file name such as photo.png, the one that the workflow's LoadImage names.",
    )


def _problem_with(name: str) -> str | None:
    if "/" in name or "\\" in name:
        return "holds a folder separator"
    if any(unicodedata.category(c) in ("Cc", "Cs") for c in name):
        return "holds a control character"
    if name.strip(". ") == "" or name != name.strip():
        return "is no file name"
    if len(name.encode()) > _MAX_NAME_BYTES:
        return f"has {len(name.encode())} bytes, more than {_MAX_NAME_BYTES}"
    return None


def _decode(image: InputImage) -> bytes:
    head = _DATA_URI.match(image.data[:200])
    text = re.sub(r"\s+", "", image.data[head.end() :] if head else image.data)
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as problem:
        raise JobError(
            "image.bad_base64",
            f"Image {image.name!r} is not valid base64: {problem}.",
            "Encode the file's bytes with standard base64; a data URI head "
            "(data:image/png;base64,) may stand before it.",
        ) from None
    if not content:
        raise JobError("image.no_data", f"Image {image.name!r} is empty.", "Send its content.")
    return content


def _marked(name: str, mark: str) -> str:
    stem, suffix = os.path.splitext(name)
    return f"{stem}-{mark}{suffix}"


def _rename_in(workflow: Workflow, old: str, new: str) -> None:
    for node in workflow.values():
        for key, value in node["inputs"].items():
            if isinstance(value, str) and unicodedata.normalize("NFC", value) == old:
                node["inputs"][key] = new


def _copy_if_newer(source: Path, target: Path) -> None:
    theirs = source.stat()
    if target.exists():
        ours = target.stat()
        if (ours.st_size, ours.st_mtime_ns) == (theirs.st_size, theirs.st_mtime_ns):
            return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)
    except OSError as problem:
        raise JobError(
            "image.not_stored",
            f"{source} could not be copied to {target.parent}: {problem.strerror}.",
            "Give the endpoint a larger container disk, or set WORK_DIR to a larger one.",
        ) from None


def _is_text(value: str) -> bool:
    """No lone surrogates, which no file name on this system can hold."""
    return not any(unicodedata.category(c) == "Cs" for c in value)
