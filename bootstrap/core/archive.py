"""Unpacks a zip file from elsewhere into a folder of plain files, or refuses it.

Whatever the archive claims, no name leads out of the folder, only files and folders are created,
and no more bytes are written, or read for its list of contents, than are allowed.
"""

from __future__ import annotations

import io
import os
import posixpath
import stat
import unicodedata
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from bootstrap.core.text import printable

_LONGEST_NAME = 200  # bytes of one component
_LONGEST_PATH = 1000  # bytes of all; a system takes 4,095, with the folder's own
_LONGEST_SHOWN = 60
_LONGEST_LIST = 8_000_000  # bytes of the archive's list of contents
_BLOCK = 1024 * 1024
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class BadArchive(Exception):
    """Refused; the text completes "the archive ..."."""


class ArchiveTooLarge(BadArchive):
    """It unpacks to more than is allowed."""


@dataclass(frozen=True)
class Limits:
    """What it may unpack to: `size` in bytes, number of `files`, `depth` of nested folders. With
    `fold`, names that differ only in case are duplicates."""

    size: float
    files: int = 10_000
    depth: int = 10
    fold: bool = True


class Unpacked(NamedTuple):
    """`names` of the files, relative to their folder; the archive's `comment`, where git writes the
    commit."""

    names: list[str]
    comment: str


def unpack(archive: Path, folder: Path, limits: Limits, top: bool = False) -> Unpacked:
    """Unpack into the new folder `folder`. With `top`, a single top-level folder is stripped.
    Raises BadArchive, with parts possibly left in `folder`, and OSError."""
    try:
        with open(archive, "rb") as file, zipfile.ZipFile(_Bounded(file)) as opened:
            members = _without_top(list(_members(opened, limits)), top)
            folder.mkdir(parents=True)
            room = limits.size
            for name, member in members:
                room -= _write(opened, member, folder / name, room, limits.size)
            comment = opened.comment.decode("ascii", "replace").strip()
            return Unpacked([name for name, _ in members], comment)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError) as problem:
        raise BadArchive(f"is not a complete zip file ({problem})") from None
    except zipfile.zlib.error as problem:  # type: ignore[attr-defined]
        raise BadArchive(f"is damaged ({problem})") from None


class _Bounded(io.RawIOBase):
    """Limits a single read to the longest allowed list of contents: the zip module takes the list's
    length from the file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return self._file.seek(offset, whence)
        except OSError:
            raise zipfile.BadZipFile("it points outside itself") from None

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int | None = -1) -> bytes:
        if size is None or size < 0:
            size = _LONGEST_LIST
        if size > _LONGEST_LIST:
            raise zipfile.BadZipFile("its list of contents is too long")
        return self._file.read(size)


Member = tuple[str, zipfile.ZipInfo]


def _members(opened: zipfile.ZipFile, limits: Limits) -> Iterator[Member]:
    """(name, member) of every file, all names checked. Raises BadArchive."""
    listed = opened.infolist()
    if len(listed) > limits.files:
        raise BadArchive(f"has {len(listed)} entries; at most {limits.files} are unpacked")
    files: set[str] = set()
    folders: set[str] = set()
    for member in listed:
        name = _checked(member, limits)
        if member.is_dir():
            continue
        key = name.casefold() if limits.fold else name
        above = {str(folder) for folder in PurePosixPath(key).parents}
        if key in files or key in folders or above & files:
            raise BadArchive(f"has two entries called {_short(name)}")
        files.add(key)
        folders |= above
        yield name, member


def _without_top(members: list[Member], top: bool) -> list[Member]:
    if not top:
        return members
    if len({name.partition("/")[0] for name, _ in members}) != 1:
        raise BadArchive("does not have a single top-level folder")
    inside = [(name.partition("/")[2], member) for name, member in members]
    if not all(name for name, _ in inside):
        raise BadArchive("has one file and no folder")
    return inside


def _checked(member: zipfile.ZipInfo, limits: Limits) -> str:
    name = unicodedata.normalize("NFC", member.filename).rstrip("/")
    mode = member.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise BadArchive(f"holds {_short(name)}, which is a link or a device")
    if member.flag_bits & 0x1:
        raise BadArchive("is encrypted")
    if member.compress_type not in _METHODS:
        raise BadArchive(f"compresses {_short(name)} by a method other than deflate")
    parts = name.split("/")
    bad = (
        name != posixpath.normpath(name)
        or name.startswith("/")
        or len(parts) > limits.depth
        or len(name.encode("utf-8", "replace")) > _LONGEST_PATH
        or any(not _is_plain(part) for part in parts)
    )
    if bad:
        raise BadArchive(f"holds {_short(name)}, which is not a plain relative name")
    return name


def _is_plain(part: str) -> bool:
    return (
        part not in ("", ".", "..")
        and not any(c in "\\:\0" or unicodedata.category(c) in ("Cc", "Cs") for c in part)
        and len(part.encode("utf-8", "replace")) <= _LONGEST_NAME
    )


def _write(
    opened: zipfile.ZipFile, member: zipfile.ZipInfo, place: Path, room: float, most: float
) -> int:
    """Write one file; its size in bytes. Raises ArchiveTooLarge when it has more than `room`."""
    place.parent.mkdir(parents=True, exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    written = 0
    with opened.open(member) as source, os.fdopen(os.open(place, flags, 0o644), "wb") as target:
        while block := _some(source):
            written += len(block)
            if written > room:
                raise ArchiveTooLarge(f"unpacks to more than {most / 1e6:g} MB")
            target.write(block)
    return written


def _some(source: Any) -> bytes:
    block: bytes = source.read(_BLOCK)
    return block


def _short(name: str) -> str:
    return f'"{printable(name[:_LONGEST_SHOWN])}"'
