"""Symbolic links under the model folders that lead nowhere, round in circles, or too far."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from bootstrap.checks.model_text import MOST_PATH, MOST_PATHS, about, delete, paths_of
from bootstrap.core.findings import Finding, warning
from bootstrap.core.text import POD, SERVERLESS, counted, named, shown, typed
from bootstrap.facts.inventory import Inventory, ModelFile
from bootstrap.facts.tree import Entry
from bootstrap.models.weights_file import State

CODES = {
    "models.link_broken": "A link leads nowhere",
    "models.link_other_mount": "A link leads to where the volume is mounted on another machine",
    "models.link_loop": "A link leads to itself or to a folder it lies in",
    "models.link_escapes": "A link leads out of the volume",
}


def check_links(inventory: Inventory, volume_root: Path | None) -> list[Finding]:
    """Findings about symbolic links; `volume_root` is where the volume is mounted here."""
    broken = [f for f in inventory.files if f.state is State.BROKEN_LINK]
    foreign = [f for f in broken if _on_this_volume(f, volume_root) is not None]
    nowhere = [f for f in broken if _on_this_volume(f, volume_root) is None]
    loops = [f for f in inventory.files if f.state is State.LOOPING_LINK]
    return [
        *other_mount(foreign, volume_root),
        *broken_links(nowhere),
        *looping_links(loops),
        *escaping_links(inventory.escaping),
    ]


def other_mount(files: Sequence[ModelFile], volume_root: Path | None) -> list[Finding]:
    """Made on a Pod with an absolute text; relative links hold on both."""
    if not files or volume_root is None:
        return []
    commands = []
    for file in files[:3]:
        target = _on_this_volume(file, volume_root) or ""
        text = os.path.relpath(target, os.path.dirname(file.full_path))
        commands.append(typed("ln", "-sfn", "--", text, file.full_path))
    return [
        warning(
            "models.link_other_mount",
            f"{about(files, 'is a link', 'are links')} to {_text(files[0])}, a place that "
            f"exists where the volume is mounted elsewhere; here it is {volume_root}.",
            f"Make it relative: {'; '.join(commands)}",
            paths=paths_of(files),
        )
    ]


def broken_links(files: Sequence[ModelFile]) -> list[Finding]:
    """ComfyUI lists them, takes jobs that use them, and fails when it opens them."""
    if not files:
        return []
    return [
        warning(
            "models.link_broken",
            f"{about(files, 'is a link that leads', 'are links that lead')} nowhere "
            f"(to {_text(files[0])}). ComfyUI lists it all the same and fails when a job uses it.",
            f"Put the model there, or remove the link: {delete(files)}",
            paths=paths_of(files),
        )
    ]


def looping_links(files: Sequence[ModelFile]) -> list[Finding]:
    """ComfyUI's scan follows links without looking for loops, up to 40 levels deep."""
    if not files:
        return []
    return [
        warning(
            "models.link_loop",
            f"{about(files, 'is a link that leads', 'are links that lead')} back to where it lies "
            f"({_text(files[0])}): ComfyUI walks round in it and lists every model many times.",
            f"Remove the link: {delete(files)}",
            paths=paths_of(files),
        )
    ]


def escaping_links(entries: Sequence[Entry]) -> list[Finding]:
    """There on this machine, gone on the next worker."""
    if not entries:
        return []
    first = entries[0]
    pairs = [f"{e.root.name}/{e.path} → {e.link}" for e in entries]
    copy = typed("cp", "-rL", "--", first.full_path, first.full_path + ".copy")
    swap = typed("rm", "--", first.full_path)
    back = typed("mv", "--", first.full_path + ".copy", first.full_path)
    return [
        warning(
            "models.link_escapes",
            f"{counted(len(entries), 'link leads', 'links lead')} out of the volume: "
            f"{named(pairs)}. Other workers and Pods do not have what is there.",
            f"Copy it onto the volume: {copy} && {swap} && {back}",
            paths=[e.full_path[-MOST_PATH:] for e in entries[:MOST_PATHS]],
        )
    ]


def _on_this_volume(file: ModelFile, volume_root: Path | None) -> str | None:
    """Where a link made at another mount of the same volume would lead here."""
    text = file.link or ""
    for mount in (SERVERLESS, POD):
        if volume_root is not None and Path(mount) != volume_root and text.startswith(mount + "/"):
            return os.path.join(volume_root, text[len(mount) + 1 :])
    return None


def _text(file: ModelFile) -> str:
    return shown(file.link or "")
