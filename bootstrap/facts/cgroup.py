"""Where this process' control groups lie, and what files there say.

In a container the limits are the cgroup's, not the machine's: `/proc/meminfo` and
`os.cpu_count()` show the host. Sources: cgroups(7); kernel documentation
admin-guide/cgroup-v2.rst and admin-guide/cgroup-v1/memory.rst.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True)
class Hierarchy:
    """One mounted cgroup tree: where it is, and which part of the kernel's tree that shows."""

    version: int
    mount: Path
    shown: PurePosixPath
    controllers: frozenset[str] = frozenset()


def group_folders(root: Path, controller: str) -> tuple[tuple[int, Path], ...]:
    """(version, folder) of the groups that limit us for `controller`, innermost first.

    A limit of any ancestor counts, so all of them are given. Where both versions are mounted
    ("hybrid"), a controller lives in one of them only: the version 2 folders, which then lack
    the controller's files, come first and yield nothing.

    Raises OSError or ValueError when /proc cannot be read or understood.
    """
    paths = _own_groups(root / "proc/self/cgroup")
    folders: list[tuple[int, Path]] = []
    for tree in sorted(_hierarchies(root), key=lambda tree: -tree.version):
        if tree.version == 1 and controller not in tree.controllers:
            continue
        own = paths.get("" if tree.version == 2 else controller)
        if own is not None:
            folders += [(tree.version, folder) for folder in _upwards(tree, own)]
    return tuple(folders)


def read_text(path: Path) -> str | None:
    """The file's text without white space around it; None when there is no such file."""
    try:
        return path.read_text("ascii", "replace").strip()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None


def read_integer(path: Path) -> int | None:
    """The number in a file; None for no such file and for texts such as `max`."""
    text = read_text(path)
    try:
        return int(text) if text else None
    except ValueError:
        return None


def read_table(path: Path) -> dict[str, int]:
    """A flat keyed file such as memory.stat; empty when there is no such file."""
    table: dict[str, int] = {}
    for line in (read_text(path) or "").splitlines():
        key, _, value = line.partition(" ")
        if value.strip().isdigit():
            table[key] = int(value)
    return table


def _own_groups(path: Path) -> dict[str, PurePosixPath]:
    """Controller -> our group's path; `""` is version 2. Lines are `id:controllers:path`."""
    groups: dict[str, PurePosixPath] = {}
    for line in (read_text(path) or "").splitlines():
        _, controllers, group = line.split(":", 2)
        for controller in controllers.split(","):
            groups[controller] = PurePosixPath(group)
    return groups


def _hierarchies(root: Path) -> Iterator[Hierarchy]:
    """The mounted trees; proc(5) describes the lines of mountinfo."""
    for line in (read_text(root / "proc/self/mountinfo") or "").splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.partition(" ")
        if kind not in ("cgroup", "cgroup2"):
            continue
        fields = before.split()
        mount = root / fields[4].lstrip("/")
        controllers = frozenset(options.split()[-1].split(","))
        version = 2 if kind == "cgroup2" else 1
        yield Hierarchy(version, mount, PurePosixPath(fields[3]), controllers)


def _upwards(tree: Hierarchy, own: PurePosixPath) -> Iterator[Path]:
    """Our folder and its parents up to the mount, those that exist.

    Without a cgroup namespace the path is the host's (`/docker/<id>`) while the mount shows only
    that part of the tree, so the shown part is cut off; what does not fit means the mount itself.
    """
    try:
        inside = own.relative_to(tree.shown)
    except ValueError:
        inside = PurePosixPath(own.as_posix().lstrip("/"))
    for part in (inside, *inside.parents):
        if ".." in part.parts:
            continue
        folder = tree.mount / part
        if folder.is_dir():
            yield folder
