"""Which mount a path lies on, from /proc/self/mountinfo: nothing on the mount itself is asked.

Format: proc(5). Kinds of network file system: what Runpod uses (MooseFS over FUSE, NFS) and what
others do.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_NETWORK = frozenset(
    "nfs nfs4 cifs smb3 smbfs ceph lustre gpfs beegfs glusterfs 9p virtiofs wekafs".split()
)
# FUSE file systems that are local; every other `fuse.*` is taken for a network's.
_LOCAL_FUSE = frozenset("fuse.fuse-overlayfs fuse.lxcfs fuse.gvfsd-fuse fuse.portal".split())
_ESCAPED = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Mount:
    """A mount: where, of which file system type and source, read-only or not.

    `system` is a name for people ("MooseFS", "NFS", else the type); `network` that it is one.
    """

    point: str
    kind: str
    source: str
    system: str
    network: bool
    read_only: bool


def mount_of(path: str, mountinfo: Path) -> Mount | None:
    """The mount that `path` (absolute, free of links) lies on; None when that cannot be read."""
    try:
        lines = mountinfo.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return None
    best: Mount | None = None
    for line in lines:
        mount = _parse(line)
        # Of two mounts on one point the later hides the earlier.
        if (
            mount
            and _holds(mount.point, path)
            and len(mount.point) >= len(best.point if best else "")
        ):
            best = mount
    return best


def _holds(point: str, path: str) -> bool:
    return PurePosixPath(path).is_relative_to(point)


def _parse(line: str) -> Mount | None:
    before, dash, after = line.partition(" - ")
    fields, rest = before.split(" "), after.split(" ")
    if not dash or len(fields) < 6 or len(rest) < 3:
        return None
    kind, source = rest[0], _plain(rest[1])
    options = {*fields[5].split(","), *rest[2].split(",")}
    fuse = kind == "fuse" or kind.startswith("fuse.")
    return Mount(
        point=_plain(fields[4]),
        kind=kind,
        source=source,
        system=_name(kind, source),
        network=kind in _NETWORK or (fuse and kind not in _LOCAL_FUSE),
        read_only="ro" in options,
    )


def _plain(text: str) -> str:
    """Spaces and the like stand as three octal digits."""
    return _ESCAPED.sub(lambda match: chr(int(match[1], 8)), text)


def _name(kind: str, source: str) -> str:
    if source.startswith("mfs#") or kind in ("fuse.mfs", "fuse.mfsmount"):
        return "MooseFS"
    if kind in ("nfs", "nfs4"):
        return "NFS"
    return kind
