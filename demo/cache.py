"""The cache outside the repository: keyed entries, complete or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from demo.console import DemoError, mb, say

NAME = "comfyui-volume-worker"


def cache_folder(env: Mapping[str, str]) -> Path:
    """Where built things are kept: `COMFYUI_WORKER_CACHE`, else the user's cache folder."""
    if env.get("COMFYUI_WORKER_CACHE"):
        return Path(env["COMFYUI_WORKER_CACHE"]).expanduser().absolute()
    if env.get("XDG_CACHE_HOME"):
        return Path(env["XDG_CACHE_HOME"]).absolute() / NAME
    return Path.home() / ".cache" / NAME


def digest(*parts: str) -> str:
    """A short name for exactly these parts, in this order."""
    return hashlib.sha256("\0".join(parts).encode("utf-8")).hexdigest()[:12]


def entry(place: Path, build: Callable[[Path], None]) -> Path:
    """`place`, built by `build(folder)` if it does not exist. `build` works in a sibling that is
    renamed when complete, so a killed build is never used. Of several builders one builds, the
    others wait for it.
    """
    if place.is_dir():
        return place
    with locked(place):
        if place.is_dir():
            return place
        remove_leftovers(place)
        half_built = Path(tempfile.mkdtemp(prefix=f"{place.name}.building-", dir=place.parent))
        try:
            half_built.chmod(0o755)  # mkdtemp's 0700 would lock out other users of the cache
            build(half_built)
            half_built.rename(place)
        except BaseException:
            shutil.rmtree(half_built, ignore_errors=True)
            raise
    return place


def remove_leftovers(place: Path) -> None:
    """Remove leftovers of killed builds of `place`; call with its lock held."""
    for leftover in place.parent.glob(f"{place.name}.building-*"):
        shutil.rmtree(leftover, ignore_errors=True)


@contextlib.contextmanager
def locked(place: Path) -> Iterator[None]:
    """Only one builder of `place` at a time; the lock is released when its process ends.

    Raises DemoError when the folder cannot be written.
    """
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(f"{place}.lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as problem:
        raise DemoError(
            f"{place.parent} cannot be written: {problem.strerror}",
            "set COMFYUI_WORKER_CACHE to a writable folder with enough space",
        ) from problem
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process is building {place.name}; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def require_space(folder: Path, needed: int, what: str) -> None:
    """Raise DemoError when `folder`'s disk has fewer than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DemoError(
            f"{what} needs {mb(needed)} and {folder} has {mb(free)} free",
            "make room, or set COMFYUI_WORKER_CACHE to a folder on a larger disk",
        )
