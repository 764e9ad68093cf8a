"""How long a worker takes to be ready when ComfyUI's Python packages are on the volume.

    python -m benchmarks.venv_start [--rounds 5] [--only local first second]

Whole workers run in turn, each on an empty page cache. For a venv, torch included: the same Python
on local disk, the venv run from the volume, the first worker that copies it to local disk, and a
later one, which finds the first one's archive. For a package set that an earlier worker installed
and kept: the same packages installed in the local Python, and the set from the volume.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cold_start import pages
from benchmarks.document import publish, say, table, verdict
from benchmarks.machine import keep_bytecode, put_aside, scratch, this_machine
from benchmarks.simulated_volume import CannotSimulate, Delays, mounted, why_not
from bootstrap.environment.uv import find_uv
from demo.cache import cache_folder
from demo.console import DemoError
from demo.volume import DemoVolume, ensure
from tests.support.control_plane import ControlPlane
from tests.support.plane_records import now
from tests.support.worker_process import WorkerProcess

SECTION = "venv on the volume"
LOCAL, VOLUME, FIRST, SECOND = "local", "volume", "first", "second"
BAKED, KEPT = "baked", "kept"
NAMES = {
    LOCAL: "the same Python on local disk",
    VOLUME: "run from the volume",
    FIRST: "copied to local disk, first start",
    SECOND: "copied to local disk, later start",
    BAKED: "kornia and spandrel in the Python on local disk",
    KEPT: "kornia and spandrel in a package set on the volume, later start",
}
#: The longest a start may take: a multiple of another contender's time, or seconds more.
BARS = {FIRST: (LOCAL, "×", 3.0), SECOND: (LOCAL, "×", 1.5), KEPT: (BAKED, "s", 1.0)}
_PACKAGES = ("kornia>=0.7.1", "spandrel")
_STORE = Path(".comfyui-worker") / "python"
_TIMEOUT = 400.0
_VENV_PYTHON = Path("ComfyUI/venv/bin/python")
METHOD = """\
Timed from process start until the worker reports that it is ready. Before each start the volume is
mounted again, and the page cache is emptied of volume, venv and Python. The venv is a copy of
ComfyUI's environment: {files:,} files, {size:.1f} GB, with torch for the CPU. ComfyUI's code is on
the volume for all, and copied to local disk except in the second row (`STAGE_COMFYUI=false`). A
first start finds a venv that no worker has used; the archive that it makes once ComfyUI answers is
not in its time. The package set is what ComfyUI's requirements name and the Python lacks.

To repeat: `make bench BENCHMARKS=venv_start`."""


@dataclass(frozen=True)
class Start:
    """One start of `seconds`. `load` is the machine's load average over the minute before, `note`
    what the worker logged about its Python packages."""

    contender: str
    seconds: float
    load: float
    note: str = ""

    def __str__(self) -> str:
        return f"{NAMES[self.contender]}: {self.seconds:.1f} s (load {self.load:.1f}) {self.note}"


@dataclass(frozen=True)
class Scene:
    """The folder on this machine's disk, and the Python that is not on the volume."""

    folder: Path
    python: Path

    @property
    def volume(self) -> Path:
        """The folder that is served as the volume."""
        return self.folder / "volume"

    def start(self, contender: str) -> Start:
        """One start on an empty page cache."""
        home = Path(os.path.realpath(self.python)).parent.parent / "lib"
        pythons = (self.python.parent.parent, self.baked.parent.parent)
        pages.forget([self.volume, *pythons, *home.glob("python3*")])
        if contender == FIRST:
            put_aside(self.volume / _STORE, self.folder)
        load = os.getloadavg()[0]
        with (
            mounted(self.volume, self.folder / "seen", Delays()) as volume,
            ControlPlane() as plane,
        ):
            env = {
                **plane.worker_env(skip_fitness=True),
                **self._env(contender, volume.mountpoint),
            }
            began = now()
            with WorkerProcess.module("handler", env=env) as worker:
                seconds = worker.wait_for_line(r"Boot: ready", timeout=_TIMEOUT).at - began
                if contender == FIRST:
                    worker.wait_for_line(r"venv: .*archive", timeout=_TIMEOUT)
                notes = re.findall(r"(?:copy Python|packages): [^\"]*", worker.tail(500))
        return Start(contender, seconds, load, ", ".join(notes))

    def bake(self) -> None:
        """Copy the Python and install the packages that it lacks."""
        shutil.copytree(self.python.parent.parent, self.baked.parent.parent, symlinks=True)
        command = [find_uv() or "uv", "pip", "install", "--quiet", "--python", self.baked]
        overrides = self.folder / "held.txt"
        overrides.write_text("torch; sys_platform == 'none'\ntorchvision; sys_platform == 'none'\n")
        subprocess.run([*command, "--override", overrides, *_PACKAGES], check=True)

    @property
    def baked(self) -> Path:
        """That copy's interpreter."""
        return self.folder / "baked" / "bin" / "python"

    def _env(self, contender: str, volume: Path) -> dict[str, str]:
        on_volume = volume / _VENV_PYTHON
        pythons = {LOCAL: self.python, KEPT: self.python, BAKED: self.baked}
        env = {
            "VOLUME_PATH": str(volume),
            "COMFYUI_ARGS": "--cpu",
            "COMFYUI_PYTHON": str(pythons.get(contender, on_volume)),
            "COMFYUI_PORT": "0",
            "LINK_OTHER_MOUNT": "false",
            "PACKAGES": "install" if contender == KEPT else "report",
            "PREFETCH_MODELS": "none",
            # One per start: otherwise a worker first removes what a killed one left.
            "WORK_DIR": str(self.folder / f"work-{uuid.uuid4().hex}"),
        }
        return env if contender != VOLUME else {**env, "STAGE_COMFYUI": "false"}


@contextmanager
def furnished(demo: DemoVolume, parent: Path) -> Iterator[Scene]:
    """A volume with ComfyUI and, as its venv, ComfyUI's environment; removed at the end."""
    with scratch(parent) as folder:
        scene = Scene(folder, demo.python)
        demo.copy_to(scene.volume)
        venv = demo.python.parent.parent
        shutil.copytree(venv, scene.volume / _VENV_PYTHON.parent.parent, symlinks=True)
        yield scene


def measure(demo: DemoVolume, parent: Path, wanted: Sequence[str], rounds: int) -> tuple[str, bool]:
    """The section for the document, and whether all targets were met."""
    starts: list[Start] = []
    with furnished(demo, parent) as scene:
        venv = scene.volume / _VENV_PYTHON.parent.parent
        files = [path for path in venv.rglob("*") if path.is_file()]
        size = sum(path.lstat().st_size for path in files)
        scene.start(LOCAL)  # as after the first day of use: bytecode is there
        if {KEPT, BAKED} & set(wanted):
            scene.bake()
            scene.start(BAKED)
            scene.start(KEPT)  # installs
        for number in range(1, rounds + 1):
            for contender in wanted:
                starts.append(scene.start(contender))
                say(f"round {number} of {rounds}: {starts[-1]}")
    method = METHOD.format(files=len(files), size=size / 1e9)
    return _section(demo, starts, method)


def _section(demo: DemoVolume, starts: Sequence[Start], method: str) -> tuple[str, bool]:
    medians = {
        name: statistics.median(s.seconds for s in starts if s.contender == name)
        for name in dict.fromkeys(s.contender for s in starts)
    }
    rows, met = [], True
    for name, median in medians.items():
        against, unit, bar = BARS.get(name, (LOCAL, "×", math.inf))
        base = medians.get(against, math.nan)
        value = median / base if unit == "×" else median - base
        met = met and not value > bar
        wanted = f"≤ {bar:.1f}, {verdict(not value > bar)}" if name in BARS else ""
        shown = f"{value:.2f}" if unit == "×" else f"{value:+.1f} s"
        shown = "" if math.isnan(value) else shown
        rounds = ", ".join(f"{s.seconds:.1f}" for s in starts if s.contender == name)
        rows.append([NAMES[name], f"{median:.1f} s", shown, wanted, rounds])
    times = table(["", "median", "ratio", "target", "rounds"], rows)
    parts = ["## A venv on the volume", this_machine(demo).sentence(), times, method]
    return "\n\n".join(parts), met


def main(argv: Sequence[str] | None = None) -> int:
    """0 if all targets were met, 1 if not, 2 if it cannot be measured."""
    parser = argparse.ArgumentParser(prog="benchmarks.venv_start", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="default 5")
    parser.add_argument("--only", nargs="+", choices=list(NAMES), help="only these, in this order")
    parser.add_argument(
        "--folder",
        type=Path,
        default=cache_folder(os.environ),
        help="working folder, best on a disk where nothing is being deleted: that slows down "
        "creating files; default %(default)s",
    )
    given = parser.parse_args(argv)
    if reason := why_not():
        say(f"cannot simulate a volume here: {reason}")
        return 2
    keep_bytecode()
    try:
        text, met = measure(ensure(), given.folder, given.only or list(NAMES), given.rounds)
    except (CannotSimulate, DemoError) as problem:
        say(str(problem))
        return 2
    publish(SECTION, text, whole=not given.only)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
