"""The volume: is it there, is there room, is everything where it is looked for?

`check_volume` says all there is to say; `check_layout` is the short look at the start of a boot.
"""

from __future__ import annotations

from bootstrap.checks.links import check_links, hides_comfyui
from bootstrap.checks.volume_disk import check_disk
from bootstrap.checks.volume_layout import SOURCE, check_comfyui, check_models
from bootstrap.checks.volume_paths import check_leftovers, check_paths
from bootstrap.checks.volume_presence import ATTACH, check_presence
from bootstrap.config import Settings
from bootstrap.core.findings import Finding, error, errors_in, ok
from bootstrap.core.text import GB, named, quoted, shown
from bootstrap.facts.volume_facts import VolumeFacts
from bootstrap.volume import COMFYUI, Layout

CODES = {"volume.found": "Volume and ComfyUI are where they should be."}


def check_volume(facts: VolumeFacts, settings: Settings) -> list[Finding]:
    """All findings about volume and links. What keeps everything else from being seen comes alone.

    It covers what `check_layout` says; `settings` is there for the sake of all checks' shape.
    """
    del settings
    absent = check_presence(facts)
    if absent:
        return absent
    found = check_disk(facts)
    if not hides_comfyui(facts):
        found += check_comfyui(facts)
    found += [*check_models(facts), *check_links(facts), *check_paths(facts)]
    found += check_leftovers(facts)
    return found if errors_in(found) else [_good(facts), *found]


def check_layout(layout: Layout) -> list[Finding]:
    """The volume's root and ComfyUI's `main.py`, as `locate` found them."""
    if not layout.root_exists and layout.comfyui is None:
        return [_no_volume(layout)]
    if layout.comfyui is None:
        return [_no_comfyui(layout)]
    models = named([str(root) for root in layout.model_roots]) or "none beside ComfyUI's own"
    comfyui, root = shown(str(layout.comfyui)), shown(str(layout.root))
    volume = f"volume {root}" if layout.root_exists else f"no volume at {root}"
    return [ok("volume.found", f"ComfyUI at {comfyui}, {volume}, models {models}.")]


def _good(facts: VolumeFacts) -> Finding:
    mount = f" ({facts.mount.system})" if facts.mount else ""
    took = f", a write takes {facts.writing.seconds * 1000:.0f} ms" if facts.writing else ""
    room = f", {facts.space.free / GB:,.1f} GB free" if facts.space else ""
    return ok(
        "volume.found",
        f"Volume {shown(facts.root)}{mount}{room}{took}; ComfyUI at {shown(str(facts.comfyui))}, "
        f"models in {named(facts.models.homes) or 'ComfyUI'}.",
    )


def _no_volume(layout: Layout) -> Finding:
    return error(
        "volume.not_found",
        f"There is no volume at {shown(str(layout.root))}.",
        ATTACH,
        root=shown(str(layout.root)),
    )


def _no_comfyui(layout: Layout) -> Finding:
    place = layout.root / COMFYUI
    return error(
        "comfyui.not_found",
        f"There is no ComfyUI at {shown(str(place))} (main.py is missing), and none in the image.",
        f"On a Pod with this volume, put ComfyUI there: git clone {SOURCE} {quoted(str(place))} "
        "(it must lie straight in the volume's root under exactly this name); or set COMFYUI_DIR "
        "to one in the image. `check_volume.py` looks for it in other places.",
        looked_at=shown(str(place)),
    )
