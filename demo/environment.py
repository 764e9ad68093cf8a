"""Virtual environments made from requirement files: the worker's and ComfyUI's."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from demo.cache import digest, locked
from demo.console import DemoError, say, step
from demo.packages import pip

REPOSITORY = Path(__file__).resolve().parent.parent
REQUIREMENTS = REPOSITORY / "requirements"
WORKER_VENV = REPOSITORY / ".venv"
# Written last. An environment cannot be renamed when complete, as its scripts name its path.
STAMP = "complete.json"


def requirements_text(name: str) -> str:
    """A requirements file and all the files it refers to: what an environment is keyed by."""
    text = (REQUIREMENTS / name).read_text(encoding="utf-8")
    others = re.findall(r"^-[rc]\s+(\S+)", text, flags=re.MULTILINE)
    return "\n".join([text, *(requirements_text(other) for other in others)])


def interpreter_key() -> str:
    """What a compiled package depends on besides its version."""
    return f"{sys.version} {sys.platform} {sys.base_prefix}"


def ensure_environment(folder: Path, key: str, install: Callable[[Path], None]) -> Path:
    """The interpreter of a virtual environment in `folder` that `install(python)` filled.

    It is made anew when `key` is not the one it was made with, or when it was never finished.
    """
    python = folder / "bin" / "python"
    if python.exists() and _stamp(folder) == key:
        return python
    with locked(folder):
        if not (python.exists() and _stamp(folder) == key):
            shutil.rmtree(folder, ignore_errors=True)
            _make_venv(folder)
            install(python)
            _write_stamp(folder, key)
    return python


def ensure_worker_venv(with_dev_tools: bool) -> Path:
    """The interpreter of `.venv/`, which has the worker's packages and, if asked, dev tools.

    The developer's environment holds the worker's, so `make demo` after `make test` builds nothing.
    """
    worker_key = digest(requirements_text("worker.txt"), interpreter_key())
    dev_key = digest(worker_key, requirements_text("dev.txt"))
    if _stamp(WORKER_VENV) == dev_key and (WORKER_VENV / "bin" / "python").exists():
        return WORKER_VENV / "bin" / "python"
    name, key = ("dev.txt", dev_key) if with_dev_tools else ("worker.txt", worker_key)

    def install(python: Path) -> None:
        with step(f"installing requirements/{name} into {WORKER_VENV.name}/ (about 300 MB)"):
            pip(python, "install", "-r", str(REQUIREMENTS / name))

    return ensure_environment(WORKER_VENV, key, install)


def _make_venv(folder: Path) -> None:
    made = subprocess.run(
        [sys.executable, "-m", "venv", str(folder)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if made.returncode != 0:
        shutil.rmtree(folder, ignore_errors=True)
        raise DemoError(
            f"{sys.executable} could not make a virtual environment: {made.stdout.strip()[-400:]}",
            "install the venv module (Debian, Ubuntu: sudo apt install python3-venv), or check "
            "that the disk has room",
        )


def _stamp(folder: Path) -> str | None:
    try:
        return str(json.loads((folder / STAMP).read_text(encoding="utf-8"))["key"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_stamp(folder: Path, key: str) -> None:
    half_written = folder / f"{STAMP}.part"
    half_written.write_text(
        json.dumps({"key": key, "python": sys.version, "made": time.strftime("%Y-%m-%d %H:%M")}),
        encoding="utf-8",
    )
    half_written.rename(folder / STAMP)
    say(f"  {folder} is complete")
