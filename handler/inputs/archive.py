"""A zip file that came with a request -> a folder of plain files, or an error.

Whatever the archive says of itself, no name leads out of the folder, nothing but files and folders
is made, and no more bytes are written, or read for its list of contents, than are allowed.
"""

from __future__ import annotations

import io
import os
import posixpath
import stat
import unicodedata
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from handler.common.errors import JobError, short

_MOST_FILES = 10_000
_MOST_DEPTH = 10
_LONGEST_NAME = 200  # bytes of one component
_LONGEST_LIST = 8_000_000  # bytes of the archive's list of contents
_BLOCK = 1024 * 1024
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_FIX = "Send a plain zip of the files themselves: no links, no passwords, names without `..`."


def unpack(archive: Path, folder: Path, most: float, shown_as: str) -> list[str]:
    """Unpack into `folder`, which is made; the names of the files, relative to it. At most `most`
    bytes are written. Raises JobError, after which parts may be left in `folder`, and OSError."""
    try:
        with open(archive, "rb") as file, zipfile.ZipFile(_Bounded(file)) as opened:
            members = list(_members(opened, shown_as))
            folder.mkdir(parents=True)
            room = most
            for name, member in members:
                room -= _write(opened, member, folder / name, room, most, shown_as)
            return [name for name, _ in members]
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError) as problem:
        raise _refused(shown_as, f"is not a whole zip file ({problem})") from None
    except zipfile.zlib.error as problem:  # type: ignore[attr-defined]
        raise _refused(shown_as, f"is damaged ({problem})") from None


class _Bounded(io.RawIOBase):
    """A file of which nothing longer than a list of contents may be is read at once: the zip
    module takes the list's length from the file."""

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


def _members(opened: zipfile.ZipFile, shown_as: str) -> Iterator[tuple[str, zipfile.ZipInfo]]:
    """(name, member) of every file, all names checked. Raises JobError."""
    listed = opened.infolist()
    if len(listed) > _MOST_FILES:
        raise _refused(shown_as, f"has {len(listed)} entries; at most {_MOST_FILES} are unpacked")
    files: set[str] = set()
    folders: set[str] = set()
    for member in listed:
        name = _checked(member, shown_as)
        if member.is_dir():
            continue
        key = name.casefold()
        above = {str(folder) for folder in PurePosixPath(key).parents}
        if key in files or key in folders or above & files:
            raise _refused(shown_as, f"has two things called {short(name)}")
        files.add(key)
        folders |= above
        yield name, member


def _checked(member: zipfile.ZipInfo, shown_as: str) -> str:
    name = unicodedata.normalize("NFC", member.filename).rstrip("/")
    mode = member.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise _refused(shown_as, f"holds {short(name)}, which is a link or a device")
    if member.flag_bits & 0x1:
        raise _refused(shown_as, "is encrypted")
    if member.compress_type not in _METHODS:
        raise _refused(shown_as, f"packs {short(name)} in a way other than deflate")
    parts = name.split("/")
    bad = (
        name != posixpath.normpath(name)
        or name.startswith("/")
        or len(parts) > _MOST_DEPTH
        or any(not _is_plain(part) for part in parts)
    )
    if bad:
        raise _refused(shown_as, f"holds {short(name)}, which is not a plain relative name")
    return name


def _is_plain(part: str) -> bool:
    return (
        part not in ("", ".", "..")
        and not any(c in "\\:\0" or unicodedata.category(c) in ("Cc", "Cs") for c in part)
        and len(part.encode("utf-8", "replace")) <= _LONGEST_NAME
    )


def _write(
    opened: zipfile.ZipFile,
    member: zipfile.ZipInfo,
    place: Path,
    room: float,
    most: float,
    shown_as: str,
) -> int:
    """Write one file; its size in bytes. Raises JobError when it has more than `room`."""
    place.parent.mkdir(parents=True, exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    written = 0
    with opened.open(member) as source, os.fdopen(os.open(place, flags, 0o644), "wb") as target:
        while block := _some(source):
            written += len(block)
            if written > room:
                raise JobError(
                    "input.too_large",
                    f"{shown_as} unpacks to more than {most / 1e6:g} MB.",
                    "Send less, or raise MAX_INPUT_MB in the endpoint's environment.",
                )
            target.write(block)
    return written


def _some(source: Any) -> bytes:
    block: bytes = source.read(_BLOCK)
    return block


def _refused(shown_as: str, why: str) -> JobError:
    return JobError("input.bad_archive", f"{shown_as} {why}.", _FIX)
