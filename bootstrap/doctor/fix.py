"""Safe repairs: creates missing folders, moves misplaced models if their name is free, makes links
work under every mount point, removes our own broken links and leftovers.

It removes, replaces and follows only what is provably ours, and touches nothing behind a link out
of the volume. A second run does nothing.
"""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from bootstrap.core.files import Disk, publish, replacing, stays_within
from bootstrap.core.findings import Finding, info, warning
from bootstrap.core.temp_files import Leftover, identity_of
from bootstrap.core.text import counted, named, size_text
from bootstrap.doctor.checks.model_places import misnamed_in
from bootstrap.doctor.facts.inventory import Inventory, holdings_of
from bootstrap.doctor.facts.volume_facts import LinkFact, VolumeFacts, VolumeState
from bootstrap.doctor.facts.volume_places import Stray
from bootstrap.volume import MODELS, Layout
from bootstrap.volume import links as apply
from bootstrap.volume.link_plan import Action, LinkPlan, RemoveLink

CODES = {
    "fix.folders_made": "Missing folders were made.",
    "fix.models_moved": "Misplaced models were moved to where ComfyUI reads them.",
    "fix.links_changed": "Links were made relative, so that they hold under every mount point.",
    "fix.links_removed": "Our own links that led nowhere were removed.",
    "fix.swept": "Leftovers of workers that were killed were removed.",
    "fix.failed": "A repair could not be made.",
}


@dataclass(frozen=True)
class MakeFolders:
    """Create these folders, parents first. Existing ones are left alone."""

    codes: ClassVar = frozenset({"volume.models_missing"})
    paths: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """What would be done."""
        return f"Make {counted(len(self.paths), 'folder')}: {named(self.paths)}"


@dataclass(frozen=True)
class RemoveLinks:
    """Remove broken links that our link plan made."""

    codes: ClassVar = frozenset({"links.ours_broken"})
    links: tuple[RemoveLink, ...]

    @property
    def paths(self) -> tuple[str, ...]:
        """Where they are."""
        return tuple(str(link.place) for link in self.links)

    @property
    def sentence(self) -> str:
        """What would be done."""
        count = counted(len(self.links), "link")
        return f"Remove {count} of our own that are broken: {named(self.paths)}"


@dataclass(frozen=True)
class Sweep:
    """Remove our files that are too old to be in use."""

    codes: ClassVar = frozenset({"volume.leftovers"})
    leftovers: tuple[Leftover, ...]

    @property
    def paths(self) -> tuple[str, ...]:
        """Where they are."""
        return tuple(leftover.path for leftover in self.leftovers)

    @property
    def sentence(self) -> str:
        """What would be done."""
        size = size_text(sum(leftover.size for leftover in self.leftovers))
        count = counted(len(self.leftovers), "file")
        return f"Remove {count} ({size}) left by workers that were killed: {named(self.paths)}"


@dataclass(frozen=True)
class MoveModels:
    """Move these models, or the contents of these folders, to where they belong; names that are
    taken stay. `codes` are the findings that this fixes."""

    codes: frozenset[str]
    strays: tuple[Stray, ...]

    @property
    def sentence(self) -> str:
        """What would be done."""
        belongs = list(dict.fromkeys(stray.belongs for stray in self.strays))
        return f"Move the models at {named([s.path for s in self.strays])} to {named(belongs)}"


@dataclass(frozen=True)
class Relink:
    """Make links through a mount point relative, with the same target."""

    codes: ClassVar = frozenset({"links.other_mount", "links.absolute", "models.link_other_mount"})
    links: tuple[LinkFact, ...]

    @property
    def sentence(self) -> str:
        """What would be done."""
        paths = [link.path for link in self.links]
        return f"Make {counted(len(paths), 'link')} relative: {named(paths)}"


Repair = MakeFolders | MoveModels | Relink | RemoveLinks | Sweep


def plan_fixes(
    layout: Layout, facts: VolumeFacts, inventory: Inventory | None = None
) -> list[Repair]:
    """What `apply_fixes` would do; empty if there is nothing to do, or no repairable volume. Reads
    the disk to find our links, and changes nothing.
    """
    if (
        facts.silent_after is not None
        or facts.state is not VolumeState.FOLDER
        or not _furnished(facts)
    ):
        return []
    folders = tuple(p for p in _missing_folders(facts) if stays_within(p, facts.root))
    removed = tuple(
        action
        for action in apply.plan_for(layout).actions
        if isinstance(action, RemoveLink) and stays_within(action.place, facts.root)
    )
    stale = tuple(
        leftover
        for leftover in facts.leftovers
        if leftover.stale and leftover.removable and stays_within(leftover.path, facts.root)
    )
    strays = _strays(facts, inventory)
    seen = {link.path for link in facts.links}
    deeper = [x for x in (inventory.links if inventory else ()) if x.path not in seen]
    relative = tuple(
        link
        for link in (*facts.links, *deeper)
        if link.relative is not None and not link.ours and stays_within(link.path, facts.root)
    )
    repairs: list[Repair] = [MakeFolders(folders)] if folders else []
    if strays:
        every = tuple(stray for found in strays.values() for stray in found)
        repairs.append(MoveModels(frozenset(strays), every))
    repairs += [Relink(relative)] if relative else []
    repairs += [RemoveLinks(removed)] if removed else []
    repairs += [Sweep(stale)] if stale else []
    return repairs


def _strays(facts: VolumeFacts, inventory: Inventory | None) -> dict[str, list[Stray]]:
    """Models that are not read where they are but have a proper place, by their finding's code."""
    models = facts.models
    in_home = [stray for stray in models.loose if os.path.dirname(stray.path) in models.homes]
    found = {
        "volume.models_misplaced": [*models.strays],
        "volume.wrong_case": [*models.wrong_case],
        "models.outside_category": in_home,
        "volume.models_loose": [stray for stray in models.loose if stray not in in_home],
        "models.folder_misnamed": _misnamed(inventory, models.wrong_case),
    }
    return {
        code: movable
        for code, strays in found.items()
        if (movable := [stray for stray in strays if _can_move(stray, facts.root)])
    }


def _misnamed(inventory: Inventory | None, others: Sequence[Stray]) -> list[Stray]:
    """Folders with a misspelt name of ComfyUI's, except `others`."""
    seen = {stray.path for stray in others}
    return [
        Stray(path, os.path.join(os.path.dirname(path), meant.folders[0]))
        for holding, meant in (misnamed_in(holdings_of(inventory)) if inventory else ())
        for path in holding.folders
        if path not in seen
    ]


def _can_move(stray: Stray, root: str) -> bool:
    """Is its place known, on the volume, and not itself under another spelling?"""
    if not stray.belongs or os.path.islink(stray.path) or not os.path.exists(stray.path):
        return False
    itself = os.path.exists(stray.belongs) and os.path.samefile(stray.path, stray.belongs)
    return not itself and all(stays_within(p, root) for p in (stray.path, stray.belongs))


def apply_fixes(repairs: Sequence[Repair]) -> list[Finding]:
    """Apply the repairs; findings about what was done and what could not be."""
    findings: list[Finding] = []
    for repair in repairs:
        if isinstance(repair, MakeFolders):
            findings += _make_folders(repair)
        elif isinstance(repair, MoveModels):
            findings += _move_models(repair)
        elif isinstance(repair, Relink):
            findings += _relink(repair)
        elif isinstance(repair, RemoveLinks):
            findings += _remove_links(repair)
        else:
            findings += _sweep(repair)
    return findings


def _furnished(facts: VolumeFacts) -> bool:
    """Folders created in an unattached volume's empty mount point would hide that it is not
    attached."""
    return facts.mounted or facts.comfyui_on_volume or bool(facts.models.homes)


def _missing_folders(facts: VolumeFacts) -> tuple[str, ...]:
    """The models folder and its usual categories; names that are taken are left alone."""
    models = os.path.join(facts.root, MODELS)
    if facts.models.homes:
        home, paths = facts.models.homes[0], []
    elif os.path.lexists(models):
        return ()
    else:
        home, paths = models, [models]
    paths += [os.path.join(home, name) for name in facts.models.missing]
    return tuple(path for path in paths if not os.path.lexists(path))


def _make_folders(repair: MakeFolders) -> list[Finding]:
    made, failed = [], []
    for path in repair.paths:
        try:
            os.mkdir(path)
            made.append(path)
        except FileExistsError:
            continue
        except OSError as problem:
            failed.append(_failed(path, problem))
    if made:
        failed.insert(0, info("fix.folders_made", f"Made {named(made)}.", paths=made))
    return failed


def _move_models(repair: MoveModels) -> list[Finding]:
    moved: list[str] = []
    failed: list[Finding] = []
    for stray in repair.strays:
        source, place = Path(stray.path), Path(stray.belongs)
        if not os.path.lexists(source):
            continue
        try:
            os.makedirs(place, exist_ok=True)
            if source.is_dir():
                _pour(source, place, moved, failed)
            else:
                _move(source, place / source.name, moved, failed)
        except OSError as problem:
            failed.append(_failed(stray.path, problem))
    if moved:
        message = f"Moved {counted(len(moved), 'file or folder', 'files and folders')}: "
        failed.insert(0, info("fix.models_moved", f"{message}{named(moved)}.", paths=moved[:50]))
    return failed


def _pour(source: Path, place: Path, moved: list[str], failed: list[Finding]) -> None:
    """Move the contents of `source` into `place`, and remove `source` if it is then empty. Raises
    OSError if it cannot be listed."""
    for name in sorted(os.listdir(source)):
        _move(source / name, place / name, moved, failed)
    with suppress(OSError):  # something stayed
        os.rmdir(source)


def _move(path: Path, place: Path, moved: list[str], failed: list[Finding]) -> None:
    try:
        if path.is_dir() and place.is_dir() and not path.is_symlink() and not place.is_symlink():
            _pour(path, place, moved, failed)
        elif not _holds_links(path) and _moved(path, place):
            moved.append(str(place))
        else:
            failed.append(_stays(path, place))
    except OSError as problem:
        failed.append(_failed(str(path), problem))


def _moved(path: Path, place: Path) -> bool:
    """Rename `path` to `place`; False if that is taken."""
    if not path.is_dir():
        return publish(path, place, Disk())
    try:
        place.mkdir()  # the name is reserved by our empty folder, which a rename replaces
    except FileExistsError:
        return False
    os.rename(path, place)
    return True


def _holds_links(path: Path) -> bool:
    """A relative link would lead elsewhere after a move."""
    if path.is_symlink() or not path.is_dir():
        return path.is_symlink()
    return any(
        os.path.islink(os.path.join(folder, name))
        for folder, folders, files in os.walk(path)
        for name in (*folders, *files)
    )


def _stays(path: Path, place: Path) -> Finding:
    return warning(
        "fix.failed",
        f"{named([str(path)])} stays where it is: it is or holds a link, or its name is taken in "
        f"{named([str(place.parent)])}.",
        "Compare the two, and move or delete one by hand.",
        path=str(path),
    )


def _relink(repair: Relink) -> list[Finding]:
    changed: list[str] = []
    failed: list[Finding] = []
    for link in repair.links:
        try:
            if _relinked(link):
                changed.append(link.path)
        except OSError as problem:
            failed.append(_failed(link.path, problem))
    if changed:
        message = f"Made {counted(len(changed), 'link')} relative: {named(changed)}."
        failed.insert(0, info("fix.links_changed", message, paths=changed[:50]))
    return failed


def _relinked(link: LinkFact) -> bool:
    """Replace the link that was seen by a relative one, in one step."""
    if os.readlink(link.path) != link.text or link.relative is None:
        return False
    place = Path(link.path)
    with replacing(place, place.with_name(_name_like(f"{place.name}.unlinking"))) as scratch:
        os.symlink(link.relative, scratch)
    return True


def _remove_links(repair: RemoveLinks) -> list[Finding]:
    done: list[Action] = []
    findings = apply.apply(LinkPlan(repair.links), done)
    if done:
        paths = [str(action.place) for action in done]
        message = f"Removed {counted(len(paths), 'link')} of our own: {named(paths)}."
        findings.insert(0, info("fix.links_removed", message, paths=paths[:50]))
    return findings


def _sweep(repair: Sweep) -> list[Finding]:
    swept, findings = [], []
    for leftover in repair.leftovers:
        try:
            if _remove(leftover):
                swept.append(leftover)
        except OSError as problem:
            findings.append(_failed(leftover.path, problem))
    if swept:
        size = size_text(sum(leftover.size for leftover in swept))
        paths = [leftover.path for leftover in swept]
        message = f"Removed {counted(len(swept), 'file')} ({size}): {named(paths)}."
        findings.insert(0, info("fix.swept", message, paths=paths[:50]))
    return findings


def _remove(leftover: Leftover) -> bool:
    """Remove the leftover if it is unchanged; a link that works again is kept. It is moved aside
    before it is checked, as in `links._remove_link`, under a name of the same kind, so that it is
    found again if we are killed.
    """
    place = Path(leftover.path)
    if not _is_same(place, leftover):
        return False
    aside = place.with_name(_name_like(place.name))
    try:
        os.rename(place, aside)
    except FileNotFoundError:
        return False
    if _is_same(aside, leftover):
        os.unlink(aside)
        return True
    if os.path.lexists(place):
        raise OSError(errno.EBUSY, f"changed under us; what stood there is kept at {aside}")
    os.rename(aside, place)
    return False


def _is_same(path: Path, leftover: Leftover) -> bool:
    try:
        same = identity_of(os.lstat(path)) == leftover.identity
    except OSError:
        return False
    return same and not (path.is_symlink() and os.path.exists(path))


def _name_like(name: str) -> str:
    """Leases and parts of models have other names: they become plain parts."""
    suffix = "unlinking" if name.endswith(".unlinking") else "part"
    return f".{uuid.uuid4().hex}.{suffix}"


def _failed(path: str, problem: OSError) -> Finding:
    return warning(
        "fix.failed",
        f"{named([path])} could not be repaired: {problem.strerror or problem}.",
        "Make its folder writable for the user this runs as, then check again with --fix.",
        path=path,
        errno=errno.errorcode.get(problem.errno or 0, ""),
    )
