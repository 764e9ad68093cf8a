"""The volume: is it there, has it space, is everything where it should be?

`check_volume` is complete; `check_layout` is the short check at the start of a boot.
"""

from __future__ import annotations

from bootstrap.config import Settings
from bootstrap.core.findings import Finding, error, errors_in, host_error, info, ok, warning
from bootstrap.core.text import (
    GB,
    IN_ENDPOINT,
    about,
    on_pod,
    printable,
    shell_quote,
    size_text,
    summarize_list,
)
from bootstrap.doctor.checks.volume_layout import (
    SOURCE,
    WITH_COMFYUI,
    check_comfyui,
    check_models,
    check_nodes,
    check_unread,
    elsewhere,
    path_wrong,
    several,
)
from bootstrap.doctor.checks.volume_links import check_leftovers, check_links, check_paths
from bootstrap.doctor.facts.inventory import Inventory
from bootstrap.doctor.facts.volume_facts import Access, Space, VolumeFacts, VolumeState
from bootstrap.volume import COMFYUI, Layout

CODES = {
    "volume.silent": "The volume does not respond: its mount hangs",
    "volume.not_found": "There is no volume where it was expected",
    "volume.not_mounted": "The volume's folder is empty and not mounted: no volume is attached",
    "volume.not_a_folder": "What is at the volume's path is not a folder",
    "volume.io_error": "The volume's mount is broken: the system reports an error",
    "volume.local": "The volume's folder is on a disk of this machine, not on a network volume",
    "volume.inside": "`VOLUME_PATH` names a folder inside the volume, not the volume",
    "volume.unreadable": "This user may not read some folders on the volume",
    "volume.not_writable": "This user may not write to some folders on the volume",
    "volume.read_only": "The volume is mounted read-only",
    "volume.full": "The volume cannot store any more data",
    "volume.low": "The volume has little space left",
    "volume.inodes_gone": "The volume cannot store any more files",
    "volume.inodes_low": "The volume has room for few more files",
    "volume.space_unknown": "The free space cannot be determined from here",
    "volume.slow": "Writing a tiny file to the volume takes seconds",
    "volume.found": "The volume and ComfyUI are where they should be",
}
#: How to attach a network volume to an endpoint or a Pod.
_ATTACH = (
    "Serverless > the endpoint > Manage > Edit Endpoint > Advanced > Network Volumes, then Save; "
    "it must be in one of the endpoint's datacenters, and only workers started later have it. A "
    "Pod gets a network volume only when it is deployed."
)
TB = 1024**4
# A handful of pictures or one video.
LITTLE_ROOM = GB
# A nearly full file system is slow; on a large one, space for a big model is enough.
LITTLE_SHARE, ENOUGH_ROOM = 0.02, 20 * GB
FEW_INODES = 1000
# Network volumes have about 4 TB at most; a file system that reports more means its cluster.
IMPLAUSIBLE = 64 * TB
# Four or five round trips of 2 ms each and a flush.
SLOW_WRITE = 2.0
_FULL = ("ENOSPC", "EDQUOT")
_FORBIDDEN = ("EACCES", "EPERM")
_GROW = "Or enlarge it: Storage > the volume > Edit."


def check_presence(facts: VolumeFacts) -> list[Finding]:
    """Why nothing else can be checked on the volume; empty if it is there."""
    root = printable(facts.root)
    if facts.silent_after is not None:
        return [_silent(facts, root)]
    if facts.state is VolumeState.MISSING:
        return [_absent(facts, "volume.not_found", f"There is no volume at {root}.")]
    if facts.state is VolumeState.FILE:
        return [_not_a_folder(root)]
    if facts.state is not VolumeState.FOLDER:
        return [_bad(facts, root)]
    if facts.meant is not None:
        return [inside(facts.root, facts.meant, facts.comfyui)]
    if not facts.mounted and not _furnished(facts):
        empty = facts.top is not None and not facts.top.names
        what = "an empty folder" if empty else "a folder with neither ComfyUI nor models"
        message = f"{root} is {what} on this machine's own disk: no volume is mounted there."
        return [_absent(facts, "volume.not_mounted", message)]
    return []


def _furnished(facts: VolumeFacts) -> bool:
    """A worker whose volume vanished may have created `ComfyUI/output` on its own disk."""
    return bool(
        facts.models.homes or facts.models.strays or facts.places or facts.comfyui_on_volume
    )


def _silent(facts: VolumeFacts, root: str) -> Finding:
    system = f" ({facts.mount.system})" if facts.mount and facts.mount.network else ""
    return error(
        "volume.silent",
        f"The volume at {root}{system} did not answer within {facts.silent_after:g} s.",
        "Its storage or its mount hangs. End this worker (Serverless > the endpoint > Workers > "
        "Terminate) or restart the Pod; if the next one has the same problem, look at "
        "Runpod's status page and ask its support with the volume's id.",
        root=root,
        seconds=facts.silent_after,
    )


def _absent(facts: VolumeFacts, code: str, message: str) -> Finding:
    """An image may have its own ComfyUI and need no volume, unless VOLUME_PATH is set."""
    if facts.meant is not None:
        message += f" Did you mean {printable(facts.meant)}?"
    fix = attach(facts.meant)
    if facts.comfyui is None:
        return error(code, message, fix, root=printable(facts.root))
    message += f" ComfyUI is the image's, at {printable(facts.comfyui)}."
    report = warning if facts.configured else info
    return report(code, message, fix, root=printable(facts.root))


def attach(meant: str | None) -> str:
    """How to bring the volume to where it is looked for; `meant` is where it may be instead."""
    if meant is None:
        return (
            f"Attach it: {_ATTACH} If it is mounted elsewhere, name that folder: VOLUME_PATH for a "
            "worker, the argument for the checker."
        )
    return f"Set VOLUME_PATH={shell_quote(meant)} {IN_ENDPOINT}. If none is attached yet: {_ATTACH}"


def inside(root: str, volume: str, comfyui: str | None) -> Finding:
    """The volume's ComfyUI, models and nodes are not found from there; the image's may run."""
    report = error if comfyui is None else warning
    return report(
        "volume.inside",
        f"{printable(root)} is a folder of the volume at {printable(volume)}, not the volume.",
        f"Set VOLUME_PATH={shell_quote(volume)} {IN_ENDPOINT}, or remove it where that is a usual "
        "mount point.",
        root=printable(root),
        volume=printable(volume),
    )


def _not_a_folder(root: str) -> Finding:
    return error(
        "volume.not_a_folder",
        f"{root} is a file, not a folder.",
        "Set VOLUME_PATH to the folder where the volume is mounted, or remove VOLUME_PATH.",
        root=root,
    )


def _bad(facts: VolumeFacts, root: str) -> Finding:
    trouble = facts.trouble
    name, text = (trouble.name, trouble.text) if trouble else ("unknown", "no reason given")
    if name in ("EACCES", "EPERM"):
        closed = facts.closed or facts.root
        command = f"chmod a+rx {shell_quote(closed)}"
        own = f"chown {facts.user} {shell_quote(closed)}"
        return error(
            "volume.unreadable",
            f"User {facts.user} may not read {printable(closed)}: {text}. Nothing in it was "
            "checked.",
            on_pod(command, facts.root, f"Or give it to that user: `{own}`."),
            **about([closed], command),
        )
    return io_error(root, "read", name, text)


def io_error(root: str, what: str, name: str, text: str) -> Finding:
    """Another worker gets another mount, so this counts as the machine's fault."""
    return host_error(
        "volume.io_error",
        f"The volume at {root} cannot be {what}: {text} ({name}).",
        "Its mount is broken. A serverless worker is replaced; restart a Pod. If it stays, ask "
        "Runpod's support with the volume's id.",
        root=root,
        errno=name,
    )


def check_disk(facts: VolumeFacts) -> list[Finding]:
    """Kind of mount, room, permissions, speed of a write."""
    found = [_local(facts), _read_only(facts), _full(facts), _room(facts.space, facts)]
    found += [_unreadable(facts), _not_writable(facts), _broken(facts), _slow(facts)]
    return [f for f in found if f is not None]


def _broken(facts: VolumeFacts) -> Finding | None:
    """A write error other than space or permissions."""
    trouble = facts.writing.trouble if facts.writing else None
    if trouble is None or trouble.name in (*_FULL, *_FORBIDDEN, "EROFS"):
        return None
    return io_error(printable(facts.root), "written to", trouble.name, trouble.text)


def _local(facts: VolumeFacts) -> Finding | None:
    mount = facts.mount
    if mount is None or mount.network:
        return None
    return info(
        "volume.local",
        f"{printable(facts.root)} is on a disk of this machine ({mount.kind}), not on a network "
        "volume: other machines cannot see it.",
        "For Serverless, put ComfyUI and models on a network volume: Storage > New Network Volume.",
        kind=mount.kind,
        point=printable(mount.point),
    )


def _read_only(facts: VolumeFacts) -> Finding | None:
    trouble = facts.writing.trouble if facts.writing else None
    by_error = trouble is not None and trouble.name == "EROFS"
    if not by_error and not (facts.mount and facts.mount.read_only):
        return None
    point = facts.mount.point if facts.mount else facts.root
    command = f"mount -o remount,rw {shell_quote(point)}"
    return warning(
        "volume.read_only",
        f"The volume at {printable(facts.root)} is mounted read-only: jobs run, but results cannot "
        "be saved on it, nor models downloaded to it.",
        "On Runpod, start another worker or Pod, and ask Runpod's support if it happens there too. "
        f"On a machine of your own, as root: `{command}`. In Docker, remove `:ro` from its volume.",
        command=command,
    )


def _full(facts: VolumeFacts) -> Finding | None:
    trouble = facts.writing.trouble if facts.writing else None
    if trouble is None or trouble.name not in _FULL:
        return None
    root, space = shell_quote(facts.root), facts.space
    if trouble.name == "ENOSPC" and space and space.inodes_total and not space.inodes_free:
        command = f"du --inodes -x --max-depth=2 {root} | sort -n | tail -n 20"
        return error(
            "volume.inodes_gone",
            f"The volume at {printable(facts.root)} can hold no more files: all "
            f"{space.inodes_total:,} inodes are in use.",
            on_pod(command, facts.root, f"Remove a folder of many small files. {_GROW}"),
            command=command,
        )
    command = f"du -axh {root} | sort -h | tail -n 30"
    why = "its quota is used up" if trouble.name == "EDQUOT" else "no space is left"
    return error(
        "volume.full",
        f"The volume at {printable(facts.root)} is full: {why}. Results and models cannot be saved "
        "on it.",
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
            "size: the volume's own free space is unknown here.",
            "Storage > the volume shows what is in use.",
            total=space.total,
        )
    share = min(LITTLE_SHARE * space.total, ENOUGH_ROOM)
    if space.free < max(LITTLE_ROOM, share):
        return _low(space, facts)
    if space.inodes_total and space.inodes_free < FEW_INODES:
        command = f"du --inodes -x --max-depth=2 {shell_quote(facts.root)} | sort -n | tail -n 20"
        return warning(
            "volume.inodes_low",
            f"The volume at {printable(facts.root)} can hold only {space.inodes_free:,} more "
            "files.",
            on_pod(command, facts.root, f"Remove a folder of many small files. {_GROW}"),
            command=command,
            inodes_free=space.inodes_free,
        )
    return None


def _low(space: Space, facts: VolumeFacts) -> Finding:
    command = f"du -axh {shell_quote(facts.root)} | sort -h | tail -n 30"
    return warning(
        "volume.low",
        f"The volume at {printable(facts.root)} is nearly full: {size_text(space.free)} of "
        f"{size_text(space.total)} are free.",
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
    comfyui = facts.comfyui or facts.home
    code = (facts.root, comfyui, f"{comfyui}/main.py")
    report = error if any(path in code for path in hidden) else warning
    command = "chmod -R a+rX " + " ".join(map(shell_quote, hidden))
    return report(
        "volume.unreadable",
        f"User {facts.user} may not read {summarize_list(hidden)}.",
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
    words = " ".join(map(shell_quote, paths))
    command = f"chmod a+rwX {words}"
    return warning(
        "volume.not_writable",
        f"User {facts.user} may not write to {summarize_list(paths)}: results cannot be saved "
        "there, nor models downloaded.",
        on_pod(command, facts.root, f"Or give them to that user: `chown {facts.user} {words}`."),
        **about(paths, command),
    )


def _is_written_to(access: Access) -> bool:
    """Custom nodes' code and input files are only read."""
    return not access.path.endswith(("/custom_nodes", "/input"))


def _slow(facts: VolumeFacts) -> Finding | None:
    writing = facts.writing
    if writing is None or writing.trouble or writing.seconds < SLOW_WRITE:
        return None
    return warning(
        "volume.slow",
        f"Writing a tiny file to {printable(facts.root)} took {writing.seconds:.1f} s; far "
        "less than one is usual.",
        "Try again in some minutes, since others use the same storage; if it stays, start "
        "another worker, and ask Runpod's support with the volume's id.",
        seconds=round(writing.seconds, 3),
    )


def check_volume(
    facts: VolumeFacts, settings: Settings, inventory: Inventory | None = None
) -> list[Finding]:
    """All findings about volume and links, those among the models (`inventory`) included. What
    keeps everything else from being seen comes alone.

    It covers what `check_layout` says.
    """
    absent = check_presence(facts)
    if absent:
        return absent
    found = [*check_disk(facts), *check_comfyui(facts), *check_nodes(facts), *check_models(facts)]
    found += [*check_links(facts, settings, inventory), *check_paths(facts, settings)]
    found += [*check_unread(facts, inventory), *check_leftovers(facts)]
    return found if errors_in(found) else [_good(facts), *found]


def check_layout(layout: Layout) -> list[Finding]:
    """The volume's root and ComfyUI's `main.py`, as `locate` found them."""
    root = str(layout.root)
    if layout.asked is not None and layout.root_exists:
        return [path_wrong(str(layout.asked), (), root)]
    if layout.rivals:
        return [several(list(map(str, layout.rivals)), root)]
    if layout.meant is not None and layout.root_exists:
        comfyui = None if layout.comfyui is None else str(layout.comfyui)
        return [inside(root, str(layout.meant), comfyui)]
    if layout.comfyui is None:
        return [_no_comfyui(layout) if layout.root_exists else _no_volume(layout)]
    models = (
        summarize_list([str(path) for path in layout.model_roots]) or "none beside ComfyUI's own"
    )
    comfyui = printable(str(layout.comfyui))
    volume = (
        f"volume {printable(root)}" if layout.root_exists else f"no volume at {printable(root)}"
    )
    nodes = f", custom nodes {printable(str(layout.nodes))}" if layout.nodes else ""
    found = [ok("volume.found", f"ComfyUI at {comfyui}, {volume}, models {models}{nodes}.")]
    if layout.comfyui_on_volume and layout.data is not None:
        found.append(elsewhere(str(layout.data), root))
    return found


def _good(facts: VolumeFacts) -> Finding:
    mount = f" ({facts.mount.system})" if facts.mount else ""
    took = f", a write takes {facts.writing.seconds * 1000:.0f} ms" if facts.writing else ""
    room = f", {facts.space.free / GB:,.1f} GiB free" if facts.space else ""
    return ok(
        "volume.found",
        f"Volume {printable(facts.root)}{mount}{room}{took}; ComfyUI at "
        f"{printable(str(facts.comfyui))}, "
        f"models in {summarize_list(facts.models.homes) or 'ComfyUI'}.",
    )


def _no_volume(layout: Layout) -> Finding:
    return error(
        "volume.not_found",
        f"There is no volume at {printable(str(layout.root))}."
        + (f" Did you mean {printable(str(layout.meant))}?" if layout.meant else ""),
        attach(None if layout.meant is None else str(layout.meant)),
        root=printable(str(layout.root)),
    )


def _no_comfyui(layout: Layout) -> Finding:
    place = layout.root / COMFYUI
    return error(
        "comfyui.not_found",
        f"There is no ComfyUI at {printable(str(place))} (main.py is missing), nor within three "
        "folders of the volume's root, and none in the image.",
        f"On a Pod with this volume, put ComfyUI there: `git clone {SOURCE} "
        f"{shell_quote(str(place))}`. {WITH_COMFYUI}",
        looked_at=printable(str(place)),
    )
