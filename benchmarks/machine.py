"""The machine a measurement was made on, and a scratch folder for it."""

from __future__ import annotations

import datetime
import os
import platform
import re
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from demo.cache import cache_folder
from demo.volume import DemoVolume

_DAMON = Path("/sys/kernel/mm/damon/admin/kdamonds")
_ACTIONS = "contexts/*/schemes/*/action"
_DROPS = (
    "Its kernel reclaims pages that were not used for a while (DAMON), some of those read ahead "
    "among them."
)


@dataclass(frozen=True)
class Machine:
    """`memory_gb` in 10⁹ bytes; `date` of the measurement."""

    date: str
    processor: str
    cores: int
    memory_gb: float
    kernel: str
    python: str
    sdk: str
    comfyui: str
    torch: str
    drops_cold_pages: bool

    def sentence(self) -> str:
        """A sentence or two for the page."""
        text = (
            f"{self.date}: {self.processor}, {self.cores} cores, {self.memory_gb:.0f} GB of "
            f"memory, Linux {self.kernel}, no GPU; ComfyUI {self.comfyui} with torch {self.torch}, "
            f"the Runpod SDK {self.sdk} in Python {self.python}."
        )
        return f"{text} {_DROPS}" if self.drops_cold_pages else text


@contextmanager
def scratch(parent: Path | None = None) -> Iterator[Path]:
    """A folder for one measurement, on disk rather than in memory: in `parent`, else in the cache
    folder, whose checkpoints can then be hard-linked. Removed at the end."""
    parent = parent or cache_folder(os.environ)
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="benchmark-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def put_aside(folder: Path, parent: Path) -> None:
    """Move a folder, if it exists, into `parent`. Deleting it now would slow down whoever creates
    files next: for half a minute ext4 skips the inodes of deleted files one by one
    (recently_deleted, ialloc.c)."""
    if folder.exists():
        folder.rename(parent / f"aside-{uuid.uuid4().hex}")


def keep_bytecode() -> None:
    """Let processes started from now on write bytecode, whatever this shell is set to: in the
    image, and on a volume after its first day, no start compiles anything."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def this_machine(demo: DemoVolume) -> Machine:
    """As it is now. `cores` are those this process may use."""
    found = re.search(r"^model name\s*:\s*(.+)$", _text("/proc/cpuinfo"), re.MULTILINE)
    ask = "from importlib.metadata import version; print(version('torch'))"
    torch = subprocess.run(
        [str(demo.python), "-c", ask], capture_output=True, text=True, check=True
    ).stdout.strip()
    comfyui = re.search(r'"([^"]+)"', _text(str(demo.comfyui / "comfyui_version.py")))
    return Machine(
        date=datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        processor=found[1] if found else platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        memory_gb=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9,
        kernel=platform.release(),
        python=platform.python_version(),
        sdk=version("runpod"),
        comfyui=comfyui[1] if comfyui else "of an unknown version",
        torch=torch,
        drops_cold_pages=_drops_cold_pages(),
    )


def _drops_cold_pages() -> bool:
    """Whether the kernel's DAMON pages out memory that it considers cold."""
    daemons = _DAMON.glob("[0-9]*") if os.access(_DAMON, os.R_OK) else ()
    return any(
        _text(str(daemon / "state")).strip() == "on"
        and any(_text(str(s)).strip() == "pageout" for s in daemon.glob(_ACTIONS))
        for daemon in daemons
    )


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""
