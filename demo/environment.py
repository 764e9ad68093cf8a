"""Virtual environments made from requirement files: the worker's and ComfyUI's."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from demo.cache import digest, locked
from demo.console import DemoError, say, step
from demo.packages import pip

REPOSITORY = Path(__file__).resolve().parent.parent
REQUIREMENTS = REPOSITORY / "requirements"
WORKER_VENV = REPOSITORY / ".venv"
# Written last. An environment cannot be renamed when complete: its scripts contain its path.
STAMP = "complete.json"


def requirements_text(name: str) -> str:
    """A requirements file and all files it refers to: the key of an environment."""
    text = (REQUIREMENTS / name).read_text(encoding="utf-8")
    others = re.findall(r"^-[rc]\s+(\S+)", text, flags=re.MULTILINE)
    return "\n".join([text, *(requirements_text(other) for other in others)])


def interpreter_key() -> str:
    """What a compiled package depends on besides its version."""
    return f"{sys.version} {sys.platform} {sys.base_prefix}"


def ensure_environment(
    folder: Path, key: str, install: Callable[[Path], None], update: bool = False
) -> Path:
    """The interpreter of a virtual environment in `folder` that `install(python)` filled.

    If `key` has changed, it is rebuilt, or with `update` installed into in place; one that was
    never finished, or whose Python changed, is always rebuilt.
    """
    python = folder / "bin" / "python"
    if _stamp(folder) == {"key": key, "python": sys.version} and python.exists():
        return python
    with locked(folder):
        stamp = _stamp(folder)
        usable = stamp.get("python") == sys.version and python.exists()
        if not (usable and stamp.get("key") == key):
            if usable and update:
                (folder / STAMP).unlink()
            else:
                shutil.rmtree(folder, ignore_errors=True)
                _make_venv(folder)
            install(python)
            _write_stamp(folder, key)
    return python


def ensure_worker_venv(with_dev_tools: bool) -> Path:
    """The interpreter of `.venv/`, which has the worker's packages and, if asked, dev tools.

    The developer's environment holds the worker's, so `make demo` after `make test` builds nothing.
    Changed requirements are installed in place: a worker or tests may be running from it.
    """
    worker_key = digest(requirements_text("worker.txt"), interpreter_key())
    dev_key = digest(worker_key, requirements_text("dev.txt"))
    has_dev_tools = _stamp(WORKER_VENV).get("key") == dev_key
    tools = with_dev_tools or has_dev_tools
    name, key = ("dev.txt", dev_key) if tools else ("worker.txt", worker_key)

    def install(python: Path) -> None:
        with step(f"installing requirements/{name} into {WORKER_VENV.name}/ (300 MB on disk)"):
            pip(python, "install", "-r", str(REQUIREMENTS / name))

    return ensure_environment(WORKER_VENV, key, install, update=True)


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
            "that the disk has space",
        )


def _stamp(folder: Path) -> dict[str, str]:
    """What a finished environment was made of; empty for any other."""
    try:
        stamp = json.loads((folder / STAMP).read_text(encoding="utf-8"))
        return {name: str(stamp.get(name)) for name in ("key", "python")}
    except (OSError, ValueError, AttributeError):
        return {}


def _write_stamp(folder: Path, key: str) -> None:
    half_written = folder / f"{STAMP}.part"
    stamp = {"key": key, "python": sys.version}
    half_written.write_text(json.dumps(stamp), encoding="utf-8")
    half_written.rename(folder / STAMP)
    say(f"  {folder} is complete")
