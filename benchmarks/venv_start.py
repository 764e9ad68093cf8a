"""How long ComfyUI takes to answer when its venv, torch included, lies on a network volume.

    python -m benchmarks.venv_start [--rounds 5] [--only local first second]

Contenders run in turn, each on an empty page cache: the same Python without the network in between,
the venv on the volume as it lies, the first start of a worker that brings it to local disk, and a
later one, which finds what the first has recorded. ComfyUI's code is on local disk for all.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import statistics
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cold_start import pages
from benchmarks.document import FILE, put_section
from benchmarks.machine import this_machine
from benchmarks.simulated_volume import CannotSimulate, Delays, mounted, why_not
from bootstrap.environment.mirror import Mirror, MirrorRequest, mirror_venv, record_opened
from demo.cache import cache_folder
from demo.console import DemoError
from demo.volume import DemoVolume, ensure
from tests.support.worker_process import WorkerProcess

SECTION = "venv on the volume"
LOCAL, VOLUME, FIRST, SECOND = "local", "volume", "first", "second"
NAMES = {
    LOCAL: "the same Python on local disk",
    VOLUME: "run from the volume as it lies",
    FIRST: "brought to local disk, first start",
    SECOND: "brought to local disk, later start",
}
#: The most that a start may take of the time of the same Python on local disk.
BARS = {FIRST: 3.0, SECOND: 1.5}
_STORE = Path(".comfyui-worker") / "python"
_PATIENCE = 400.0
_ROOM = 8 << 30
METHOD = """\
Timed from the moment a worker could begin to the first answer of ComfyUI. Before each start the
volume is mounted afresh and the page cache emptied of the venv, its Python and ComfyUI's code. The
venv is a copy of ComfyUI's environment: {files:,} files, {size:.1f} GB, with torch for the CPU. The
simulated network adds 1.5 ms to each metadata call and 0.3 ms and 400 MB/s to each read of a
stream, 1.5 GB/s in all, with 128 KB of read-ahead; the process that simulates it takes its
processor time from the same cores. A first start finds a venv that no worker has opened; its record
is made after ComfyUI answers, outside of the time. In a worker all of it goes on beside the copy of
ComfyUI's code, which is not counted here.

Again: `make bench BENCHMARKS=venv_start`."""


@dataclass(frozen=True)
class Start:
    """One start: `seconds` in all, `bringing` of them until the venv was on local disk. `load` is
    the machine's average of the minute before."""

    contender: str
    seconds: float
    bringing: float
    load: float
    note: str = ""

    def __str__(self) -> str:
        parts = f"{self.seconds:.1f} s, {self.bringing:.1f} s of them before ComfyUI's start"
        return f"{NAMES[self.contender]}: {parts} (load {self.load:.1f}) {self.note}"


@dataclass(frozen=True)
class Scene:
    """Where it happens, on this machine's disk."""

    folder: Path

    @property
    def volume(self) -> Path:
        """The folder behind the network."""
        return self.folder / "volume"

    @property
    def code(self) -> Path:
        """ComfyUI, not behind it."""
        return self.folder / "ComfyUI"

    def start(self, contender: str) -> Start:
        """One start on an empty page cache."""
        home = Path(os.path.realpath(self.volume / "venv/bin/python")).parent.parent / "lib"
        pages.forget([self.volume, self.code, *home.glob("python3*")])
        if contender == FIRST:
            self._put_aside(self.volume / _STORE)
        load = os.getloadavg()[0]
        if contender == LOCAL:
            return self._timed(contender, self.volume, load)
        with mounted(self.volume, self.folder / "seen", Delays()) as volume:
            return self._timed(contender, volume.mountpoint, load)

    def _timed(self, contender: str, volume: Path, load: float) -> Start:
        began = time.monotonic()
        python, mirror = volume / "venv" / "bin" / "python", None
        if contender in (FIRST, SECOND):
            mirror = self._mirror(volume)
            python = mirror.python
        brought = time.monotonic() - began
        with comfyui(python, self.code, self.folder / f"run-{uuid.uuid4().hex}"):
            seconds = time.monotonic() - began
            note = f"{mirror.note}; {record_opened(mirror)}" if mirror else ""
        return Start(contender, seconds, brought, load, note)

    def _mirror(self, volume: Path) -> Mirror:
        place = self.folder / f"python-{uuid.uuid4().hex}"
        found = mirror_venv(
            MirrorRequest(volume / "venv", place, volume / _STORE, _PATIENCE, _ROOM)
        )
        if not isinstance(found, Mirror):
            raise RuntimeError(found.message)
        return found

    def _put_aside(self, folder: Path) -> None:
        """Not deleted now: ext4 passes by the inodes of deleted files for half a minute, one by
        one, and whoever makes files next would pay for it."""
        if folder.exists():
            folder.rename(self.folder / uuid.uuid4().hex)


@contextmanager
def comfyui(python: Path, code: Path, work: Path) -> Iterator[None]:
    """A ComfyUI that answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    for name in ("user", "input", "output", "page"):
        (work / name).mkdir(parents=True)
    (work / "page" / "index.html").write_text("<!doctype html><title>none</title>")
    flags = ["--cpu", "--port", port, "--disable-auto-launch", "--temp-directory", str(work)]
    flags += ["--user-directory", str(work / "user"), "--front-end-root", str(work / "page")]
    flags += ["--input-directory", str(work / "input"), "--output-directory", str(work / "output")]
    flags += ["--database-url", f"sqlite:///{work / 'comfyui.db'}"]
    with WorkerProcess([python, "main.py", *flags], env={}, cwd=code) as process:
        end = time.monotonic() + _PATIENCE
        while not _answers(f"http://127.0.0.1:{port}/system_stats"):
            if process.returncode is not None or time.monotonic() > end:
                raise RuntimeError(f"ComfyUI did not start\n{process.tail(40)}")
            time.sleep(0.02)
        yield


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@contextmanager
def furnished(demo: DemoVolume, parent: Path) -> Iterator[Scene]:
    """A volume with ComfyUI's environment as a venv of its own; removed at the end."""
    scene = Scene(Path(tempfile.mkdtemp(prefix="benchmark-", dir=parent)))
    try:
        venv = demo.python.parent.parent
        shutil.copytree(venv, scene.volume / "venv", symlinks=True)
        shutil.copytree(demo.comfyui, scene.code)
        yield scene
    finally:
        shutil.rmtree(scene.folder, ignore_errors=True)


def measure(demo: DemoVolume, parent: Path, wanted: Sequence[str], rounds: int) -> tuple[str, bool]:
    """The section for the document, and whether all bars were met."""
    starts: list[Start] = []
    with furnished(demo, parent) as scene:
        files = [path for path in scene.volume.rglob("*") if path.is_file()]
        size = sum(path.lstat().st_size for path in files)
        scene.start(LOCAL)  # bytecode of ComfyUI's code is there after the first day of use
        for number in range(1, rounds + 1):
            for contender in wanted:
                starts.append(scene.start(contender))
                _say(f"round {number} of {rounds}: {starts[-1]}")
    method = METHOD.format(files=len(files), size=size / 1e9)
    return _section(demo, starts, method)


def _section(demo: DemoVolume, starts: Sequence[Start], method: str) -> tuple[str, bool]:
    medians = {
        name: statistics.median(s.seconds for s in starts if s.contender == name)
        for name in dict.fromkeys(s.contender for s in starts)
    }
    rows = ["| | median | of local | wanted | rounds |", "|---|---|---|---|---|"]
    met = True
    for name, median in medians.items():
        ratio = median / medians[LOCAL] if LOCAL in medians else 0.0
        bar = BARS.get(name)
        met = met and (bar is None or ratio <= bar)
        wanted = "" if bar is None else f"≤ {bar:.1f}, {'met' if ratio <= bar else '**missed**'}"
        rounds = ", ".join(f"{s.seconds:.1f}" for s in starts if s.contender == name)
        rows.append(f"| {NAMES[name]} | {median:.1f} s | {ratio:.2f} | {wanted} | {rounds} |")
    parts = ["## A venv on the volume", this_machine(demo).sentence(), "\n".join(rows), method]
    return "\n\n".join(parts), met


def main(argv: Sequence[str] | None = None) -> int:
    """0 when all bars were met, 1 when not, 2 where it cannot be measured."""
    parser = argparse.ArgumentParser(prog="benchmarks.venv_start", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="default 5")
    parser.add_argument("--only", nargs="+", choices=list(NAMES), help="these alone, in this order")
    parser.add_argument(
        "--folder",
        type=Path,
        default=cache_folder(os.environ),
        help="where it happens: a disk on which others delete many files at the time makes new "
        "ones slow; default %(default)s",
    )
    given = parser.parse_args(argv)
    if reason := why_not():
        _say(f"no volume can be simulated here: {reason}")
        return 2
    try:
        text, met = measure(ensure(), given.folder, given.only or list(NAMES), given.rounds)
    except (CannotSimulate, DemoError) as problem:
        _say(str(problem))
        return 2
    print(text)
    if not given.only:
        put_section(SECTION, text)
        _say(f"{FILE} is written")
    return 0 if met else 1


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
