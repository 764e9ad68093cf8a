"""Makes a venv's archive on the volume from what a start has opened, for the next start.

    .comfyui-worker/python/<venv>.venv      one for each venv; replaced as a whole

Of several workers one does this, by a lease; without working leases the last one wins.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bootstrap.core.files import Disk, open_regular, replacing
from bootstrap.core.temp_files import Lease, look_at_leftover
from bootstrap.environment.venv_mirror.archive import Content, PackedFile, write_archive
from bootstrap.environment.venv_mirror.layout import (
    LARGE,
    FileState,
    ListedFolder,
    MirrorTree,
    is_fresh,
    source_of,
    with_deferred_folders,
)

#: Days that an archive is kept after the last start that used it.
KEPT_DAYS = 30
_NAME = re.compile(r"[0-9a-f]{24}\.venv")
# A file that changed just before it was read may change again within the same tick of the volume's
# clock, a second on some file systems (git calls that "racily clean").
_SETTLED_NS = 10 * 1_000_000_000
_LOOK_EVERY = 0.5
_HEADER = 16


@dataclass(frozen=True)
class OpenedPaths:
    """Paths below site-packages: files that processes opened, in order, libraries that they mapped,
    folders that they listed."""

    files: tuple[str, ...]
    mapped: tuple[str, ...]
    folders: tuple[str, ...]


def archive_at(store: Path, venv: Path, tag: str) -> Path:
    """Where the archive of a venv is kept, independent of the mount point."""
    where = os.path.relpath(os.path.realpath(venv), os.path.realpath(store))
    return store / f"{hashlib.sha256(f'{where} {tag}'.encode()).hexdigest()[:24]}.venv"


def read_opened(log: Path, site: Path, source: Path) -> OpenedPaths:
    """What the hook has noted so far. Raises OSError."""
    files: dict[str, None] = {}
    mapped: dict[str, None] = {}
    folders: dict[str, None] = {}
    text = log.read_text(encoding="utf-8", errors="surrogateescape")
    for kind, _, value in (line.partition(" ") for line in text.split("\n")):
        if kind == "open":
            files.update(dict.fromkeys(_below(value, site, source)))
        elif kind == "list":
            folders.update(dict.fromkeys(_below(value, site, source)))
        elif kind == "process" and value.isdigit():
            for path in _mapped_by(int(value)):
                mapped.update(dict.fromkeys(_below(path, site, source)))
    return OpenedPaths(tuple(files), tuple(mapped), tuple(folders))


@dataclass(frozen=True)
class ArchiveWriter:
    """Writes an archive; `tree` is what the mirror at `site` has of `source`."""

    source: Path
    site: Path
    tree: MirrorTree

    def write(self, wanted: Iterable[str], archive: Path, timeout: float) -> int:
        """Write the archive, complete or not at all; the number of files, 0 if another worker has
        just made one. Raises OSError."""
        end = time.monotonic() + timeout
        archive.parent.mkdir(parents=True, exist_ok=True)
        before = _change_of(archive)
        lease = Lease(archive.parent, archive.name, Disk())
        if not lease.wait(timeout, _LOOK_EVERY):
            raise TimeoutError(f"another worker is still at {archive}")
        try:
            if _change_of(archive) != before:
                return 0
            return self._write(wanted, archive, end)
        finally:
            lease.release()

    def _write(self, wanted: Iterable[str], archive: Path, end: float) -> int:
        with replacing(archive) as part, open(part, "xb") as file:
            now = os.fstat(file.fileno()).st_mtime_ns
            contents = self._contents(wanted, now - _SETTLED_NS, end)
            count = write_archive(file, contents, self._tree_of)
            file.flush()
            os.fsync(file.fileno())
        sweep(archive)
        return count

    def _tree_of(self, files: Sequence[PackedFile]) -> MirrorTree:
        """All folders with a needed file. Bytecode that this worker has compiled is included
        although it is not on the volume."""
        folders = dict(self.tree.folders)
        for path in (packed.path for packed in files if not self.tree.holds(packed.path)):
            parent, name = os.path.split(path)
            folder = folders.get(parent, ListedFolder(0))
            folders[parent] = ListedFolder(folder.mtime_ns, folder.files | {name}, folder.links)
        whole = MirrorTree(folders, large=self.tree.large, deferred=self.tree.deferred)
        return with_deferred_folders(whole, [*(packed.path for packed in files), *whole.large])

    def _contents(self, wanted: Iterable[str], settled: int, end: float) -> Iterator[Content]:
        """Each file once. Bytecode comes with its source, which decides whether it is valid."""
        sources: dict[str, FileState | None] = {}
        for path in wanted:
            if time.monotonic() > end:
                raise TimeoutError("writing the archive took too long")
            source = source_of(path) or path
            if source not in sources:
                content = self._content(source)
                fit = content is not None and content[0].stamp.mtime_ns <= settled
                sources[source] = content[0].stamp if content is not None and fit else None
                if content is not None and fit:
                    yield content
            stamp = sources[source]
            compiled = self._bytecode(path, stamp) if path != source and stamp else None
            if compiled is not None:
                yield compiled

    def _content(self, path: str) -> Content | None:
        """From the mirror, if the file was copied there; else from the volume."""
        if not self.tree.holds(path):
            return None
        stamp = self.tree.copied.get(path)
        found = _read(self.site / path) if stamp is not None else None
        if stamp is None or found is None or not found[0].same_content(stamp):
            found = _read(self.source / path)
        if found is None or found[0].size != len(found[1]):
            return None
        return PackedFile(path, found[0], True), found[1]

    def _bytecode(self, path: str, source: FileState) -> Content | None:
        """The bytecode of this version of a source file, whoever compiled it."""
        found = _read(self.site / path)
        if found is None or not is_fresh(found[1][:_HEADER], source):
            return None
        return PackedFile(path, FileState(len(found[1]), source.mtime_ns), False), found[1]


def sweep(kept: Path) -> None:
    """Remove archives that no start has used for `KEPT_DAYS` (of deleted venvs), and partial ones
    of killed workers. Raises OSError."""
    now = kept.stat().st_mtime
    for path in list(kept.parent.iterdir()):
        leftover = look_at_leftover(str(path), now)
        half = leftover is not None and leftover.stale and leftover.removable
        if half or (path != kept and _is_forgotten(path, now)):
            path.unlink(missing_ok=True)


def _is_forgotten(path: Path, now: float) -> bool:
    if not _NAME.fullmatch(path.name):
        return False
    with contextlib.suppress(FileNotFoundError):
        return now - path.lstat().st_mtime > KEPT_DAYS * 24 * 3600
    return False


def _below(path: str, site: Path, source: Path) -> list[str]:
    """The path below site-packages, the mirror's or the volume's; None for any other path."""
    for root in (f"{site}/", f"{source}/"):
        if path.startswith(root):
            return [os.path.normpath(path[len(root) :])]
    return []


def _mapped_by(process: int) -> Iterator[str]:
    with contextlib.suppress(OSError), open(f"/proc/{process}/maps", errors="replace") as maps:
        for line in maps:
            yield f"/{line.rstrip().partition('/')[2]}"


def _read(path: Path) -> tuple[FileState, bytes] | None:
    """A file that is small enough, with its stamp from before the read."""
    try:
        with open_regular(path) as file:
            found = os.fstat(file.fileno())
            if found.st_size >= LARGE:
                return None
            return FileState.of(found), file.read()
    except OSError:
        return None


def _change_of(archive: Path) -> tuple[int, int] | None:
    try:
        found = archive.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_size
