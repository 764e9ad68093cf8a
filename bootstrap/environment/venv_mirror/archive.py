"""One file on the volume with what ComfyUI's start reads of a venv: read in large pieces in
parallel, where thousands of small files would cost several round trips each.

    the files one after another, in blocks of 4 MB
    index: JSON, compressed
    magic, length of the index, its checksum

The index has everything in site-packages with modification times, by which a start sees what has
changed (unpack.py). No name in it can lead out of the mirror.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from bootstrap.core.files import open_regular
from bootstrap.environment.venv_mirror.layout import FileState, ListedFolder, MirrorTree

_TRAILER = struct.Struct("<8sQI")
_MAGIC = b"venv-1\r\n"
_LIKELY_INDEX = 1 << 20  # read at once, bytes
_MOST_INDEX = 256 << 20  # unpacked, bytes; 1 MB for 30,000 names
_BLOCK = 4 << 20
_NAME_BYTES = 255


class DamagedArchive(Exception):
    """Cannot be used; the message completes "… cannot be used: …"."""


class PackedFile(NamedTuple):
    """One file: `path` below site-packages. One that is not `checked` is bytecode, which is valid
    if its source is."""

    path: str
    stamp: FileState
    checked: bool


@dataclass(frozen=True)
class Block:
    """Consecutive files from `offset` on; `checksum` is their CRC-32."""

    offset: int
    size: int
    checksum: int
    files: tuple[PackedFile, ...]


@dataclass(frozen=True)
class Archive:
    """An open archive. `tree` has all folders and large files; nothing is copied yet."""

    tree: MirrorTree
    blocks: tuple[Block, ...]

    @property
    def files(self) -> list[PackedFile]:
        """All files, in the order in which they were needed."""
        return [packed for block in self.blocks for packed in block.files]

    @property
    def bytes(self) -> int:
        """Size of all files together."""
        return sum(block.size for block in self.blocks)


Content = tuple[PackedFile, bytes]


def write_archive(
    file: BinaryIO,
    contents: Iterable[Content],
    tree_of: Callable[[Sequence[PackedFile]], MirrorTree],
) -> int:
    """Write an archive of the files in `contents`, each of its stamp's size, and of the tree around
    them; the number of files. Raises OSError, and what its arguments raise."""
    blocks = [_write_block(file, group) for group in _grouped(contents)]
    files = [packed for block in blocks for packed in block.files]
    text = json.dumps(_as_data(tree_of(files), blocks))
    index = zlib.compress(text.encode("ascii"), 6)
    file.write(index + _TRAILER.pack(_MAGIC, len(index), zlib.crc32(index)))
    return len(files)


def read_archive(path: Path) -> Archive:
    """The index of an archive. Raises DamagedArchive, OSError."""
    packed, data_size = _read_index(path)
    archive = _understood(_unpacked(packed))
    if data_size != archive.bytes:
        raise DamagedArchive("it is cut off")
    return archive


def _read_index(path: Path) -> tuple[bytes, int]:
    """The packed index, and the number of bytes before it."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(0, size - _LIKELY_INDEX))
        end = file.read(_LIKELY_INDEX)
        if len(end) < _TRAILER.size:
            raise DamagedArchive("it is cut off")
        magic, length, checksum = _TRAILER.unpack(end[-_TRAILER.size :])
        begin = size - _TRAILER.size - length
        if magic != _MAGIC or begin < 0:
            raise DamagedArchive("it is of another version, or cut off")
        if length + _TRAILER.size > len(end):
            file.seek(begin)
            end = file.read(length + _TRAILER.size)
    packed = end[-_TRAILER.size - length : -_TRAILER.size]
    if zlib.crc32(packed) != checksum:
        raise DamagedArchive("its index is damaged")
    return packed, begin


def _unpacked(packed: bytes) -> Any:
    """Limited: a few MB of compressed zeros can become many GB."""
    try:
        unpacking = zlib.decompressobj()
        text = unpacking.decompress(packed, _MOST_INDEX)
        if not unpacking.eof:
            raise DamagedArchive("its index is too long")
        return json.loads(text)
    except (zlib.error, ValueError, RecursionError) as problem:
        raise DamagedArchive("its index is damaged") from problem


def _grouped(contents: Iterable[Content]) -> Iterator[list[Content]]:
    group: list[Content] = []
    size = 0
    for packed, data in contents:
        if group and size + len(data) > _BLOCK:
            yield group
            group, size = [], 0
        group.append((packed, data))
        size += len(data)
    if group:
        yield group


def _write_block(file: BinaryIO, group: Sequence[Content]) -> Block:
    data = b"".join(content for _, content in group)
    file.write(data)
    return Block(0, len(data), zlib.crc32(data), tuple(packed for packed, _ in group))


def _as_data(tree: MirrorTree, blocks: Iterable[Block]) -> dict[str, Any]:
    return {
        "folders": {p: [f.mtime_ns, sorted(f.files), f.links] for p, f in tree.folders.items()},
        "large": tree.large,
        "late": sorted(tree.deferred),
        "blocks": [
            [b.checksum, [[p.path, *p.stamp, int(p.checked)] for p in b.files]] for b in blocks
        ],
    }


def _understood(data: Any) -> Archive:
    try:
        tree = MirrorTree(
            {
                path: ListedFolder(int(mtime), set(files), dict(links))
                for path, (mtime, files, links) in data["folders"].items()
            },
            large={path: int(size) for path, size in data["large"].items()},
            deferred=set(data["late"]),
        )
        _check_names(tree)
        archive = Archive(tree, tuple(_blocks(data["blocks"])))
    except (KeyError, ValueError, TypeError, AttributeError) as problem:
        raise DamagedArchive(f"its index could not be parsed ({problem})") from problem
    strangers = [p.path for p in archive.files if not tree.holds(p.path)]
    strangers += [path for path in tree.large if not tree.holds(path)]
    if strangers:
        raise DamagedArchive(f"its index does not list {strangers[0]!r}")
    return archive


def _blocks(data: Any) -> Iterator[Block]:
    offset = 0
    for checksum, rows in data:
        files = tuple(
            PackedFile(path, FileState(size, mtime, mode & 0o777), bool(checked))
            for path, size, mtime, mode, checked in rows
        )
        size = sum(_size(packed) for packed in files)
        yield Block(offset, size, checksum, files)
        offset += size


def _size(packed: PackedFile) -> int:
    if packed.stamp.size < 0:
        raise ValueError(f"{packed.path!r} has {packed.stamp.size} bytes")
    return packed.stamp.size


def _check_names(tree: MirrorTree) -> None:
    """Every name is a single path component, every folder's parent is listed, and no name is both
    file and folder, so everything stays inside the mirror."""
    folders = tree.folders.keys() | tree.deferred
    for path in folders:
        parent, _, name = path.rpartition("/")
        if path and (parent not in tree.folders or not _is_name(name)):
            raise ValueError(f"folder {path!r}")
    for path, folder in tree.folders.items():
        for name in (*folder.files, *folder.links):
            if not _is_name(name) or (f"{path}/{name}" if path else name) in folders:
                raise ValueError(f"name {name!r}")
        if not folder.files.isdisjoint(folder.links):
            raise ValueError(f"folder {path!r}")
    if "" not in tree.folders or not tree.deferred.isdisjoint(tree.folders):
        raise ValueError("no root, or a folder that is two")


def _is_name(name: str) -> bool:
    unfit = name in ("", ".", "..") or "/" in name or "\0" in name
    return not unfit and len(os.fsencode(name)) <= _NAME_BYTES
