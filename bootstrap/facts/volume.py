"""The network volume as this process sees it: mount, room, layout, links. Light and never hanging.

Only the top levels are looked at: some hundred metadata calls, made side by side; 80 to 110 ms
where each takes 1.5 ms. What lies deeper is for the inventory of models.
"""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path

from bootstrap.config import Settings
from bootstrap.core.concurrency import SilentError, Together
from bootstrap.core.files import list_folder, trouble_of
from bootstrap.facts.volume_disk import Space, look_at_space, try_writing
from bootstrap.facts.volume_facts import State, VolumeFacts
from bootstrap.facts.volume_survey import survey
from bootstrap.volume import Layout
from bootstrap.volume.layout import mount_of

__all__ = ["MOUNTINFO", "TIMEOUT", "VolumeFacts", "gather_volume"]

# All of it takes well under a second on a volume that works; a network mount that lost its server
# never answers.
TIMEOUT = 10.0
MOUNTINFO = Path("/proc/self/mountinfo")


def gather_volume(
    layout: Layout,
    settings: Settings,
    mountinfo: Path = MOUNTINFO,
    timeout: float = TIMEOUT,
) -> VolumeFacts:
    """Look at the volume of `layout`, for `timeout` seconds at most; raises nothing of the disk's.

    Asked afresh: `layout` says where to look, not what is there. One tiny file is made on the
    volume and removed. `settings` are those that `layout` was found with.
    """
    together = Together(timeout)
    root = os.path.normpath(layout.root)
    facts = VolumeFacts(
        root=root,
        real=root,
        mount=mount_of(root, mountinfo),
        user=os.geteuid(),
        configured=settings.volume_path is not None,
        comfyui=None if layout.comfyui_on_volume else _text(layout.comfyui),
    )
    try:
        facts = together.one(lambda: _look_at_root(root, facts))
        facts = replace(facts, mount=mount_of(facts.real, mountinfo))
        if facts.state is State.FOLDER:
            facts = replace(facts, writing=together.one(lambda: try_writing(root)))
            facts = survey(facts, layout, together)
    except SilentError:
        return replace(facts, silent_after=timeout)
    return facts


def _look_at_root(root: str, facts: VolumeFacts) -> VolumeFacts:
    facts = replace(facts, real=os.path.realpath(root))
    try:
        found = os.stat(root)
    except OSError as problem:
        trouble = trouble_of(problem)
        absent = trouble.name in ("ENOENT", "ENOTDIR")
        return replace(facts, state=State.MISSING if absent else State.BAD, trouble=trouble)
    if not stat.S_ISDIR(found.st_mode):
        return replace(facts, state=State.FILE)
    top = list_folder(root)
    if top.trouble is not None:
        return replace(facts, state=State.BAD, trouble=top.trouble)
    return replace(facts, state=State.FOLDER, top=top, space=_space(root))


def _space(root: str) -> Space | None:
    try:
        return look_at_space(root)
    except OSError:
        return None


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
