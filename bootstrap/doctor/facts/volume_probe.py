"""The network volume as this process sees it: mount, room, layout, links. Light and never hanging.
Only the top levels are examined: some hundred metadata calls in parallel, 80 to 110 ms if each
takes 1.5 ms. Deeper levels belong to the model inventory.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bootstrap.config import Settings
from bootstrap.core.concurrency import BoundedCaller, VolumeTimeout
from bootstrap.core.files import Folder, contains, list_folder, trouble_of
from bootstrap.core.temp_files import MOST_LEFTOVERS, Leftover, kind_of, look_at_leftover
from bootstrap.doctor.facts.volume_facts import (
    MOST_LINKS,
    Access,
    LinkFact,
    LinkTarget,
    ModelPlaces,
    Space,
    VolumeFacts,
    VolumeState,
    look_at_access,
    look_at_link,
    look_at_space,
    try_writing,
)
from bootstrap.doctor.facts.volume_places import (
    ModelPath,
    find_loose,
    find_strays,
    find_unread,
    look_at_path,
    read_lines,
    resolve,
    tabs_in,
    wrong_case,
)
from bootstrap.environment import venvs_of
from bootstrap.volume import CUSTOM_NODES, MODELS, Layout
from bootstrap.volume.args_file import paths_file
from bootstrap.volume.find_comfyui import USUAL_ROOTS, has_main, other_mounts, search
from bootstrap.volume.link_plan import LinkPlan, RemoveLink
from bootstrap.volume.links import plan_for
from bootstrap.volume.locate import mount_of

USUAL_CATEGORIES = (
    "checkpoints",
    "clip_vision",
    "controlnet",
    "diffusion_models",
    "embeddings",
    "loras",
    "text_encoders",
    "upscale_models",
    "vae",
)
# Limits of folders listed in a models folder, and in the output folder.
_MOST_FOLDERS = 100
__all__ = ["MOUNTINFO", "TIMEOUT", "VolumeFacts", "gather_volume"]
# It takes well under a second on a healthy volume; a network mount that lost its server never
# answers.
TIMEOUT = 10.0
MOUNTINFO = Path("/proc/self/mountinfo")


def survey(facts: VolumeFacts, layout: Layout, caller: BoundedCaller) -> VolumeFacts:
    """`facts` (its root is a readable folder), completed with the top levels.

    Raises VolumeTimeout.
    """
    top = facts.top or Folder(facts.root)
    facts = _find_comfyui(facts, layout, caller)
    homes = _model_homes(facts, layout, caller)
    folders = _folders_looked_at(facts, homes, caller)
    facts = replace(facts, models=_models(facts, top, homes, caller))
    links = _links(facts, folders, caller)
    file = caller.one(lambda: paths_file(Path(facts.comfyui_real)))
    tabs = caller.one(lambda: tabs_in(str(file))) if facts.comfyui else ()
    facts = replace(facts, paths_file=str(file), paths_tabs=tabs)
    facts = replace(facts, model_paths=_model_paths(facts, caller))
    return replace(
        facts,
        access=_access(facts, homes, caller),
        links=_mark_ours(links, facts, layout, caller),
        venvs=tuple(caller.one(lambda: venvs_of(layout))),
        nodes=_unread_nodes(facts, layout, caller),
        leftovers=_leftovers(facts, folders, caller),
    )


def mount_points(facts: VolumeFacts) -> list[str]:
    """The paths under which this volume may be mounted, the current one first."""
    own = [facts.root, facts.real]
    # With a VOLUME_PATH below /workspace, the rest of /workspace is not another mount of it.
    others = [u for u in map(str, USUAL_ROOTS) if not any(contains(u, path) for path in own)]
    return list(dict.fromkeys(own + others))


def _find_comfyui(facts: VolumeFacts, layout: Layout, caller: BoundedCaller) -> VolumeFacts:
    """The ComfyUI of `layout`, if it is still there, and all others on the volume."""
    home = str(layout.home)
    undecided = layout.asked is not None or bool(layout.rivals)
    works = not undecided and caller.one(lambda: has_main(home))
    comfyui = home if works else facts.comfyui
    expected = caller.one(lambda: list_folder(home))
    found = caller.one(lambda: search(layout.root))
    real: list[str] = caller.each(os.path.realpath, [home, *map(str, found.comfyuis)])
    used = real[0] if works else None
    places = [str(p) for p, at in zip(found.comfyuis, real[1:], strict=True) if at != used]
    return replace(
        facts,
        home=home,
        comfyui=comfyui,
        comfyui_real=caller.one(lambda: os.path.realpath(comfyui)) if comfyui else "",
        comfyui_on_volume=works,
        expected=expected if expected.exists else None,
        places=tuple(places),
        rivals=tuple(map(str, layout.rivals)),
        asked=_text(layout.asked),
        nodes=tuple(map(str, found.custom_nodes)),
        other_mounts=caller.one(lambda: other_mounts(layout.root)),
    )


def _unread_nodes(facts: VolumeFacts, layout: Layout, caller: BoundedCaller) -> tuple[str, ...]:
    """Non-empty folders of custom nodes that ComfyUI does not read."""
    read = [os.path.join(facts.home, CUSTOM_NODES), *([str(layout.nodes)] if layout.nodes else [])]
    read += [path.path for path in facts.model_paths if path.key == CUSTOM_NODES]
    real: list[str] = caller.each(os.path.realpath, [*facts.nodes, *read])
    used = real[len(facts.nodes) :]
    others = [n for n, at in zip(facts.nodes, real, strict=False) if at not in used]
    listed = caller.each(list_folder, others)
    return tuple(f.path for f in listed if any(not n.startswith((".", "_")) for n in f.folders))


def _model_homes(facts: VolumeFacts, layout: Layout, caller: BoundedCaller) -> list[Folder]:
    """The existing models folders, each once."""
    roots = [*map(str, layout.model_roots), os.path.join(facts.root, MODELS)]
    places = list(dict.fromkeys([*roots, os.path.join(facts.home, MODELS)]))
    real = caller.each(os.path.realpath, places)
    once = {path: place for place, path in reversed([*zip(places, real, strict=True)])}
    listed = caller.each(list_folder, sorted(once.values(), key=places.index))
    return [folder for folder in listed if folder.exists]


def _models(
    facts: VolumeFacts, top: Folder, homes: list[Folder], caller: BoundedCaller
) -> ModelPlaces:
    here = {name for folder in homes for name in folder.names}
    home = homes[0].path if homes else os.path.join(facts.root, MODELS)
    tops = [top, *([facts.expected] if facts.expected else [])]
    used = [facts.home, *facts.places, *facts.rivals, *facts.nodes, *(h.path for h in homes)]
    return ModelPlaces(
        homes=tuple(folder.path for folder in homes),
        missing=tuple(name for name in USUAL_CATEGORIES if name not in here),
        strays=tuple(find_strays(tops, home, caller)),
        wrong_case=tuple(wrong_case(tops, homes)),
        loose=tuple(find_loose([*tops, *homes], home, caller)),
        unread=tuple(find_unread(top, used, home, caller)),
    )


def _folders_looked_at(
    facts: VolumeFacts, homes: list[Folder], caller: BoundedCaller
) -> list[Folder]:
    """Top folders first, then the categories, then the output's."""
    comfyui = facts.home
    nodes, output = caller.each(
        list_folder, [os.path.join(comfyui, "custom_nodes"), os.path.join(comfyui, "output")]
    )
    deeper = [p for home in homes for p in home.paths(home.folders)[:_MOST_FOLDERS]]
    deeper += output.paths(output.folders)[:_MOST_FOLDERS]
    tops = [folder for folder in (facts.top, facts.expected, nodes, *homes, output) if folder]
    return tops + caller.each(list_folder, deeper)


def _links(facts: VolumeFacts, folders: list[Folder], caller: BoundedCaller) -> list[LinkFact]:
    """Links in the top folders; and links to single models that work only with this mount point.
    The model inventory covers the rest."""
    homes = mount_points(facts)
    mount = facts.mount
    tree = mount.point if mount is not None and mount.network else facts.real
    paths = [path for folder in folders for path in folder.paths(folder.links)][:MOST_LINKS]
    found = caller.each(lambda path: look_at_link(path, facts.real, tree, homes), paths)
    comfyui = facts.home
    tops = {facts.root, comfyui, os.path.join(facts.root, MODELS)}
    tops |= {os.path.join(comfyui, name) for name in ("custom_nodes", MODELS)}
    return [
        link
        for link in found
        if link is not None
        and (os.path.dirname(link.path) in tops or (link.home and link.leads is LinkTarget.OK))
    ]


def _mark_ours(
    links: list[LinkFact], facts: VolumeFacts, layout: Layout, caller: BoundedCaller
) -> tuple[LinkFact, ...]:
    """The link plan knows its own broken links. It looks deep, so it runs only if there are broken
    links in ComfyUI's models folder."""
    models = os.path.join(facts.home, MODELS)
    broken = [
        link for link in links if link.leads is LinkTarget.BROKEN and contains(models, link.path)
    ]
    if not broken or layout.comfyui is None:
        return tuple(links)
    return mark_ours(links, caller.one(lambda: plan_for(layout)), caller)


def mark_ours(
    links: Sequence[LinkFact], plan: LinkPlan, caller: BoundedCaller
) -> tuple[LinkFact, ...]:
    """`links`, with those marked that `plan` made and now removes.

    Raises VolumeTimeout.
    """
    ours = {str(action.place) for action in plan.actions if isinstance(action, RemoveLink)}
    broken = [link for link in links if link.leads is LinkTarget.BROKEN] if ours else []
    places = caller.each(_real_place, [link.path for link in broken])
    marked = {link.path for link, place in zip(broken, places, strict=True) if place in ours}
    return tuple(replace(link, ours=True) if link.path in marked else link for link in links)


def _real_place(path: str) -> str:
    return os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))


def _access(facts: VolumeFacts, homes: list[Folder], caller: BoundedCaller) -> tuple[Access, ...]:
    comfyui = facts.home
    below = [os.path.join(comfyui, n) for n in ("main.py", "custom_nodes", "input", "output")]
    paths = dict.fromkeys([facts.root, comfyui, *(home.path for home in homes), *below])
    found = caller.each(look_at_access, paths)
    return tuple(access for access in found if access is not None)


def _model_paths(facts: VolumeFacts, caller: BoundedCaller) -> tuple[ModelPath, ...]:
    if facts.comfyui is None:
        return ()
    lines = caller.one(lambda: read_lines(facts.paths_file))
    given = resolve(lines, facts.comfyui_real, mount_points(facts))
    return tuple(caller.each(lambda path: look_at_path(path, facts.root), given))


def _leftovers(
    facts: VolumeFacts, folders: list[Folder], caller: BoundedCaller
) -> tuple[Leftover, ...]:
    """By the volume's own clock: the server's may be hours off this machine's."""
    now = facts.writing.now if facts.writing and facts.writing.now else time.time()
    paths = [
        os.path.join(folder.path, name)
        for folder in folders
        for name in sorted(folder.names)
        if kind_of(name) is not None
    ]
    found = caller.each(lambda path: look_at_leftover(path, now), paths[:MOST_LEFTOVERS])
    return tuple(leftover for leftover in found if leftover is not None)


def gather_volume(layout: Layout, settings: Settings) -> VolumeFacts:
    """Examine the volume of `layout`, for at most `TIMEOUT` seconds; does not raise disk errors.
    `layout` says only where to look; everything is checked again. A tiny file is created on the
    volume and removed. `settings` are those that `layout` was found with.
    """
    caller = BoundedCaller(TIMEOUT)
    root = os.path.normpath(layout.root)
    facts = VolumeFacts(
        root=root,
        real=root,
        mount=mount_of(root, MOUNTINFO),
        user=os.geteuid(),
        configured=settings.volume_path is not None,
        comfyui=None if layout.comfyui_on_volume else _text(layout.comfyui),
        meant=_text(layout.meant),
    )
    try:
        facts = caller.one(lambda: _look_at_root(root, facts))
        facts = replace(facts, mount=mount_of(facts.real, MOUNTINFO))
        if facts.state is VolumeState.FOLDER:
            facts = replace(facts, writing=caller.one(lambda: try_writing(root)))
            facts = survey(facts, layout, caller)
    except VolumeTimeout:
        return replace(facts, silent_after=TIMEOUT)
    return facts


def _look_at_root(root: str, facts: VolumeFacts) -> VolumeFacts:
    facts = replace(facts, real=os.path.realpath(root))
    try:
        found = os.stat(root)
    except OSError as problem:
        trouble = trouble_of(problem)
        if trouble.name in ("ENOENT", "ENOTDIR"):
            return replace(facts, state=VolumeState.MISSING, trouble=trouble)
        return replace(facts, state=VolumeState.BAD, trouble=trouble, closed=_closed(root))
    if not stat.S_ISDIR(found.st_mode):
        return replace(facts, state=VolumeState.FILE)
    top = list_folder(root)
    if top.trouble is not None:
        return replace(facts, state=VolumeState.BAD, trouble=top.trouble, closed=root)
    return replace(facts, state=VolumeState.FOLDER, top=top, space=_space(root))


def _closed(path: str) -> str:
    """The first folder on the way to `path` that this user may not enter, else `path`."""
    way = [*reversed(Path(path).parents), Path(path)]
    return next((str(folder) for folder in way if not os.access(folder, os.X_OK)), path)


def _space(root: str) -> Space | None:
    try:
        return look_at_space(root)
    except OSError:
        return None


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
