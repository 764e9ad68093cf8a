"""ComfyUI's files on local disk: finds them, assigns them to jobs, and removes them in time.

ComfyUI answers a repeated node from its cache and reports the file it wrote then. So the last job's
files stay in place; if one is gone, or was overwritten by another job, the node must run again."""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pybase64

from bootstrap.comfyui import WorkDir
from bootstrap.core.files import Stamp, open_regular
from bootstrap.volume import Layout
from handler.outputs.produced import Produced, ProducedFile

# File times lag slightly behind the process clock.
_CLOCK_LAG = 0.05
# A job's end may be given in whole milliseconds, and earlier by a tick of the kernel's clock.
_END_LAG = 0.0125
# A volume's file times are its server's.
_VOLUME_CLOCK_LAG = 60.0
# A file that is open for longer than this without a change is done: its writer forgot to close it.
_PAUSE_IN_WRITING = 2.0


@dataclass
class OutputClaim:
    """One job's files until they are delivered: those it `reported`, and the `rest` in the output
    folder. Something still writes to the `unfinished` ones of what it reported. `versions` say what
    its files were when it ended, None for those changed since. It ended at `until` (seconds since
    1970). `released`: nothing is claimed any more."""

    unfinished: list[Path] = field(default_factory=list)
    versions: dict[Path, Stamp | None] = field(default_factory=dict)
    reported: list[Path] = field(default_factory=list)
    rest: list[Path] = field(default_factory=list)
    until: float = 0.0
    released: bool = False


class LocalFiles:
    """ComfyUI's output and temp folders. Times are seconds since 1970."""

    def __init__(self, work: WorkDir, layout: Layout) -> None:
        self._layout = layout
        self._root = Path(os.path.realpath(work.root))
        self.output = Path(os.path.realpath(work.output))
        self._temp = Path(os.path.realpath(work.temp))
        self._input = Path(os.path.realpath(work.input))
        self._volume = Path(os.path.realpath(layout.output))
        self._beside_code = _beside_code(work, layout)
        self._began = time.time()
        self._reported: dict[Path, Stamp] = {}
        self._settled = 0.0  # the end of the job to which the files `_reported` belong
        self._kept: dict[Path, Stamp] = {}  # delivered, but still there
        self._claimed: Counter[Path] = Counter()
        self._lock = threading.Lock()

    def find(self, item: ProducedFile) -> Path | None:
        """The file that ComfyUI reported; None if it is gone or outside the result folders: a
        workflow must not be able to fetch any file of this machine."""
        bases = {"output": self.output, "temp": self._temp, "input": self._input}
        base = bases.get(item.type)
        named = Path(item.subfolder, item.filename)
        own = (self._input,) if item.type == "input" else (self.output, self._temp)
        places = [] if base is None else [base / named]
        if item.guessed:
            places += [self._root / named, self._temp / named]
        found = next((file for place in places if (file := _file_at(place, own))), None)
        if found is None and item.fullpath is not None and not item.guessed:
            found = _file_at(Path(item.fullpath), (self.output, self._temp, self._volume))
        return found or self._written_elsewhere(item, named)

    def _written_elsewhere(self, item: ProducedFile, named: Path) -> Path | None:
        """A file that a node wrote into the output folder beside ComfyUI's code, or into the
        volume's. Others write there too, so only if it changed since this worker started."""
        if item.type != "output":
            return None
        places = [self._beside_code / named, self.output / named]
        if item.guessed:
            places += [self._beside_code.parent / named]
        for place in places:
            found = _file_at(place, (self._beside_code, self._volume))
            if found is not None and _changed_at(found) >= self._began - _VOLUME_CLOCK_LAG:
                return found
        return None

    def place_on_volume(self, path: Path) -> str | None:
        """The path, from the volume's root, of a file that a node wrote directly to the volume's
        output folder; None for others."""
        if path.is_relative_to(self.output) or not path.is_relative_to(self._volume):
            return None
        inside = self._layout.output / path.relative_to(self._volume)
        return str(inside.relative_to(self._layout.root))

    def is_temp(self, path: Path) -> bool:
        """Is the file in ComfyUI's folder for previews?"""
        return path.is_relative_to(self._temp)

    def stale_nodes(self, items: Iterable[Produced], since: float) -> list[str]:
        """Nodes whose reported files cannot belong to a job that started at `since`: gone, or older
        and not the last job's."""
        stale: dict[str, None] = {}
        for item in items:
            if isinstance(item, ProducedFile) and not item.guessed and item.type != "input":
                path = self.find(item)
                if path is None or (self._is_ours(path) and not self._is_of(path, since)):
                    stale[item.node_id] = None
        return list(stale)

    def found(self, items: Iterable[Produced]) -> list[Path]:
        """The reported files that exist, each once."""
        files = (self.find(item) for item in items if isinstance(item, ProducedFile))
        return list(dict.fromkeys(path for path in files if path is not None))

    def claim(self, claim: OutputClaim, until: float, reported: Iterable[Path] = ()) -> None:
        """Reserve the files of a job that ended at `until`: those it reported, and unreported ones
        in the output folder. Call it in the order in which jobs end; deliveries are parallel."""
        results = list(reported)
        unfinished = self.unfinished(results)
        with self._lock:
            if claim.released:  # this call took too long, and the job went on without it
                return
            rest = dict.fromkeys(self._unreported(until))
            ours = [*rest, *filter(self._is_ours, results)]
            others = [path for path in results if path not in rest]
            self._claimed.update([*rest, *others])
            claim.rest += rest
            claim.reported += others
            claim.unfinished = unfinished
            claim.versions.update({path: _version(path, until) for path in ours})
            claim.until = max(claim.until, until)

    def may_be_on_volume(self, items: Iterable[Produced]) -> bool:
        """May one of the reported files be on the volume? Judged by its name only."""
        root = os.fspath(self._layout.root)
        anywhere = self._beside_code.is_relative_to(self._volume)
        return any(
            isinstance(item, ProducedFile)
            and (anywhere or ".." in item.subfolder or (item.fullpath or "").startswith(root))
            for item in items
        )

    def release(self, claim: OutputClaim) -> None:
        """Give up a claim."""
        with self._lock:
            self._release(claim)

    def commit(self, claim: OutputClaim, reported: Iterable[Path]) -> None:
        """After a job: end its claim, leave its reported files for the next one, and remove those
        of earlier jobs. Only files in our own folders."""
        with self._lock:
            self._release(claim)
            ours = (path for path in reported if self._is_ours(path))
            last = {path: stamp for path in ours if (stamp := stamp_of(path)) is not None}
            if claim.until >= self._settled:
                last, self._reported, self._settled = self._reported, last, claim.until
            last = {**self._kept, **last}
            done_with = [p for p in last if p not in self._reported and not self._claimed[p]]
            self._claimed.update(done_with)  # so that no other job claims them
        for path in done_with:
            self.remove(path, last[path])
        self.release(OutputClaim(reported=done_with))

    def remove(self, path: Path, stamp: Stamp | None) -> None:
        """Remove a file that was delivered with this stamp. One that has changed since is the next
        job's; one that is being written, or cannot be removed, stays until a later job has ended.
        """
        if stamp is None:
            return
        with self._lock:
            self._kept[path] = stamp
            self._claimed[path] += 1
        stays = _stays(path, stamp)
        with self._lock:
            if not stays:
                self._kept.pop(path, None)
            self._release(OutputClaim(reported=[path]))

    def unfinished(self, paths: Iterable[Path]) -> list[Path]:
        """Those that something is writing: open for it, and changed a moment ago."""
        since = time.time() - _PAUSE_IN_WRITING
        return [
            p for p in paths if _changed_at(p) > since and self._is_ours(p) and is_being_written(p)
        ]

    def look_again(self, claim: OutputClaim) -> list[Path]:
        """Those of its unfinished files that still are, whose version is not known. What the others
        are now is its job's doing, too."""
        left = self.unfinished(claim.unfinished)
        claim.versions.update((p, stamp_of(p)) for p in claim.unfinished)
        for path in left:
            del claim.versions[path]
        return left

    def overwritten(self, claim: OutputClaim) -> set[Path]:
        """Files of a claim that have changed since its job ended, or were removed."""
        return {path for path, version in claim.versions.items() if version != stamp_of(path)}

    def _release(self, claim: OutputClaim) -> None:
        self._claimed.subtract([*claim.rest, *claim.reported])
        self._claimed += Counter()  # drops entries at zero
        claim.rest, claim.reported, claim.released = [], [], True

    def _unreported(self, until: float) -> Iterator[Path]:
        for path in _files_below(self.output):
            stamp = stamp_of(path)
            known = self._claimed[path] or stamp in (self._reported.get(path), self._kept.get(path))
            if stamp is not None and not known and _changed_at(path) <= until:
                yield path

    def _is_ours(self, path: Path) -> bool:
        return path.is_relative_to(self.output) or path.is_relative_to(self._temp)

    def _is_of(self, path: Path, since: float) -> bool:
        stamp = stamp_of(path)
        return stamp is not None and (
            stamp.changed_ns / 1e9 >= since - _CLOCK_LAG or self._reported.get(path) == stamp
        )


def _version(path: Path, until: float) -> Stamp | None:
    """The file's stamp, if it has not changed after `until`, as far as that is known."""
    later = until > 0 and _changed_at(path) > until + _END_LAG
    return None if later else stamp_of(path)


def _stays(path: Path, stamp: Stamp) -> bool:
    """Remove the file if it still has this stamp; False if it does not, or is gone."""
    if stamp_of(path) != stamp:
        return False
    try:
        if is_being_written(path):
            return True
        path.unlink(missing_ok=True)
    except OSError:
        return True
    return False


def is_being_written(path: Path) -> bool:
    """Does any process have the file open for writing? Such a file gets no read lease (fcntl(2)).
    Who opens it during these microseconds waits for them."""
    try:
        with open_regular(path) as file:
            fcntl.fcntl(file, fcntl.F_SETSIG, signal.SIGURG)  # ignored, unlike the default
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return True
    except OSError:  # it is gone, or this file system has no leases
        pass
    return False


class Content(str):
    """A file's content in base64, with a short repr: the SDK formats each whole result twice for
    its log, even if that is not written."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{len(self)} characters>"


def encoded(local: Path) -> Content:
    """A file's content in base64. Raises OSError."""
    with open_regular(local) as file:
        return Content(pybase64.b64encode_as_string(file.read()))


def _beside_code(work: WorkDir, layout: Layout) -> Path:
    """The `output` folder beside ComfyUI's code, where some nodes write regardless of its flags. In
    a copy of the code it is a link to the output folder."""
    if layout.comfyui is None or work.stage.exists():
        return Path(os.path.realpath(work.output))
    return Path(os.path.realpath(layout.comfyui / "output"))


def _file_at(path: Path, roots: Iterable[Path]) -> Path | None:
    try:
        real = Path(os.path.realpath(path))
        inside = any(real.is_relative_to(root) for root in roots)
        return real if inside and real.is_file() else None
    except (OSError, ValueError):
        return None


def _files_below(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        for name in sorted(names):
            path = Path(parent) / name
            if _is_regular(path):
                yield path


def _is_regular(path: Path) -> bool:
    """No socket, and no link, which could lead to any file of this machine."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def stamp_of(path: Path) -> Stamp | None:
    """Identifies a version of the file; None if it is gone."""
    try:
        status = path.stat()
    except OSError:
        return None
    return stamp_from(status)


def stamp_from(status: os.stat_result) -> Stamp:
    """`stamp_of` for an open file."""
    return Stamp(status.st_size, status.st_ctime_ns)


def _changed_at(path: Path) -> float:
    stamp = stamp_of(path)
    return 0.0 if stamp is None else stamp.changed_ns / 1e9
