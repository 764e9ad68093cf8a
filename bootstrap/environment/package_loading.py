"""Unpacks a kept package set to local disk: directly into place, in large blocks, in parallel.

ComfyUI need not wait for all of it. Small packages come first; a few large ones may follow while
ComfyUI imports torch, and importing one of them waits. ComfyUI finds them by a sitecustomize.py in
a folder on PYTHONPATH: on PYTHONPATH itself they would come before the standard library, which no
package may hide.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import struct
import tempfile
import threading
import time
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from bootstrap.core.concurrency import WorkerPool
from bootstrap.environment.package_store import (
    AFTER,
    BEFORE,
    BLOCK,
    BadSet,
    Record,
    discard,
    read_contents,
)

_log = logging.getLogger(__name__)

_STREAMS = 8
_HEADER = 30  # of an entry, before its name; APPNOTE.TXT 4.3.7
# Rough costs of a file and a byte on local disk. Groups that take longer come late.
_SECONDS_A_FILE = 2.5e-4
_SECONDS_A_BYTE = 3e-9
_SOON_SECONDS = 0.15


class Loading:
    """Unpacks a kept set into the new folder `folder` on local disk, within `timeout` seconds.

    The constructor returns when what is needed at once is there; `late` are the modules still to
    come. Raises BadSet when the set itself is at fault, and OSError, leaving nothing. `failure` is
    why what came late did not."""

    record: Record

    def __init__(self, kept: Path, folder: Path, timeout: float) -> None:
        self._kept = kept
        self._folder = folder
        self._end = time.monotonic() + timeout
        contents = read_contents(kept)
        self.record = contents.record
        self._parts = contents.parts
        soon, later = _split(contents.entries, contents.groups)
        self.late = frozenset(module for e in later if (module := _module_of(e)))
        self.failure: Exception | None = None
        # A thread that still writes after a failure writes to a place that nothing reads.
        part = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
        try:
            self._unpack(soon, part)
            os.rename(part, folder)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        self._later = later

    def finish(self) -> Exception | None:
        """Unpack the rest; why that failed, if it did. A damaged set is removed from the volume."""
        try:
            self._unpack(self._later, self._folder)
        except (BadSet, OSError) as problem:
            self.failure = problem
            for part, name in {(e.filename.split("/", 1)[0], _top(e)) for e in self._later}:
                shutil.rmtree(self._folder / part / name, ignore_errors=True)  # none, not a half
            _log.warning("%s cannot be used: %s", self._kept, problem)
            if isinstance(problem, BadSet):
                discard(self._kept)
        return self.failure

    def finish_beside(self, arrived: Path) -> None:
        """`finish` in a thread, which then creates the file `arrived`, whatever the outcome."""

        def run() -> None:
            try:
                self.finish()
            finally:
                arrived.touch()

        threading.Thread(target=run, name="package set", daemon=True).start()

    def _unpack(self, entries: Sequence[zipfile.ZipInfo], folder: Path) -> None:
        _make_folders(folder, entries)
        if not entries:
            return
        # A descriptor in use by a hanging volume is left open.
        source = os.open(self._kept, os.O_RDONLY | os.O_CLOEXEC)
        left = self._end - time.monotonic()
        if not WorkerPool(_STREAMS).run(_tasks(source, folder, entries, self._parts), left):
            raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT), str(self._kept))
        os.close(source)


def load(kept: Path, folder: Path, timeout: float) -> Record:
    """Unpack all of a kept set. Raises BadSet, OSError."""
    loading = Loading(kept, folder, timeout)
    problem = loading.finish()
    if problem is not None:
        raise problem
    return loading.record


def _split(
    entries: Sequence[zipfile.ZipInfo], groups: Sequence[Sequence[str]]
) -> tuple[list[zipfile.ZipInfo], list[zipfile.ZipInfo]]:
    """What comes at once, and what may come late: whole groups, if they are costly."""
    of = {name: index for index, names in enumerate(groups) for name in names}
    costs = dict.fromkeys(range(len(groups)), 0.0)
    for entry in entries:
        if (index := of.get(_top(entry))) is not None and not _comes_at_once(entry):
            costs[index] += _SECONDS_A_FILE + entry.file_size * _SECONDS_A_BYTE
    late: set[int] = set()
    spent = 0.0
    for index in sorted(costs, key=lambda index: costs[index]):
        spent += costs[index]
        if spent > _SOON_SECONDS:
            late.add(index)
    soon: list[zipfile.ZipInfo] = []
    later: list[zipfile.ZipInfo] = []
    for entry in entries:
        is_late = of.get(_top(entry)) in late and not _comes_at_once(entry)
        (later if is_late else soon).append(entry)
    return soon, later


def _top(entry: zipfile.ZipInfo) -> str:
    return entry.filename.split("/", 2)[1] if "/" in entry.filename else ""


def _comes_at_once(entry: zipfile.ZipInfo) -> bool:
    """Records and path files are read without an import."""
    return _top(entry).endswith((".dist-info", ".egg-info", ".pth"))


def _module_of(entry: zipfile.ZipInfo) -> str:
    name = _top(entry)
    is_folder = entry.filename.count("/") > 1
    return name.partition(".")[0] if is_folder or name.endswith((".py", ".so")) else ""


def _make_folders(folder: Path, entries: Sequence[zipfile.ZipInfo]) -> None:
    wanted = {os.path.dirname(entry.filename) for entry in entries} | {BEFORE, AFTER}
    for name in wanted:
        parts = name.split("/")
        if parts[0] not in (BEFORE, AFTER) or ".." in parts or "" in parts:
            raise BadSet(f"{name!r} is not a folder of a set")
    for name in sorted(wanted):
        os.makedirs(folder / name, exist_ok=True)


def _tasks(
    source: int,
    folder: Path,
    entries: Sequence[zipfile.ZipInfo],
    parts: Mapping[str, Sequence[int]],
) -> list[partial[None]]:
    """Small files together in a block, large ones in several blocks."""
    tasks = []
    batch: list[zipfile.ZipInfo] = []
    for entry in sorted(entries, key=lambda e: e.header_offset):
        if sums := parts.get(entry.filename):
            data = _data_offset(os.pread(source, _HEADER, entry.header_offset), entry.header_offset)
            for index, checksum in enumerate(sums):
                tasks.append(partial(_load_part, source, folder, entry, data, index, checksum))
            continue
        if batch and entry.header_offset + entry.file_size - batch[0].header_offset > BLOCK:
            tasks.append(partial(_load_batch, source, folder, batch))
            batch = []
        batch.append(entry)
    return [*tasks, partial(_load_batch, source, folder, batch)] if batch else tasks


def _load_batch(source: int, folder: Path, batch: Sequence[zipfile.ZipInfo]) -> None:
    start, last = batch[0].header_offset, batch[-1]
    # At most a UTF-8 name and an extra field, with 16-bit lengths.
    length = last.header_offset + last.file_size + _HEADER + (2 << 16) - start
    data = memoryview(os.pread(source, length, start))
    for entry in batch:
        at = entry.header_offset - start
        begin = _data_offset(data[at : at + _HEADER], at)
        content = data[begin : begin + entry.file_size]
        if len(content) != entry.file_size or zlib.crc32(content) != entry.CRC:
            raise BadSet(f"{entry.filename} is damaged")
        with open(folder / entry.filename, "wb") as file:
            file.write(content)
        _set_mode(folder, entry)


def _load_part(
    source: int, folder: Path, entry: zipfile.ZipInfo, data: int, index: int, checksum: int
) -> None:
    at = index * BLOCK
    content = os.pread(source, min(BLOCK, entry.file_size - at), data + at)
    if zlib.crc32(content) != checksum:
        raise BadSet(f"{entry.filename} is damaged")
    target = os.open(folder / entry.filename, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.pwrite(target, content, at)
    finally:
        os.close(target)
    if index == 0:
        _set_mode(folder, entry)


def _data_offset(header: bytes | memoryview, at: int) -> int:
    """Where an entry's content begins, by its local header at `at`."""
    if bytes(header[:4]) != b"PK\x03\x04" or len(header) < _HEADER:
        raise BadSet("an entry is not where it should be")
    name, further = struct.unpack_from("<HH", header, 26)
    return at + _HEADER + int(name) + int(further)


def _set_mode(folder: Path, entry: zipfile.ZipInfo) -> None:
    """Some packages have programs, which must stay executable."""
    if (entry.external_attr >> 16) & 0o100:
        os.chmod(folder / entry.filename, 0o755)


_HOOK = '''"""Puts packages on ComfyUI's path; a worker writes it at each start."""
import importlib.machinery
import importlib.util
import os
import site
import sys
import time

_here = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [path for path in sys.path if os.path.abspath(path or ".") != _here]


def _add(folder, at):
    known = list(sys.path)
    site.addsitedir(folder)
    sys.path[:] = known[:at] + [p for p in sys.path if p not in known] + known[at:]


class _Late:
    """Lets an import of a package wait that is still being unpacked."""

    def find_spec(self, name, path=None, target=None):
        if path is None and name in {late!r}:
            while self in sys.meta_path and not os.path.exists({arrived!r}):
                time.sleep(0.005)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            importlib.invalidate_caches()
        return None


# Other interpreters that ComfyUI starts inherit PYTHONPATH, and their packages are their own.
if sys.prefix == {prefix!r}:
    _own = [i for i, path in enumerate(sys.path) if path.endswith("-packages")]
    _add({after!r}, len(sys.path))
    _add({before!r}, _own[0] if _own else len(sys.path))
    if {late!r} and not os.path.exists({arrived!r}):
        sys.meta_path.insert(0, _Late())
# The interpreter's own file of this name, which this one hid.
_spec = importlib.machinery.PathFinder.find_spec("sitecustomize")
if _spec is not None and _spec.loader is not None:
    _spec.loader.exec_module(importlib.util.module_from_spec(_spec))
'''


def write_hook(work: Path, prefix: str, loading: Loading | None = None) -> Path:
    """Write the sitecustomize.py; returns the PYTHONPATH for it. The rest of a set may still be
    loading."""
    path = work / "packages-path"
    path.mkdir(exist_ok=True)
    folder = work / "packages"
    arrived = path / "arrived"
    late = sorted({*loading.late, "pkg_resources"}) if loading and loading.late else []
    text = _HOOK.format(
        prefix=prefix,
        before=str(folder / BEFORE),
        after=str(folder / AFTER),
        late=late,
        arrived=str(arrived),
    )
    (path / "sitecustomize.py").write_text(text, encoding="utf-8")
    if loading is not None:
        loading.finish_beside(arrived)
    return path
