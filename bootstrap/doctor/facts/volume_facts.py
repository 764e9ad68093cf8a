"""What is known of a volume, as frozen data: room, access, and the links at its top.

The same volume is `/runpod-volume` on Serverless and `/workspace` on a Pod, so a link that names
either is right in one place only.
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

# A link costs a readlink, a stat and the stats of its path.
MOST_LINKS = 200
# Of each kind of thing so many are listed; a diagnostics reply has room for 1 MB in all.
MOST_SHOWN = 50


class Leads(str, Enum):
    """Where a link leads. `UP` is to a folder that it lies in: following it never ends."""

    WELL = "well"
    NOWHERE = "nowhere"
    LOOP = "loop"
    UP = "up"
    OUT = "out"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class LinkFact:
    """A link at `path` that reads `text`.

    `home` is the mount point that `text` begins with, if it is one a volume can have. `relative`
    then is the text that leads to the same place under any mount point, if there is something.
    `ours` marks one that our link plan made.
    """

    path: str
    text: str
    leads: Leads
    home: str | None = None
    relative: str | None = None
    ours: bool = False


def look_at_link(path: str, root: str, tree: str, homes: Sequence[str]) -> LinkFact | None:
    """The link at `path`, or None when it is gone.

    `root` is where the volume begins, `tree` what counts as being on it (the mount, where `root`
    is a folder on it); both without links. `homes` are the mount points a text may begin with.
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


def _leads(path: str, tree: str) -> Leads:
    try:
        found = os.stat(path)
    except OSError as problem:
        if problem.errno == errno.ELOOP:
            return Leads.LOOP
        absent = problem.errno in (errno.ENOENT, errno.ENOTDIR)
        return Leads.NOWHERE if absent else Leads.UNKNOWN
    real = os.path.realpath(path)
    if stat.S_ISDIR(found.st_mode) and contains(real, os.path.realpath(os.path.dirname(path))):
        return Leads.UP
    return Leads.WELL if contains(tree, real) else Leads.OUT


@dataclass(frozen=True)
class Space:
    """What statvfs says, in bytes and inodes. A network file system often tells what its whole
    cluster has, not this volume's quota; `inodes_total` is 0 where they are not counted."""

    total: int
    free: int
    inodes_total: int
    inodes_free: int


@dataclass(frozen=True)
class Writing:
    """Making, flushing and removing a tiny file: seconds it took, or what went wrong.

    `now` is the file's time, so the volume's own clock, in seconds since 1970.
    """

    seconds: float
    now: float | None = None
    trouble: Trouble | None = None


@dataclass(frozen=True)
class Access:
    """Who owns a path and what this process may do there. `mode` holds the permission bits;
    a folder that cannot be entered counts as not readable."""

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
    """Make a file in `folder`, flush it to the disk, remove it.

    core/temp_files.py knows its name, should this process be killed meanwhile.
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
    """None when there is nothing at `path`, or it cannot be asked."""
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
    """What is at the volume's path. `BAD` is what cannot be asked; see `trouble`."""

    FOLDER = "folder"
    MISSING = "missing"
    FILE = "file"
    BAD = "bad"


@dataclass(frozen=True)
class Models:
    """`homes` are the models folders there are (the volume's own first), `missing` the usual
    categories that none has. `strays` are folders outside of them, `loose` single files that no
    loader looks for (`belongs` is "" where their contents do not tell it), `wrong_case` are
    misspelt."""

    homes: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    strays: tuple[Stray, ...] = ()
    wrong_case: tuple[Stray, ...] = ()
    loose: tuple[Stray, ...] = ()


@dataclass(frozen=True)
class VolumeFacts:
    """What was seen; fields behind a silence or a failure keep their defaults.

    `state` is None when not even the root answered within `silent_after` seconds. `comfyui` is
    the ComfyUI that will run (`comfyui_real` without links), None when its main.py is gone.
    `home` is ComfyUI's folder on the volume, or where one is looked for first; `expected` is its
    listing (None when there is nothing). `places` are other ComfyUIs; `rivals` are those none of
    which goes before the others, `asked` what COMFYUI_PATH names if there is none. `nodes` are
    folders of custom nodes that ComfyUI does not read, `paths_file` its file of further models.
    `user` is this process's user id; `configured` that VOLUME_PATH names the root. `closed` is the
    folder on the way to the root, or itself, that this user may not enter; `meant` the volume that
    the root most likely stands for, where it is none.
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
    models: Models = Models()
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
        """Is the root itself a mount, or a folder on a network's?"""
        if self.mount is None:
            return True  # unknown: no complaint
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
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return value
