"""Symbolic links at the top of a volume: where they lead, here and where it is mounted elsewhere.

The same volume is `/runpod-volume` on Serverless and `/workspace` on a Pod, so a link that names
either is right in one place only.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

from bootstrap.core.files import contains

# A link costs a readlink, a stat and the stats of its path.
MOST_LINKS = 200


class Leads(str, Enum):
    """Where a link leads. `UP` is to a folder that it lies in: whoever follows it never ends."""

    WELL = "well"
    NOWHERE = "nowhere"
    LOOP = "loop"
    UP = "up"
    OUT = "out"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class LinkFact:
    """A link at `path` that reads `text`.

    `home` is the mount point that `text` begins with, if it is one a volume can have. `relative`
    then is the text that leads to the same place under any mount point, if there is something.
    `ours` marks one that our link plan made.
    """

    path: str
    text: str
    leads: Leads
    home: str | None = None
    relative: str | None = None
    ours: bool = False


def look_at_link(path: str, root: str, tree: str, homes: Sequence[str]) -> LinkFact | None:
    """The link at `path`, or None when it is gone.

    `root` is where the volume begins, `tree` what counts as being on it (the mount, where `root`
    is a folder on it); both without links. `homes` are the mount points a text may begin with.
    """
    try:
        text = os.readlink(path)
    except OSError:
        return None
    link = LinkFact(path, text, _leads(path, tree))
    home = next((h for h in homes if contains(h, text)), None)
    if home is None:
        return link
    here = os.path.normpath(os.path.join(root, os.path.relpath(text, home)))
    if not contains(root, here) or not os.path.exists(here):
        return replace(link, home=home)
    relative = os.path.relpath(here, os.path.realpath(os.path.dirname(path)))
    return replace(link, home=home, relative=relative)


def _leads(path: str, tree: str) -> Leads:
    try:
        found = os.stat(path)
    except OSError as problem:
        if problem.errno == errno.ELOOP:
            return Leads.LOOP
        absent = problem.errno in (errno.ENOENT, errno.ENOTDIR)
        return Leads.NOWHERE if absent else Leads.UNKNOWN
    real = os.path.realpath(path)
    if stat.S_ISDIR(found.st_mode) and contains(real, os.path.realpath(os.path.dirname(path))):
        return Leads.UP
    return Leads.WELL if contains(tree, real) else Leads.OUT
