"""The volume: is it there, and is everything where it should be?

`check_volume` is complete; `check_layout` is the short check at the start of a boot.
"""

from __future__ import annotations

from collections.abc import Iterator
from posixpath import basename, dirname, join

from bootstrap.config import Settings
from bootstrap.core.findings import Finding, error, errors_in, info, ok, warning
from bootstrap.core.temp_files import Leftover
from bootstrap.core.text import (
    GB,
    IN_ENDPOINT,
    about,
    chained,
    on_pod,
    pluralize,
    printable,
    shell_quote,
    size_text,
    summarize_list,
    words,
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
from bootstrap.doctor.checks.volume_links import check_links, check_paths
from bootstrap.doctor.checks.volume_storage import FORBIDDEN, check_disk, io_error
from bootstrap.doctor.facts.inventory import Inventory
from bootstrap.doctor.facts.volume_facts import VolumeFacts, VolumeState
from bootstrap.volume import COMFYUI, Layout
from bootstrap.volume.locate import attach_volume, no_volume

CODES = {
    "volume.silent": "The volume does not respond: its mount hangs",
    "volume.not_mounted": "The volume's folder is empty and not mounted: no volume is attached",
    "volume.not_a_folder": "What is at the volume's path is not a folder",
    "volume.inside": "`VOLUME_PATH` names a folder inside the volume, not the volume",
    "volume.unreadable": "This user may not read some folders on the volume",
    "volume.leftovers": "Killed workers left temporary files",
    "volume.put_aside": "A file was put aside while a link was being removed, and not put back",
    "volume.found": "The volume and ComfyUI are where they should be",
}


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
    fix = attach_volume(facts.meant)
    if facts.comfyui is None:
        return error(code, message, fix, root=printable(facts.root))
    message += f" ComfyUI is the image's, at {printable(facts.comfyui)}."
    report = warning if facts.configured else info
    return report(code, message, fix, root=printable(facts.root))


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
    if name in FORBIDDEN:
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
        return [_no_comfyui(layout) if layout.root_exists else no_volume(layout)]
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


def check_leftovers(facts: VolumeFacts) -> list[Finding]:
    """Which of our files may be removed, and which need attention."""
    stale = [leftover for leftover in facts.leftovers if leftover.stale]
    kept = [x for x in stale if x.kind == "unlinking" and not x.removable]
    old = [x for x in stale if x.removable]
    return [*_sweepable(old, facts), *_put_aside(kept, facts)]


def _sweepable(stale: list[Leftover], facts: VolumeFacts) -> Iterator[Finding]:
    if not stale:
        return
    size = sum(x.size for x in stale)
    paths = [x.path for x in stale]
    command = f"rm -f {words(paths)}"
    report = warning if size > GB else info
    yield report(
        "volume.leftovers",
        f"Workers that were killed left {pluralize(len(paths), 'file')} ({size_text(size)}): "
        f"{summarize_list(paths)}.",
        on_pod(command, facts.root, "Or check again with --fix."),
        **about(paths, command),
    )


def _put_aside(kept: list[Leftover], facts: VolumeFacts) -> Iterator[Finding]:
    if not kept:
        return
    paths = [x.path for x in kept]
    names = {path: f"put-aside-{basename(path)[1:9]}" for path in paths}
    command = chained(
        [f"mv -nT {shell_quote(p)} {shell_quote(join(dirname(p), names[p]))}" for p in paths]
    )
    yield warning(
        "volume.put_aside",
        f"{summarize_list(paths)} stood where a worker was about to remove a link of its own, and "
        "was put aside under a hidden name.",
        on_pod(command, facts.root, "Then see what it is, and rename it."),
        **about(paths, command),
    )
