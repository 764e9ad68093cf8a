"""Runs a link plan on the real file system. A second run does nothing."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

from bootstrap.core.files import link_text, open_regular, remove_if
from bootstrap.core.findings import Finding, error, info, warning
from bootstrap.core.text import shell_quote, summarize_list
from bootstrap.volume.find_comfyui import MODELS
from bootstrap.volume.link_plan import (
    Action,
    Conflict,
    EntryKind,
    LinkPlan,
    MakeFolder,
    MakeLink,
    RemoveLink,
    plan_links,
)
from bootstrap.volume.locate import Layout, folders_known_to

CODES = {
    "links.made": "Links to models were made as planned",
    "links.conflict": "Two different files need one name in ComfyUI's models folder",
    "links.not_writable": "A link could not be created or removed",
}
_SAMPLE = 64 * 1024
# Other workers link on the same volume at the same time; planning again shows what they did.
_PASSES = 3


class DiskTree:
    """`link_plan.Tree` over the real file system."""

    def entries(self, folder: PurePosixPath) -> Mapping[str, EntryKind]:
        try:
            with os.scandir(folder) as entries:
                return {entry.name: _kind_of(entry) for entry in entries}
        except OSError:
            return {}

    def kind(self, path: PurePosixPath) -> EntryKind | None:
        if os.path.islink(path):
            return EntryKind.LINK
        return self.leads_to(path)

    def leads_to(self, path: PurePosixPath) -> EntryKind | None:
        if os.path.isdir(path):
            return EntryKind.FOLDER
        return EntryKind.FILE if os.path.exists(path) else None

    def link_text(self, path: PurePosixPath) -> str:
        return link_text(path) or ""

    def real(self, path: PurePosixPath) -> PurePosixPath | None:
        try:
            return PurePosixPath(os.path.realpath(path)) if os.path.exists(path) else None
        except OSError:  # another worker removed a link while Python read it
            return None

    def alike(self, one: PurePosixPath, other: PurePosixPath) -> bool:
        """Same inode; or files of the same size whose first and last 64 KB are the same."""
        try:
            a, b = os.stat(one), os.stat(other)
            if os.path.samestat(a, b):
                return True
            if not (os.path.isfile(one) and os.path.isfile(other)) or a.st_size != b.st_size:
                return False
            return _sample(one, a.st_size) == _sample(other, b.st_size)
        except OSError:
            return False


def link_models(layout: Layout) -> list[Finding]:
    """Make the volume's models visible to ComfyUI; reports what was done and what is in the way."""
    if layout.comfyui is None:
        return []
    done: list[Action] = []
    failed: list[Finding] = []
    if layout.view is not None:
        layout.view.mkdir(exist_ok=True)
    plan = plan_for(layout)
    seen = plan.conflicts
    for _ in range(_PASSES):
        if failed or not (plan.actions or plan.conflicts):
            break
        seen = plan.conflicts
        failed = apply(plan, done)
        plan = plan_for(layout)
        if not plan.actions and plan.conflicts == seen:
            break
    # A conflict counts only if it is seen twice: a link can disappear between listing and lookup.
    twice = {(c.place, c.source) for c in seen}
    findings = failed + [_conflict(c) for c in plan.conflicts if (c.place, c.source) in twice]
    if done:
        findings.append(_made(done))
    return findings


def conflicts(plan: LinkPlan | None) -> list[Finding]:
    """The conflicts that a boot with `plan` will report."""
    return [] if plan is None else [_conflict(conflict) for conflict in plan.conflicts]


def plan_for(layout: Layout) -> LinkPlan:
    """The plan for a located volume in its current state."""
    if layout.comfyui is None:
        return LinkPlan()
    comfyui = Path(os.path.realpath(layout.comfyui))
    # A missing models folder at the volume's root still identifies our links.
    sources = [*layout.model_roots, layout.root / MODELS]
    if layout.view is not None:
        sources.insert(0, comfyui / MODELS)
    return plan_links(
        DiskTree(),
        [PurePosixPath(os.path.realpath(source)) for source in sources],
        PurePosixPath(layout.view or comfyui / MODELS),
        PurePosixPath(os.path.realpath(layout.root)),
        folders_known_to(comfyui),
    )


def with_view(layout: Layout, place: Path) -> Layout:
    """The layout with `place` on local disk for links to all models, if ComfyUI needs links and
    none can be made on the volume."""
    if not (layout.comfyui_on_volume and layout.model_roots) or _takes_links(layout.models):
        return layout
    return replace(layout, view=place)


def _takes_links(models: Path) -> bool:
    folder = models if os.path.isdir(models) else models.parent
    return os.access(folder, os.W_OK | os.X_OK)


def apply(plan: LinkPlan, done: list[Action]) -> list[Finding]:
    """Execute `plan`, adding each action that changed something to `done`. What another worker did
    first is left alone: planning again shows whether it fits.
    """
    findings: list[Finding] = []
    closed: set[PurePosixPath] = set()
    for action in plan.actions:
        if action.place.parent in closed:
            continue
        try:
            if _carry_out(action):
                done.append(action)
        except OSError as problem:
            findings.append(_not_writable(action, problem))
            if problem.errno in (errno.EROFS, errno.ENOSPC, errno.EDQUOT):
                break
            if problem.errno in (errno.EACCES, errno.EPERM):
                closed.add(action.place.parent)
    return findings


def _carry_out(action: Action) -> bool:
    try:
        if isinstance(action, MakeFolder):
            os.mkdir(action.place)
        elif isinstance(action, MakeLink):
            os.symlink(action.text, action.place)
        else:
            return _remove_link(action)
    except FileExistsError:
        return False
    return True


def _remove_link(action: RemoveLink) -> bool:
    """Remove the link if it is still as planned and still broken."""
    aside = action.place.with_name(f".{uuid.uuid4().hex}.unlinking")
    return remove_if(
        action.place, aside, lambda p: link_text(p) == action.text and not os.path.exists(p)
    )


def _kind_of(entry: os.DirEntry[str]) -> EntryKind:
    if entry.is_symlink():
        return EntryKind.LINK
    return EntryKind.FOLDER if entry.is_dir(follow_symlinks=False) else EntryKind.FILE


def _sample(path: PurePosixPath, size: int) -> bytes:
    with open_regular(path) as file:
        head = file.read(_SAMPLE)
        file.seek(max(0, size - _SAMPLE))
        return head + file.read(_SAMPLE)


def _made(done: list[Action]) -> Finding:
    links = [a for a in done if isinstance(a, MakeLink)]
    removed = [a for a in done if isinstance(a, RemoveLink)]
    examples = summarize_list([f"{a.place.name} → {a.text}" for a in links], 3)
    parts: list[str] = []
    if links:
        parts.append(f"linked {examples}")
    if removed:
        parts.append(f"removed {len(removed)} of our links whose models are gone")
    return info("links.made", "Models: " + "; ".join(parts) + ".", links=len(links))


def _conflict(conflict: Conflict) -> Finding:
    fix = (
        f"Keep one of the two, or rename one: mv '{conflict.source}' under another name; "
        "workflows then use that name."
    )
    if conflict.dead_link:
        fix = f"rm '{conflict.place}' (a broken link), then start the worker again."
    return warning(
        "links.conflict",
        f"{conflict.source} cannot be shown to ComfyUI at {conflict.place}: {conflict.reason}.",
        fix,
        source=str(conflict.source),
        place=str(conflict.place),
    )


def _not_writable(action: Action, problem: OSError) -> Finding:
    what = "remove the link" if isinstance(action, RemoveLink) else "make"
    return error(
        "links.not_writable",
        f"Could not {what} {action.place}: {problem.strerror}.",
        "Make the volume writable, with free space and inodes, for the user this worker runs as "
        f"(on a Pod: `{shell_quote('chmod', 'u+rwX', str(action.place.parent))}`).",
        place=str(action.place),
    )
