"""Which file in a layer contains a text, to find out how it got there."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

_PIECE = 1 << 24
_SUMS = ("var/lib/dpkg/info/", ".md5sums")


def places(tar: Path, clues: Sequence[str]) -> list[str]:
    """`CLUE in FILE`, each once, for the clues that are anywhere in an uncompressed archive: in a
    file's content, its name, a link's target or the space between.

    A file unchanged from its Debian package reveals nothing about this machine: git's release
    notes, for instance, contain paths that a checkout might have.
    """
    hits = [(clue, at) for clue in clues for at in _offsets(tar, clue.encode())]
    if not hits:
        return []
    with tarfile.open(tar, "r:") as archive:
        members = archive.getmembers()
        shipped = _shipped(archive, members)
        found = {(clue, _owner(members, at)) for clue, at in hits}
        return sorted(
            f"{clue} in {member.name if member else 'the space between files'}"
            for clue, member in found
            if member is None or not _as_shipped(archive, member, shipped)
        )


def _owner(members: Sequence[tarfile.TarInfo], offset: int) -> tarfile.TarInfo | None:
    """The member that the offset belongs to; a member's headers come before its content."""
    ends = ((member.offset_data + member.size, member) for member in members)
    return next((member for end, member in ends if offset < end), None)


def _shipped(archive: tarfile.TarFile, members: Sequence[tarfile.TarInfo]) -> dict[str, str]:
    """File → MD5 of its content, according to the packages that the layer installs."""
    sums: dict[str, str] = {}
    for member in members:
        if member.name.startswith(_SUMS[0]) and member.name.endswith(_SUMS[1]):
            for line in _content(archive, member).decode().splitlines():
                md5, _, name = line.partition("  ")
                sums[name] = md5
    return sums


def _as_shipped(
    archive: tarfile.TarFile, member: tarfile.TarInfo, shipped: Mapping[str, str]
) -> bool:
    if not member.isfile() or member.name not in shipped:
        return False
    return hashlib.md5(_content(archive, member)).hexdigest() == shipped[member.name]


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None
    return file.read()


def _offsets(path: Path, wanted: bytes) -> Iterator[int]:
    """Read a block at a time: the files are gigabytes."""
    with path.open("rb") as file:
        kept, start = b"", 0
        while piece := file.read(_PIECE):
            text = kept + piece
            at = text.find(wanted)
            while at >= 0:
                yield start + at
                at = text.find(wanted, at + 1)
            kept = text[max(0, len(text) - len(wanted) + 1) :]
            start += len(text) - len(kept)
