"""Memory and CPU this container may use: cgroup v2, then v1, then the whole machine.

In a container the limits are the cgroup's, not the machine's: `/proc/meminfo` and
`os.cpu_count()` show the host. Sources: cgroups(7); kernel documentation
admin-guide/cgroup-v2.rst and admin-guide/cgroup-v1/memory.rst.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True)
class Hierarchy:
    """One mounted cgroup tree: its mount point, and which part of the kernel's tree it shows."""

    version: int
    mount: Path
    shown: PurePosixPath
    controllers: frozenset[str] = frozenset()


def group_folders(root: Path, controller: str) -> tuple[tuple[int, Path], ...]:
    """(version, folder) of the groups that limit this process for `controller`, innermost first.

    An ancestor's limit counts too, so all are returned. Where both versions are mounted ("hybrid"),
    a controller is in only one of them: the version 2 folders come first and may lack the
    controller's files.

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
    """The file's text, stripped; None if there is no such file."""
    try:
        return path.read_text("ascii", "replace").strip()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None


def read_integer(path: Path) -> int | None:
    """The number in a file; None if there is no such file, or for texts such as `max`."""
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
    that part of the tree, so that prefix is removed; a path that does not match means the mount
    itself.
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


@dataclass(frozen=True)
class MemoryFacts:
    """Sizes in bytes.

    `limit` is the smallest limit that applies, or else the machine's memory. `reclaimable` is page
    cache the kernel gives back before it kills (inactive_file), so `available` is what can still be
    allocated; `file_pages` is all page cache of files, active pages included. `oom_kills` counts
    processes the kernel has killed in this container for lack of memory. `source` is `cgroup v2`,
    `cgroup v1` or `/proc/meminfo`.
    """

    limit: int
    available: int
    used: int
    reclaimable: int
    host_total: int
    host_available: int
    source: str
    oom_kills: int | None = None
    file_pages: int = 0


@dataclass(frozen=True)
class CpuFacts:
    """`quota` in cores (2.5 is two and a half), None when unlimited; `usable` by affinity."""

    quota: float | None
    usable: int
    host: int
    source: str

    @property
    def cores(self) -> float:
        """Cores that this container can actually use."""
        return min(self.quota, self.usable) if self.quota else float(self.usable)


@dataclass(frozen=True)
class _Group:
    limit: int | None
    used: int
    reclaimable: int
    oom_kills: int | None
    source: str
    file_pages: int


def gather_memory(root: Path = Path("/")) -> MemoryFacts:
    """The container's memory; the machine's is only an upper bound.

    Raises OSError or ValueError when /proc/meminfo is unreadable.
    """
    total, available = _machine_memory(root)
    groups = list(_memory_groups(root))
    # A limit above what the machine has is none: version 1 writes "unlimited" as
    # 9223372036854771712 (the largest number of bytes in whole pages).
    limited = [g for g in groups if g.limit is not None and g.limit < total]
    if not limited:
        return MemoryFacts(
            limit=total,
            available=available,
            used=max(total - available, 0),
            reclaimable=0,
            host_total=total,
            host_available=available,
            source="/proc/meminfo",
            oom_kills=groups[0].oom_kills if groups else None,
        )
    tightest = min(limited, key=lambda g: g.limit or 0)
    headroom = min((g.limit or 0) - g.used + g.reclaimable for g in limited)
    return MemoryFacts(
        limit=tightest.limit or 0,
        available=max(min(headroom, available), 0),
        used=tightest.used,
        reclaimable=tightest.reclaimable,
        host_total=total,
        host_available=available,
        source=tightest.source,
        oom_kills=tightest.oom_kills,  # an outer group may count other containers' kills
        file_pages=tightest.file_pages,
    )


class MemoryGauge:
    """How full the container is, for frequent calls: the files to read are looked up once."""

    def __init__(self, root: Path = Path("/")) -> None:
        """Raises OSError or ValueError when /proc cannot be read or understood."""
        total, _ = _machine_memory(root)
        limited: list[tuple[int, tuple[int, Path]]] = []
        for place in group_folders(root, "memory"):
            group = _group(*place)
            if group is not None and group.limit is not None and 0 < group.limit < total:
                limited.append((group.limit, place))
        self._tightest = min(limited)[1] if limited else None

    def percent(self) -> float | None:
        """Percent of the container's limit that the kernel cannot reclaim; None without a limit.
        Pages of files do not count, even active ones: mapped models fill a container with them, and
        the kernel drops them before it kills.
        """
        group = None if self._tightest is None else _group(*self._tightest)
        if group is None or not group.limit:
            return None
        return 100 * max(group.used - group.file_pages, 0) / group.limit

    def room(self) -> tuple[int, int] | None:
        """(limit, available) in bytes, when the kernel reclaims the pages of files; None without a
        limit."""
        group = None if self._tightest is None else _group(*self._tightest)
        if group is None or not group.limit:
            return None
        return group.limit, max(group.limit - max(group.used - group.file_pages, 0), 0)


def gather_cpu(root: Path = Path("/")) -> CpuFacts:
    """Cores by quota (v2 `cpu.max`, v1 `cpu.cfs_quota_us`) and by affinity."""
    quotas = list(_cpu_quotas(root))
    cores, source = min(quotas, default=(None, "affinity"))
    usable = len(os.sched_getaffinity(0))
    return CpuFacts(cores, usable, os.cpu_count() or usable, source)


def _machine_memory(root: Path) -> tuple[int, int]:
    table: dict[str, int] = {}
    for line in (root / "proc/meminfo").read_text("ascii", "replace").splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdigit():
            table[name] = int(words[0]) * 1024  # "kB" there means KiB, proc(5)
    if "MemTotal" not in table:
        raise ValueError("/proc/meminfo has no MemTotal")
    return table["MemTotal"], table.get("MemAvailable", table.get("MemFree", 0))


def _memory_groups(root: Path) -> Iterator[_Group]:
    groups = (_group(version, folder) for version, folder in group_folders(root, "memory"))
    return (group for group in groups if group is not None)


def _group(version: int, folder: Path) -> _Group | None:
    """None for one without the controller."""
    stat = read_table(folder / "memory.stat")
    if version == 2 and (folder / "memory.current").is_file():
        return _Group(
            limit=read_integer(folder / "memory.max"),
            used=read_integer(folder / "memory.current") or 0,
            reclaimable=stat.get("inactive_file", 0),
            oom_kills=read_table(folder / "memory.events").get("oom_kill"),
            source="cgroup v2",
            file_pages=stat.get("inactive_file", 0) + stat.get("active_file", 0),
        )
    if version == 1:
        return _Group(
            limit=read_integer(folder / "memory.limit_in_bytes"),
            used=read_integer(folder / "memory.usage_in_bytes") or 0,
            # total_ counts the groups below as the usage does
            reclaimable=stat.get("total_inactive_file", stat.get("inactive_file", 0)),
            oom_kills=read_table(folder / "memory.oom_control").get("oom_kill"),
            source="cgroup v1",
            file_pages=sum(
                stat.get(f"total_{name}", stat.get(name, 0))
                for name in ("inactive_file", "active_file")
            ),
        )
    return None


def _cpu_quotas(root: Path) -> Iterator[tuple[float, str]]:
    for version, folder in group_folders(root, "cpu"):
        if version == 2:
            words = (read_text(folder / "cpu.max") or "max").split()
            if len(words) == 2 and words[0].isdigit() and int(words[1]) > 0:
                yield int(words[0]) / int(words[1]), "cgroup v2"
            continue
        quota = read_integer(folder / "cpu.cfs_quota_us")
        period = read_integer(folder / "cpu.cfs_period_us")
        if quota is not None and quota > 0 and period:
            yield quota / period, "cgroup v1"
