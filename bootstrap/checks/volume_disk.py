"""Is there room on the volume, may we read and write, and is it a network's at all?"""

from __future__ import annotations

from bootstrap.checks.volume_presence import io_error
from bootstrap.core.findings import Finding, error, info, warning
from bootstrap.core.text import GB, MB, about, named, on_pod, quoted, shown
from bootstrap.facts.volume_disk import Access, Space
from bootstrap.facts.volume_facts import VolumeFacts

TB = 1024**4
# A handful of pictures or one video.
LITTLE_ROOM = GB
# A file system slows down when it is nearly full; of a large one, room for a big model is enough.
LITTLE_SHARE, ENOUGH_ROOM = 0.02, 20 * GB
FEW_INODES = 1000
# Network volumes have 4 TB or a little more; a file system that tells more means its cluster.
IMPLAUSIBLE = 64 * TB
# Four or five round trips of 2 ms each and a flush.
SLOW_WRITE = 2.0
_FULL = ("ENOSPC", "EDQUOT")
_FORBIDDEN = ("EACCES", "EPERM")

CODES = {
    "volume.local": "The volume's folder is on a disk of this machine, not on a network volume.",
    "volume.unreadable": "Folders on the volume may not be read by this user.",
    "volume.not_writable": "Folders on the volume may not be written to by this user.",
    "volume.read_only": "The volume is mounted read-only.",
    "volume.full": "The volume takes no more data.",
    "volume.low": "The volume has little room left.",
    "volume.inodes_gone": "The volume takes no more files.",
    "volume.inodes_low": "The volume can hold few more files.",
    "volume.space_unknown": "How much room is left cannot be told from here.",
    "volume.slow": "Writing a tiny file to the volume takes seconds.",
}
_GROW = "Or enlarge it: Storage > the volume > Edit."


def check_disk(facts: VolumeFacts) -> list[Finding]:
    """Kind of mount, room, permissions, speed of a write."""
    found = [_local(facts), _read_only(facts), _full(facts), _room(facts.space, facts)]
    found += [_unreadable(facts), _not_writable(facts), _broken(facts), _slow(facts)]
    return [f for f in found if f is not None]


def _broken(facts: VolumeFacts) -> Finding | None:
    """What a write reported that is neither a matter of room nor of rights."""
    trouble = facts.writing.trouble if facts.writing else None
    if trouble is None or trouble.name in (*_FULL, *_FORBIDDEN, "EROFS"):
        return None
    return io_error(shown(facts.root), "written to", trouble.name, trouble.text)


def _local(facts: VolumeFacts) -> Finding | None:
    mount = facts.mount
    if mount is None or mount.network:
        return None
    return info(
        "volume.local",
        f"{shown(facts.root)} is on a disk of this machine ({mount.kind}), not on a network "
        "volume: no other machine sees what is on it.",
        "For Serverless, put ComfyUI and models on a network volume: Storage > New Network Volume.",
        kind=mount.kind,
        point=shown(mount.point),
    )


def _read_only(facts: VolumeFacts) -> Finding | None:
    trouble = facts.writing.trouble if facts.writing else None
    by_error = trouble is not None and trouble.name == "EROFS"
    if not by_error and not (facts.mount and facts.mount.read_only):
        return None
    point = facts.mount.point if facts.mount else facts.root
    command = f"mount -o remount,rw {quoted(point)}"
    return warning(
        "volume.read_only",
        f"The volume at {shown(facts.root)} is mounted read-only: results are not kept on it, "
        "models cannot be linked or downloaded.",
        "On Runpod: start another worker or Pod, and ask the support if that one has the same. "
        f"Where you may mount: `{command}`.",
        command=command,
    )


def _full(facts: VolumeFacts) -> Finding | None:
    trouble = facts.writing.trouble if facts.writing else None
    if trouble is None or trouble.name not in _FULL:
        return None
    root, space = quoted(facts.root), facts.space
    if trouble.name == "ENOSPC" and space and space.inodes_total and not space.inodes_free:
        command = f"du --inodes -x --max-depth=2 {root} | sort -n | tail -n 20"
        return error(
            "volume.inodes_gone",
            f"The volume at {shown(facts.root)} takes no more files: all {space.inodes_total} "
            "inodes are in use.",
            on_pod(command, facts.root, f"Remove a folder of many small files. {_GROW}"),
            command=command,
        )
    command = f"du -xh --max-depth=2 {root} | sort -h | tail -n 20"
    why = "its quota is used up" if trouble.name == "EDQUOT" else "no space is left"
    return error(
        "volume.full",
        f"The volume at {shown(facts.root)} takes no more data: {why}. Results and models cannot "
        "be kept.",
        on_pod(command, facts.root, f"Remove what you do not need. {_GROW}"),
        command=command,
    )


def _room(space: Space | None, facts: VolumeFacts) -> Finding | None:
    if space is None or (facts.writing and facts.writing.trouble):
        return None
    if space.total > IMPLAUSIBLE and facts.mount is not None and facts.mount.network:
        return info(
            "volume.space_unknown",
            f"{facts.mount.system} reports {space.total / TB:,.0f} TB, which is its cluster's "
            "size: how much of the volume is free cannot be told from here.",
            "Storage > the volume shows what is in use.",
            total=space.total,
        )
    share = min(LITTLE_SHARE * space.total, ENOUGH_ROOM)
    if space.free < max(LITTLE_ROOM, share):
        return _low(space, facts)
    if space.inodes_total and space.inodes_free < FEW_INODES:
        command = f"du --inodes -x --max-depth=2 {quoted(facts.root)} | sort -n | tail -n 20"
        return warning(
            "volume.inodes_low",
            f"The volume at {shown(facts.root)} can hold {space.inodes_free} more files only.",
            on_pod(command, facts.root, f"Remove a folder of many small files. {_GROW}"),
            command=command,
            inodes_free=space.inodes_free,
        )
    return None


def _low(space: Space, facts: VolumeFacts) -> Finding:
    command = f"du -xh --max-depth=2 {quoted(facts.root)} | sort -h | tail -n 20"
    return warning(
        "volume.low",
        f"The volume at {shown(facts.root)} has {space.free / MB:,.0f} MB of "
        f"{space.total / GB:,.1f} GB left.",
        on_pod(command, facts.root, f"Remove what you do not need. {_GROW}"),
        command=command,
        free=space.free,
        total=space.total,
    )


def _unreadable(facts: VolumeFacts) -> Finding | None:
    """Without its code ComfyUI does not start; without a folder of models it lists fewer."""
    hidden = [a.path for a in facts.access if not a.readable]
    if not hidden:
        return None
    code = (facts.root, facts.comfyui, f"{facts.comfyui}/main.py")
    report = error if any(path in code for path in hidden) else warning
    command = "chmod a+rX " + " ".join(map(quoted, hidden))
    return report(
        "volume.unreadable",
        f"User {facts.user} may not read {named(hidden)}.",
        on_pod(command, facts.root),
        **about(hidden, command),
    )


def _not_writable(facts: VolumeFacts) -> Finding | None:
    if _read_only(facts) is not None:
        return None
    trouble = facts.writing.trouble if facts.writing else None
    refused = trouble is not None and trouble.name in _FORBIDDEN
    closed = [a for a in facts.access if a.is_folder and not a.writable and _is_written_to(a)]
    paths = [a.path for a in closed]
    if refused and facts.root not in paths:
        paths.insert(0, facts.root)
    if not paths:
        return None
    command = "chmod a+rwX " + " ".join(map(quoted, paths))
    return warning(
        "volume.not_writable",
        f"User {facts.user} may not write to {named(paths)}: results are not kept, models not "
        "linked.",
        on_pod(command, facts.root, f"Or give them to that user: chown {facts.user} instead."),
        **about(paths, command),
    )


def _is_written_to(access: Access) -> bool:
    """Custom nodes' code and input files are read only."""
    return not access.path.endswith(("/custom_nodes", "/input"))


def _slow(facts: VolumeFacts) -> Finding | None:
    writing = facts.writing
    if writing is None or writing.trouble or writing.seconds < SLOW_WRITE:
        return None
    return warning(
        "volume.slow",
        f"Writing a tiny file to {shown(facts.root)} took {writing.seconds:.1f} s; far "
        "less than one is usual.",
        "Ask again in some minutes, since others use the same storage; if it stays, start "
        "another worker, and ask Runpod's support with the volume's id.",
        seconds=round(writing.seconds, 3),
    )
