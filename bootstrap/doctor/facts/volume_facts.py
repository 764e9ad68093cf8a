"""Facts about a volume as frozen data: space, access, and its top-level links.

The same volume is `/runpod-volume` on Serverless and `/workspace` on a Pod, so a link through
either name works in one place only.
"""

from __future__ import annotations

import errno
import os
import stat
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from bootstrap.core.files import Folder, Trouble, contains, trouble_of
from bootstrap.core.temp_files import Leftover
from bootstrap.doctor.facts.volume_places import ModelPath, Stray
from bootstrap.environment import Venv
from bootstrap.volume import COMFYUI
from bootstrap.volume.find_comfyui import OtherMount
from bootstrap.volume.locate import Mount

# A link costs a readlink, a stat and a stat for each part of its path.
MOST_LINKS = 200
# So many of each kind are listed; a diagnostics reply may have 1 MB in all.
MOST_SHOWN = 50


class LinkTarget(str, Enum):
    """Where a symbolic link leads. `UP`: to a folder that contains it, so following it never ends;
    `OUTSIDE`: it exists, but not on the volume."""

    OK = "well"
    BROKEN = "nowhere"
    LOOP = "loop"
    UP = "up"
    OUTSIDE = "out"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class LinkFact:
    """A link at `path` with the text `text`. `home` is the mount point that `text` begins with, if
    it is a possible one of the volume. `relative` then is the equivalent relative text, if the
    target exists. `ours`: made by our link plan.
    """

    path: str
    text: str
    leads: LinkTarget
    home: str | None = None
    relative: str | None = None
    ours: bool = False


def look_at_link(path: str, root: str, tree: str, homes: Sequence[str]) -> LinkFact | None:
    """The link at `path`; None if it is gone. `root` is the volume's root, `tree` what counts as
    part of it (the mount, if `root` is a folder on it); both without links. `homes` are the
    possible mount points.
    """
    try:
        text = os.readlink(path)
    except OSError:
        return None
    link = LinkFact(path, text, _leads(path, tree))
    home = next((h for h in homes if contains(h, text)), None)
    if home is None:
        return link
    here = os.path.normpath(os.path.join(root, os.path.relpath(text, home)))
    if not contains(root, here) or not os.path.exists(here):
        return replace(link, home=home)
    relative = os.path.relpath(here, os.path.realpath(os.path.dirname(path)))
    return replace(link, home=home, relative=relative)


def _leads(path: str, tree: str) -> LinkTarget:
    try:
        found = os.stat(path)
    except OSError as problem:
        if problem.errno == errno.ELOOP:
            return LinkTarget.LOOP
        absent = problem.errno in (errno.ENOENT, errno.ENOTDIR)
        return LinkTarget.BROKEN if absent else LinkTarget.UNKNOWN
    real = os.path.realpath(path)
    if stat.S_ISDIR(found.st_mode) and contains(real, os.path.realpath(os.path.dirname(path))):
        return LinkTarget.UP
    return LinkTarget.OK if contains(tree, real) else LinkTarget.OUTSIDE


@dataclass(frozen=True)
class Space:
    """statvfs in bytes and inodes. A network file system often reports its whole cluster, not this
    volume's quota; `inodes_total` is 0 if they are not counted."""

    total: int
    free: int
    inodes_total: int
    inodes_free: int


@dataclass(frozen=True)
class Writing:
    """Creating, flushing and removing a tiny file: its duration in seconds, or the error. `now` is
    the file's time by the volume's own clock, in seconds since 1970.
    """

    seconds: float
    now: float | None = None
    trouble: Trouble | None = None


@dataclass(frozen=True)
class Access:
    """Who owns a path and what this process may do there. `mode` holds the permission bits; a
    folder that cannot be entered counts as unreadable."""

    path: str
    mode: int
    owner: int
    group: int
    is_folder: bool
    readable: bool
    writable: bool


def look_at_space(path: str) -> Space:
    """Raises OSError."""
    found = os.statvfs(path)
    return Space(
        total=found.f_blocks * found.f_frsize,
        free=found.f_bavail * found.f_frsize,
        inodes_total=found.f_files,
        inodes_free=found.f_favail,
    )


def try_writing(folder: str) -> Writing:
    """Create a file in `folder`, flush and remove it. If this process is killed, core/temp_files.py
    knows its name.
    """
    path = os.path.join(folder, f".{uuid.uuid4().hex}.part")
    started = time.monotonic()
    try:
        now = _write_and_remove(path)
    except OSError as problem:
        return Writing(time.monotonic() - started, trouble=trouble_of(problem))
    return Writing(time.monotonic() - started, now)


def _write_and_remove(path: str) -> float:
    """A full disk or quota can show as late as at fsync or close."""
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        try:
            os.write(descriptor, b"a probe of the doctor\n")
            os.fsync(descriptor)
            return os.fstat(descriptor).st_mtime
        finally:
            os.close(descriptor)
    finally:
        os.unlink(path)


def look_at_access(path: str) -> Access | None:
    """None if `path` does not exist or cannot be read."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    is_folder = stat.S_ISDIR(found.st_mode)
    return Access(
        path=path,
        mode=stat.S_IMODE(found.st_mode),
        owner=found.st_uid,
        group=found.st_gid,
        is_folder=is_folder,
        readable=os.access(path, os.R_OK | os.X_OK if is_folder else os.R_OK),
        writable=os.access(path, os.W_OK | os.X_OK if is_folder else os.W_OK),
    )


class VolumeState(str, Enum):
    """What is at the volume's path. `BAD`: it cannot be read; see `trouble`."""

    FOLDER = "folder"
    MISSING = "missing"
    FILE = "file"
    BAD = "bad"


@dataclass(frozen=True)
class ModelPlaces:
    """`homes` are the existing models folders (the volume's own first), `missing` the usual
    categories that none has. `strays` are folders outside them, `loose` single files that no loader
    finds (`belongs` is "" if their contents do not show it), `wrong_case` are misspelt. `unread`
    are single models in other folders of the root, which only a link or a file of model paths makes
    visible."""

    homes: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    strays: tuple[Stray, ...] = ()
    wrong_case: tuple[Stray, ...] = ()
    loose: tuple[Stray, ...] = ()
    unread: tuple[Stray, ...] = ()


@dataclass(frozen=True)
class VolumeFacts:
    """A volume; after a hang or a failure the remaining fields keep their defaults. `state` is None
    if not even the root answered within `silent_after` seconds. `comfyui` is the ComfyUI that will
    run (`comfyui_real` without links), None if its main.py is gone. `home` is ComfyUI's folder on
    the volume, or the first place to look; `expected` is its listing (None if it does not exist).
    `places` are other ComfyUIs; `rivals` are equally good ones, `asked` is COMFYUI_PATH if there is
    no ComfyUI. `nodes` are folders of custom nodes that ComfyUI does not read, `paths_file` its
    file of further model folders. `user` is this process's user id; `configured`: VOLUME_PATH names
    the root. `closed` is the first folder up to the root that this user may not enter; `meant` is
    the volume probably meant by the root, if it is not one.
    """

    root: str
    real: str = ""
    silent_after: float | None = None
    state: VolumeState | None = None
    trouble: Trouble | None = None
    mount: Mount | None = None
    top: Folder | None = None
    space: Space | None = None
    writing: Writing | None = None
    user: int = 0
    configured: bool = False
    access: tuple[Access, ...] = ()
    comfyui: str | None = None
    comfyui_real: str = ""
    comfyui_on_volume: bool = False
    expected: Folder | None = None
    places: tuple[str, ...] = ()
    home: str = ""
    rivals: tuple[str, ...] = ()
    asked: str | None = None
    nodes: tuple[str, ...] = ()
    paths_file: str = ""
    other_mounts: tuple[OtherMount, ...] = ()
    models: ModelPlaces = ModelPlaces()
    links: tuple[LinkFact, ...] = ()
    venvs: tuple[Venv, ...] = ()
    model_paths: tuple[ModelPath, ...] = ()
    paths_tabs: tuple[int, ...] = ()
    leftovers: tuple[Leftover, ...] = ()
    closed: str = ""
    meant: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "home", self.home or os.path.join(self.root, COMFYUI))

    @property
    def mounted(self) -> bool:
        """Is the root itself a mount, or a folder on a network mount?"""
        if self.mount is None:
            return True  # unknown: not reported
        return self.mount.network or self.mount.point == self.real

    def as_dict(self) -> dict[str, Any]:
        """The facts as JSON-ready data of bounded size; names that are not UTF-8 are escaped."""
        data: dict[str, Any] = _clean(asdict(self))
        data["mounted"] = self.mounted
        data["link_count"] = len(self.links)
        data["leftover_count"] = len(self.leftovers)
        return data


def _clean(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _clean(item) for key, item in value.items()}
    if isinstance(value, frozenset):
        return _clean(sorted(value))
    if isinstance(value, (list, tuple)):
        return [_clean(item) for item in value[:MOST_SHOWN]]
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return _clean(str(value))
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return value
