"""Finds ComfyUI on a volume, wherever a Pod template or a person has put it.

    runpod-slim/ComfyUI  madapps/ComfyUI  comfyui  ComfyUI-master  Data/Packages/ComfyUI
    workspace/runpod-slim/ComfyUI  app  ComfyUI/ComfyUI  .

ComfyUI is recognised by its files, never by a template's name. Folders are listed in parallel,
three levels deep; those with models, results, packages or other programs' code are skipped.

The volume's other mount point becomes a link to it: a Pod mounts it at /workspace, Serverless at
/runpod-volume, and files written on the Pod contain its path (absolute links, shebang lines of a
venv, `pip install -e`, extra_model_paths.yaml). With both names all of them work.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path

from bootstrap.core.concurrency import WorkerPool
from bootstrap.core.files import Folder, link_text, list_folder
from bootstrap.core.findings import Finding, info
from bootstrap.core.text import printable

# Serverless mounts the volume at the first, a Pod the same volume at the second.
USUAL_ROOTS = (Path("/runpod-volume"), Path("/workspace"))
CUSTOM_NODES = "custom_nodes"
MODELS = "models"
_LEVELS = 3
_THREADS = 64
# A listing is a round trip; with 64 in flight these take a tenth of a second.
_MOST_FOLDERS = 3000
_CODE = frozenset({"comfy", "nodes.py", "folder_paths.py"})
# Always skipped. huggingface-cache is the platform's, lost+found the file system's.
_CLOSED = frozenset(
    "models custom_nodes input output temp user site-packages node_modules __pycache__ "
    "huggingface-cache lost+found stable-diffusion-webui venvs runpod-venvs".split()
)


@dataclass(frozen=True)
class SearchResult:
    """`comfyuis` can run, nearest to the root first; `data` are folders with only a ComfyUI's data
    (models, custom nodes); `custom_nodes` are folders of that name elsewhere. `complete` is False
    if there were more folders than the limit."""

    comfyuis: tuple[Path, ...] = ()
    data: tuple[Path, ...] = ()
    custom_nodes: tuple[Path, ...] = ()
    complete: bool = True


def search(root: Path, timeout: float | None = None) -> SearchResult:
    """Everything that looks like ComfyUI on the volume at `root`. Disk errors are not raised; after
    `timeout` seconds it returns what was found by then."""
    looking = _Search(root)
    finished = looking.pool.run([lambda: looking.look_at(root, 0)], timeout)
    return looking.found(finished)


def has_main(comfyui: str | Path) -> bool:
    """Is there a `main.py`?"""
    return os.path.isfile(os.path.join(comfyui, "main.py"))


def like_comfyui(name: str) -> bool:
    """`comfyui`, `ComfyUI-master`, `Comfy_UI` …"""
    return re.sub(r"[^a-z0-9]", "", name.casefold()).startswith("comfyui")


def on_this_mount(path: Path, root: Path) -> Path:
    """`path`, or its target if it is a link through the volume's other mount point, which does not
    exist (yet)."""
    text = link_text(path)
    if text is None or os.path.exists(path):
        return path
    target = Path(os.path.normpath(text))
    other = next((o for o in USUAL_ROOTS if o != root and target.is_relative_to(o)), None)
    return path if other is None else root / target.relative_to(other)


class _Search:
    def __init__(self, root: Path) -> None:
        self.pool = WorkerPool(_THREADS)
        self._root = root
        self._left = _MOST_FOLDERS
        self._comfyuis: list[Path] = []
        self._data: list[Path] = []
        self._nodes: list[Path] = []

    def look_at(self, path: Path, level: int) -> None:
        """List a folder, record what it is, and continue with the folders in it."""
        self._left -= 1
        folder = list_folder(str(path))
        if "pyvenv.cfg" in folder.names:
            return
        if _can_run(folder, path.name):
            self._comfyuis.append(path)
            return
        if _is_data(folder, path.name, level):
            self._data.append(path)
        elif CUSTOM_NODES in folder.names:
            self._nodes.append(path / CUSTOM_NODES)
        if level < _LEVELS:
            below = [on_this_mount(path / name, self._root) for name in _entered(folder)]
            if self._left < len(below):
                below = below[: max(0, self._left)]
            self.pool.add(partial(self.look_at, p, level + 1) for p in below)

    def found(self, finished: bool) -> SearchResult:
        comfyuis = _each_once(self._comfyuis)
        # Folders inside a runnable ComfyUI belong to it.
        nodes = (p for p in self._nodes if not any(p.is_relative_to(c) for c in comfyuis))
        return SearchResult(
            comfyuis=comfyuis,
            data=_each_once(self._data),
            custom_nodes=_each_once(nodes),
            complete=finished and self._left > 0,
        )


def _can_run(folder: Folder, name: str) -> bool:
    return "main.py" in folder.files | folder.links and (
        bool(folder.names & _CODE) or like_comfyui(name)
    )


def _is_data(folder: Folder, name: str, level: int) -> bool:
    """The root itself may hold models and custom nodes without being a ComfyUI's folder."""
    own = folder.names & {MODELS, CUSTOM_NODES}
    return level > 0 and (len(own) == 2 or (bool(own) and like_comfyui(name)))


def _entered(folder: Folder) -> list[str]:
    """Folders, and links named like ComfyUI; likely names first."""
    names = {n for n in folder.folders if n not in _CLOSED and not n.startswith(".")}
    names |= {n for n in folder.links if like_comfyui(n)}
    return sorted(names, key=lambda name: (not like_comfyui(name), name))


def _each_once(paths: Iterable[Path]) -> tuple[Path, ...]:
    """Each folder once, by its shortest path."""
    once: dict[str, Path] = {}
    for path in sorted(paths, key=lambda p: (len(p.parts), p)):
        once.setdefault(os.path.realpath(path), path)
    return tuple(once.values())


CODES = {"volume.mount_linked": "The volume's other mount point was made a link to it"}


class MountState(str, Enum):
    """What is at another mount point: nothing, the volume itself, or something else."""

    FREE = "free"
    VOLUME = "volume"
    TAKEN = "taken"


@dataclass(frozen=True)
class OtherMount:
    """Another mount point's path, and what is there."""

    path: Path
    state: MountState


def other_mounts(root: Path) -> tuple[OtherMount, ...]:
    """The other mount points of the volume at `root`, except those above or below it. A broken link
    counts as nothing."""
    return tuple(
        OtherMount(name, _state(name, root))
        for name in USUAL_ROOTS
        if not (root.is_relative_to(name) or name.is_relative_to(root))
    )


def link_other_mounts(root: Path) -> tuple[list[Path], list[Finding]]:
    """Make each free name a link to the volume at `root`; the links made, and findings. Without
    permission to write to `/` there are neither: whatever needs a link has its own finding.
    """
    if not list_folder(str(root)).names:  # no volume is mounted there
        return [], []
    free = [other.path for other in other_mounts(root) if other.state is MountState.FREE]
    made = [name for name in free if _link(name, root)]
    return made, [_linked(name, root) for name in made]


def unlink_other_mounts(links: Sequence[Path], root: Path) -> None:
    """Remove links that `link_other_mounts` made, if they are unchanged."""
    for link in links:
        try:
            if os.readlink(link) == str(root):
                os.unlink(link)
        except OSError:
            continue


def _state(name: Path, root: Path) -> MountState:
    if os.path.exists(name):
        same = os.path.realpath(name) == os.path.realpath(root)
        return MountState.VOLUME if same else MountState.TAKEN
    free = name.is_symlink() or not os.path.lexists(name)
    return MountState.FREE if free else MountState.TAKEN


def _link(name: Path, root: Path) -> bool:
    try:
        if name.is_symlink():  # broken: left by a killed worker
            os.unlink(name)
        os.symlink(root, name)
    except OSError:
        return False
    return True


def _linked(name: Path, root: Path) -> Finding:
    return info(
        "volume.mount_linked",
        f"{name} is a link to the volume at {printable(str(root))}, so that paths that a Pod or "
        "another worker wrote hold here.",
        "Nothing to do; LINK_OTHER_MOUNT=false turns this off.",
        link=str(name),
    )
