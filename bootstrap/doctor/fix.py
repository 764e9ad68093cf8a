"""Safe repairs: creates missing folders, moves misplaced models if their name is free, makes links
work under every mount point, removes our own broken links and leftovers.

It removes, replaces and follows only what is provably ours, and touches nothing behind a link out
of the volume. A second run does nothing.
"""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import TypeVar

from bootstrap.core.files import Disk, publish, remove_if, replacing, stays_within
from bootstrap.core.findings import Finding, info, warning
from bootstrap.core.temp_files import Leftover, identity_of
from bootstrap.core.text import pluralize, printable, size_text, summarize_list
from bootstrap.doctor.checks.model_places import misnamed_in, without_faulty
from bootstrap.doctor.checks.volume import check_presence
from bootstrap.doctor.checks.volume_layout import is_broken
from bootstrap.doctor.facts.inventory import Inventory, holdings_of
from bootstrap.doctor.facts.volume_facts import LinkFact, VolumeFacts
from bootstrap.doctor.facts.volume_places import Stray
from bootstrap.volume import MODELS, Layout
from bootstrap.volume import links as apply
from bootstrap.volume.link_plan import Action, LinkPlan, RemoveLink

CODES = {
    "fix.folders_made": "Missing folders were created",
    "fix.models_moved": "Misplaced models were moved to where ComfyUI reads them",
    "fix.links_changed": "Links were made relative, so that they work under every mount point",
    "fix.links_removed": "Broken links made by workers were removed",
    "fix.swept": "Leftovers of killed workers were removed",
    "fix.failed": "A repair failed",
}
_AS_OWNER = "Check again with --fix as root, or as the owner of these files."
_WITH_ROOM = "Make room on the volume, then check again with --fix."
_NEXT = {
    **dict.fromkeys((errno.EACCES, errno.EPERM), _AS_OWNER),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), _WITH_ROOM),
}


@dataclass(frozen=True)
class Repair:
    """One kind of repair, at `paths`: `sentence` says what it would do, `codes` are the findings
    that it fixes. `act` does it and gives the paths that it changed, and what failed; `code` and
    `said`, with their number and `noun` in place of {}, report that. `moves` are lines of what it
    would move to where, and then `act` gives such lines."""

    code: str
    codes: frozenset[str]
    paths: tuple[str, ...]
    sentence: str
    said: str
    noun: tuple[str, ...]
    act: Callable[[], tuple[list[str], list[Finding]]]
    moves: tuple[str, ...] = ()


def plan_fixes(
    layout: Layout, facts: VolumeFacts, inventory: Inventory | None = None
) -> list[Repair]:
    """What `apply_fixes` would do; empty if there is nothing to do, or no repairable volume. Reads
    the disk to find our links, and changes nothing.
    """
    if check_presence(facts) or (facts.mount is not None and facts.mount.read_only):
        return []
    repairs = (
        _make_folders(facts),
        _move_models(facts, inventory or Inventory()),
        _relink([*facts.links, *(inventory.further_links(facts) if inventory else ())], facts.root),
        _remove_links(facts, layout),
        _sweep(facts),
    )
    return [repair for repair in repairs if repair.paths]


def apply_fixes(repairs: Sequence[Repair]) -> list[Finding]:
    """Apply the repairs; findings about what was done and what could not be."""
    findings: list[Finding] = []
    for repair in repairs:
        done, failed = repair.act()
        if done:
            findings.append(_done(repair, done))
        findings += failed
    return findings


def _done(repair: Repair, done: Sequence[str]) -> Finding:
    said = repair.said.format(pluralize(len(done), *repair.noun))
    if repair.moves:
        return info(repair.code, f"{said}.", moves=done)
    return info(repair.code, f"{said}: {summarize_list(done)}.", paths=done[:50])


T = TypeVar("T")


def _each(
    things: Sequence[T], path_of: Callable[[T], str], act: Callable[[T], bool]
) -> tuple[list[str], list[Finding]]:
    """The paths of the things that `act` changed, and what it could not."""
    done, failed = [], []
    for thing in things:
        try:
            if act(thing):
                done.append(path_of(thing))
        except OSError as problem:
            failed.append(_failed(path_of(thing), problem))
    return done, failed


def _make_folders(facts: VolumeFacts) -> Repair:
    """Parents first; existing ones are left alone."""
    paths = tuple(p for p in _missing_folders(facts) if stays_within(p, facts.root))
    return Repair(
        "fix.folders_made",
        frozenset({"volume.models_missing"}),
        paths,
        f"Make {pluralize(len(paths), 'folder')}: {summarize_list(paths)}",
        "Made {}",
        ("folder",),
        partial(_each, paths, str, _made),
    )


def _made(path: str) -> bool:
    try:
        os.mkdir(path)
    except FileExistsError:
        return False
    return True


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


def _move_models(facts: VolumeFacts, inventory: Inventory) -> Repair:
    """Models, or the contents of folders, to where they belong; names that are taken stay."""
    found = _strays(facts, inventory)
    strays = [stray for of_code in found.values() for stray in of_code]
    paths = tuple(stray.path for stray in strays)
    nouns = ("file or folder", "files and folders")
    return Repair(
        "fix.models_moved",
        frozenset(found),
        paths,
        f"Move {pluralize(len(paths), *nouns)} to where ComfyUI reads them",
        "Moved {} to where ComfyUI reads them",
        nouns,
        partial(_move_all, strays),
        tuple(_move_line(stray.path, stray.belongs) for stray in strays),
    )


def _move_line(path: str, place: str) -> str:
    """`loras/ → models/loras/`"""
    source = os.path.join(path, "") if os.path.isdir(path) else path
    return f"{printable(source)} → {printable(os.path.join(place, ''))}"


def _move_all(strays: Sequence[Stray]) -> tuple[list[str], list[Finding]]:
    moved: list[str] = []
    failed: list[Finding] = []
    for stray in strays:
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
    return moved, failed


def _strays(facts: VolumeFacts, inventory: Inventory) -> dict[str, list[Stray]]:
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
        if (movable := [s for s in strays if not is_broken(s) and _can_move(s, facts.root)])
    }


def _misnamed(inventory: Inventory, others: Sequence[Stray]) -> list[Stray]:
    """Folders with a misspelt name of ComfyUI's, except `others`."""
    seen = {stray.path for stray in others}
    return [
        Stray(path, os.path.join(os.path.dirname(path), meant.folders[0]))
        for holding, meant in misnamed_in(holdings_of(without_faulty(inventory)))
        for path in holding.folders
        if path not in seen
    ]


def _can_move(stray: Stray, root: str) -> bool:
    """Is its place known, on the volume, and not itself under another spelling?"""
    if not stray.belongs or os.path.islink(stray.path) or not os.path.exists(stray.path):
        return False
    itself = os.path.exists(stray.belongs) and os.path.samefile(stray.path, stray.belongs)
    return not itself and all(stays_within(p, root) for p in (stray.path, stray.belongs))


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
            moved.append(_move_line(str(path), str(place.parent)))
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
        f"{summarize_list([str(path)])} stays where it is: it is or holds a link, or its name is "
        f"taken in {summarize_list([str(place.parent)])}.",
        "Compare the two, and move or delete one by hand.",
        path=str(path),
    )


def _relink(found: Sequence[LinkFact], root: str) -> Repair:
    """Links through a mount point become relative, with the same target."""
    links = [
        link
        for link in found
        if link.relative is not None and not link.ours and stays_within(link.path, root)
    ]
    paths = tuple(link.path for link in links)
    return Repair(
        "fix.links_changed",
        frozenset({"links.other_mount", "links.absolute", "models.link_other_mount"}),
        paths,
        f"Make {pluralize(len(paths), 'link')} relative: {summarize_list(paths)}",
        "Made {} relative",
        ("link",),
        partial(_each, links, lambda link: link.path, _relinked),
    )


def _relinked(link: LinkFact) -> bool:
    """Replace the link that was seen by a relative one, in one step."""
    if os.readlink(link.path) != link.text or link.relative is None:
        return False
    place = Path(link.path)
    with replacing(place, place.with_name(_name_like(f"{place.name}.unlinking"))) as scratch:
        os.symlink(link.relative, scratch)
    return True


def _remove_links(facts: VolumeFacts, layout: Layout) -> Repair:
    """Broken links that our link plan made."""
    links = tuple(
        action
        for action in apply.plan_for(layout).actions
        if isinstance(action, RemoveLink) and stays_within(action.place, facts.root)
    )
    paths = tuple(str(link.place) for link in links)
    return Repair(
        "fix.links_removed",
        frozenset({"links.ours_broken"}),
        paths,
        f"Remove {pluralize(len(paths), 'link')} of our own that are broken: "
        f"{summarize_list(paths)}",
        "Removed {} of our own",
        ("link",),
        partial(_unlink, links),
    )


def _unlink(links: tuple[RemoveLink, ...]) -> tuple[list[str], list[Finding]]:
    done: list[Action] = []
    failed = apply.apply(LinkPlan(links), done)
    return [str(action.place) for action in done], failed


def _sweep(facts: VolumeFacts) -> Repair:
    """Our files that are too old to be in use."""
    stale = [
        leftover
        for leftover in facts.leftovers
        if leftover.stale and leftover.removable and stays_within(leftover.path, facts.root)
    ]
    paths = tuple(leftover.path for leftover in stale)
    count, size = pluralize(len(stale), "file"), size_text(sum(x.size for x in stale))
    return Repair(
        "fix.swept",
        frozenset({"volume.leftovers"}),
        paths,
        f"Remove {count} ({size}) left by workers that were killed: {summarize_list(paths)}",
        "Removed {}",
        ("file",),
        partial(_each, stale, lambda leftover: leftover.path, _remove),
    )


def _remove(leftover: Leftover) -> bool:
    """Remove the leftover if it is unchanged. Moved aside, it has a name of the same kind, so that
    it is found again if we are killed."""
    place = Path(leftover.path)
    if not _is_same(place, leftover):
        return False
    aside = place.with_name(_name_like(place.name))
    return remove_if(place, aside, lambda path: _is_same(path, leftover))


def _is_same(path: PurePath, leftover: Leftover) -> bool:
    try:
        same = identity_of(os.lstat(path)) == leftover.identity
    except OSError:
        return False
    return same and not (os.path.islink(path) and os.path.exists(path))


def _name_like(name: str) -> str:
    """Leases and parts of models have other names: they become plain parts."""
    suffix = "unlinking" if name.endswith(".unlinking") else "part"
    return f".{uuid.uuid4().hex}.{suffix}"


def _failed(path: str, problem: OSError) -> Finding:
    return warning(
        "fix.failed",
        f"{summarize_list([path])} could not be repaired: {problem.strerror or problem}.",
        _NEXT.get(problem.errno or 0, "Check again with --fix; if it stays, repair it by hand."),
        path=path,
        errno=errno.errorcode.get(problem.errno or 0, ""),
    )
