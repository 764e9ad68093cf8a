"""An archive becomes custom_nodes/NAME: complete or not at all, and never over the user's own.

    .comfyui-worker/nodes/KEY-OWNER.new  unpacked there; one rename makes it custom_nodes/NAME
                         /KEY-OWNER.old  what an update replaced, until it is removed

No code of a pack runs here.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from bootstrap.core.archive import ArchiveTooLarge, BadArchive, Limits, unpack
from bootstrap.core.files import key_of
from bootstrap.core.findings import Finding, info, warning
from bootstrap.core.temp_files import LONGEST_NAME, new_owner
from bootstrap.core.text import shell_quote
from bootstrap.environment.node_packs import COMMIT
from bootstrap.net import DownloadError, Stopped
from bootstrap.nodes.manifest import GitPin, PackSpec
from bootstrap.nodes.presence import (
    NOT_UNPACKED,
    PackOnDisk,
    Presence,
    compare,
    edited,
    look_at_pack,
    occupied,
    saved_in,
    write_receipt,
)

CODES = {
    "nodes.bad_archive": "A pack's archive is damaged or has entries that are never unpacked",
    "nodes.other_commit": "The archive is of another commit than the requested one",
    "nodes.install_script": "A pack has an install script, which is not run",
    "nodes.submodules": "A pack has git submodules, which its archive lacks",
}
# ComfyUI loads nothing in it, and ComfyUI-Manager puts disabled packs there.
_ASIDE = ".disabled"
_LIMITS = Limits(size=4_000_000_000, files=50_000, depth=40, fold=False)


class Installed(NamedTuple):
    """A pack that is in place now; `updated`: another version was. `aside` is where the user's
    folder was moved."""

    path: Path
    updated: bool
    notes: tuple[Finding, ...]
    aside: Path | None


class Installer:
    """Puts packs into `nodes`; `own` is our folder on the same volume. With `force`, a folder in
    the way is moved to `nodes`/.disabled. Its methods raise DownloadError, Stopped and OSError."""

    def __init__(self, nodes: Path, own: Path, stop: threading.Event, force: bool) -> None:
        self._nodes = nodes
        self._own = own
        self._stop = stop
        self._force = force

    def present(self, spec: PackSpec) -> Path | None:
        """Where the listed pack is, if it is there."""
        found = look_at_pack(spec, self._nodes)
        if found.state is Presence.THERE:
            return found.path
        if found.state is Presence.OCCUPIED and not self._force:
            raise occupied(spec, found)
        return None

    def check_unchanged(self, spec: PackSpec) -> None:
        """Check before fetching that an update would lose nothing."""
        found = look_at_pack(spec, self._nodes)
        if found.receipt is not None and not self._force:
            changed = compare(found.path, found.receipt).changed
            if changed:
                raise edited(spec, found, changed)

    def recover(self, spec: PackSpec) -> None:
        """Restore what a killed update had moved aside, if nothing is in its place."""
        final = self._nodes / spec.name
        for old in sorted(self._own.glob(f"{key_of(spec.name)}-*.old")):
            if os.path.lexists(final):
                _let_go(old, final)
            else:
                os.rename(old, final)

    def install(self, spec: PackSpec, archive: Path) -> Installed:
        """Unpack the archive, which is then removed, and put the pack in place."""
        owner = f"{key_of(spec.name)}-{new_owner()}"
        new, old = (self._own / f"{owner}.{what}" for what in ("new", "old"))
        final = self._nodes / spec.name
        try:
            names = self._unpack(spec, archive, new)
            found = look_at_pack(spec, self._nodes)
            updated = found.state is not Presence.MISSING
            aside = self._make_way(spec, found, new, old) if updated else None
            if self._stop.is_set():
                raise Stopped
            _swap(new, final, aside)
            return Installed(final, updated, _notes(spec, names), None if aside == old else aside)
        finally:
            remove(archive)
            remove(new)
            if os.path.lexists(final):
                _let_go(old, final)

    def _unpack(self, spec: PackSpec, archive: Path, new: Path) -> list[str]:
        pin = spec.pin
        try:
            names, comment = unpack(archive, new, _LIMITS, top=isinstance(pin, GitPin))
        except BadArchive as problem:
            large = isinstance(problem, ArchiveTooLarge)
            raise DownloadError(
                "nodes.too_large" if large else "nodes.bad_archive",
                f"the archive of {pin} {problem}.",
                "Choose another version, or put the pack onto the volume by hand, on a Pod.",
            ) from None
        if isinstance(pin, GitPin) and COMMIT.fullmatch(comment) and comment != pin.commit:
            raise DownloadError(
                "nodes.other_commit",
                f"the archive is of commit {comment}, not of {pin.commit} as requested.",
                "Try again; if it stays, the server is wrong.",
            )
        for name in NOT_UNPACKED:
            remove(new / name)
        names = [name for name in names if name.partition("/")[0] not in NOT_UNPACKED]
        write_receipt(new, pin, names, self._stop)
        return names

    def _make_way(self, spec: PackSpec, found: PackOnDisk, new: Path, old: Path) -> Path:
        """Where to move the present folder. Files added to one that we fetched are carried into the
        new one; a changed one, or the user's own, is kept, and moved only with `force`."""
        if found.receipt is not None:
            changes = compare(found.path, found.receipt)
            taken = [name for name in changes.added if os.path.lexists(new / name)]
            for name in changes.added:
                if name not in taken:
                    _carry(found.path / name, new / name)
            if not changes.changed and not taken:
                return old
            if not self._force:
                raise edited(spec, found, [*changes.changed, *taken])
        elif not self._force:
            raise occupied(spec, found)
        kept = self._nodes / _ASIDE
        kept.mkdir(exist_ok=True)
        aside = f"@{time.strftime('%Y%m%d-%H%M%S')}-{new_owner()[:4]}"
        room = LONGEST_NAME - len(aside)
        return kept / (spec.name.encode()[:room].decode(errors="ignore") + aside)


def _carry(source: Path, target: Path) -> None:
    """Copy a file within the volume, links as links. Raises OSError."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def _let_go(old: Path, final: Path) -> None:
    """Remove what an update replaced, after carrying over what a running ComfyUI has saved in it
    since it was compared; if that fails, it stays for the next pull."""
    try:
        for name in saved_in(old, final):
            _carry_latest(old / name, final / name)
    except OSError:
        return
    remove(old)


def _carry_latest(source: Path, target: Path) -> None:
    if os.path.lexists(target):
        if os.lstat(source).st_mtime_ns <= os.lstat(target).st_mtime_ns:
            return
        target.unlink()
    _carry(source, target)


def _swap(new: Path, final: Path, aside: Path | None) -> None:
    """Rename `new` to `final`, moving what is there `aside`; a rename never replaces a folder with
    contents. Raises OSError, with the old folder back in place."""
    if aside is not None:
        os.rename(final, aside)
    try:
        os.rename(new, final)
    except OSError:
        if aside is not None:
            os.rename(aside, final)
        raise


def remove(path: Path) -> None:
    """Remove a file or folder; what cannot be removed stays for later."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _notes(spec: PackSpec, names: Sequence[str]) -> tuple[Finding, ...]:
    notes = []
    if "install.py" in names:
        notes.append(
            info(
                "nodes.install_script",
                f"Custom node pack {spec.name} has an install script, which was not run: its code "
                "runs in ComfyUI only.",
                "If it does more than install its requirements.txt, run it on a Pod, with "
                f"ComfyUI's Python, in the folder {spec.name}: `python install.py`.",
                pack=spec.name,
            )
        )
    if ".gitmodules" in names:
        notes.append(
            warning(
                "nodes.submodules",
                f"Custom node pack {spec.name} has git submodules; an archive does not hold them.",
                f"Clone it on a Pod, if it lacks them: `{_clone(spec)}`.",
                pack=spec.name,
            )
        )
    return tuple(notes)


def _clone(spec: PackSpec) -> str:
    url = spec.pin.url if isinstance(spec.pin, GitPin) else "ADDRESS"
    return shell_quote("git", "clone", "--recursive", url, spec.name)
