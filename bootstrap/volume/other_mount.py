"""The volume's other mount point as a link to it.

A Pod mounts the volume at /workspace, Serverless at /runpod-volume. What the Pod wrote holds its
path: absolute links, the first lines of a venv's scripts, `pip install -e`, extra_model_paths.yaml.
All of it holds where the other name leads to the volume as well.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from bootstrap.core.findings import Finding, info
from bootstrap.core.text import shown
from bootstrap.volume.search import USUAL_ROOTS

CODES = {"volume.mount_linked": "The volume's other mount point was made a link to it."}


class Name(str, Enum):
    """What has the name of another mount point: nothing, the volume itself, or something else."""

    FREE = "free"
    VOLUME = "volume"
    TAKEN = "taken"


@dataclass(frozen=True)
class OtherMount:
    """Another mount point's path, and what is there."""

    path: Path
    state: Name


def other_mounts(root: Path, names: Sequence[Path] = USUAL_ROOTS) -> tuple[OtherMount, ...]:
    """The other mount points of the volume at `root`; none above or below it. A link that leads
    nowhere counts as nothing."""
    return tuple(
        OtherMount(name, _state(name, root))
        for name in names
        if not (root.is_relative_to(name) or name.is_relative_to(root))
    )


def link_other_mounts(
    root: Path, names: Sequence[Path] = USUAL_ROOTS
) -> tuple[list[Path], list[Finding]]:
    """Make each name that is free a link to the volume at `root`; the links made, and what to say.

    Who may not write to `/` gets none, and no finding: what needs one has a finding of its own.
    """
    if not os.path.isdir(root):
        return [], []
    free = [other.path for other in other_mounts(root, names) if other.state is Name.FREE]
    made = [name for name in free if _link(name, root)]
    return made, [_linked(name, root) for name in made]


def unlink_other_mounts(links: Sequence[Path], root: Path) -> None:
    """Remove links that `link_other_mounts` made, where they still are what it made."""
    for link in links:
        try:
            if os.readlink(link) == str(root):
                os.unlink(link)
        except OSError:
            continue


def _state(name: Path, root: Path) -> Name:
    if not os.path.exists(name):
        return Name.FREE if name.is_symlink() or not os.path.lexists(name) else Name.TAKEN
    return Name.VOLUME if os.path.realpath(name) == os.path.realpath(root) else Name.TAKEN


def _link(name: Path, root: Path) -> bool:
    try:
        if name.is_symlink():  # it leads nowhere: left by a worker that was killed
            os.unlink(name)
        os.symlink(root, name)
    except OSError:
        return False
    return True


def _linked(name: Path, root: Path) -> Finding:
    return info(
        "volume.mount_linked",
        f"{name} is a link to the volume at {shown(str(root))}, so that paths that a Pod or "
        "another worker wrote hold here.",
        "Nothing to do; LINK_OTHER_MOUNT=false leaves it out.",
        link=str(name),
    )
