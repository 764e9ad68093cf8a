"""Where people put models on a volume, and the paths in ComfyUI's `extra_model_paths.yaml`.

Tolerant: what cannot be parsed is skipped. ComfyUI's rules (`utils/extra_config.py`,
`load_extra_path_config`): `~` and variables in `base_path` are expanded; a relative path is joined
to `base_path`, and that to the file's own folder; a value may hold several lines.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from bootstrap.core.concurrency import BoundedCaller, ByteSemaphore
from bootstrap.core.files import Folder, contains, list_folder, open_regular
from bootstrap.models.weights_file import Examined, WeightsState, examine
from bootstrap.volume import CUSTOM_NODES, MODELS
from bootstrap.volume.args_file import paths_file
from bootstrap.volume.categories import GGUF, PT_EXTENSIONS, extension_of, known_folders

BASE = "base_path"
_MOST_TEXT = 64 << 10
MOST_PATHS = 200
_SECTION = re.compile(r"(\S[^:#]*):\s*(#.*)?$")
_PAIR = re.compile(r"(\s+)([\w.-]+):(?:\s+(.*))?$")
_TAB = re.compile(r" *\t\s*[^\s#]")
_BLOCK = re.compile(r"[|>][+-]?\d*$")
_PROPER = {name.casefold(): name for name in known_folders()}
_WEIGHTS = PT_EXTENSIONS | {GGUF}
_MOST_SUBFOLDERS = 8
_MOST_LOOSE = 50
_MOST_HELD = 32 << 20  # text of headers, at once
_MOST_FOLDERS = 50
# ComfyUI's own: models in `output` are on its lists, those in `custom_nodes` are their nodes'.
_NOT_FOR_MODELS = frozenset({CUSTOM_NODES, "input", "output", "temp", "user"})
# A stray .bin or .pkl may be anything.
_LOOSE = frozenset({".safetensors", ".sft", ".ckpt", ".gguf", ".pth", ".pt"})


@dataclass(frozen=True)
class PathLine:
    """A path in line `number` (from 1); `key` is its category, or `base_path`."""

    number: int
    section: str
    key: str
    value: str


@dataclass(frozen=True)
class ModelPath:
    """A line, its absolute `path`, and whether the folder exists. `below_base`: the path is
    relative to its section's base_path. `home` is the mount point that an absolute path begins
    with, if it is a possible one of the volume; `there` then says whether this volume has the
    folder.
    """

    number: int
    section: str
    key: str
    text: str
    path: str
    exists: bool = False
    below_base: bool = False
    home: str | None = None
    there: bool = False


def read_lines(path: str) -> list[PathLine]:
    """The paths in the file at `path`; none if it cannot be read."""
    return list(_parse(_lines_of(path)))[:MOST_PATHS]


def _lines_of(path: str) -> list[str]:
    try:
        with open_regular(path) as file:
            return file.read(_MOST_TEXT).decode("utf-8", "surrogateescape").splitlines()
    except OSError:
        return []


def further_folders(comfyui: Path) -> dict[Path, str]:
    """Model folder -> its category, from the file of the ComfyUI at `comfyui`."""
    folder = os.path.realpath(comfyui)
    given = resolve(read_lines(str(paths_file(Path(folder)))), folder, ())
    wanted = (path for path in given if path.key not in (BASE, CUSTOM_NODES))
    return {Path(path.path): path.key for path in wanted if os.path.isdir(path.path)}


def resolve(lines: list[PathLine], folder: str, homes: Sequence[str]) -> list[ModelPath]:
    """Where the lines of a file in `folder` lead, without accessing the disk."""
    bases = {line.section: _expanded(line.value) for line in lines if line.key == BASE}
    return [_resolved(line, folder, bases.get(line.section), homes) for line in lines]


def look_at_path(given: ModelPath, root: str) -> ModelPath:
    """`given`, checked on disk, for a volume at `root`."""
    there = False
    if given.home is not None:
        there = os.path.isdir(os.path.join(root, os.path.relpath(given.path, given.home)))
    return replace(given, exists=os.path.isdir(given.path), there=there)


def _resolved(line: PathLine, folder: str, base: str | None, homes: Sequence[str]) -> ModelPath:
    value = base if line.key == BASE and base is not None else line.value
    below = line.key != BASE and base is not None and not os.path.isabs(value)
    path = os.path.normpath(os.path.join(folder, (base or "") if below else "", value))
    home = None
    if os.path.isabs(value):
        home = next((h for h in homes if contains(h, path)), None)
    number, section, key = line.number, line.section, line.key
    return ModelPath(number, section, key, line.value, path, below_base=below, home=home)


def tabs_in(path: str) -> tuple[int, ...]:
    """The lines of the file at `path` whose indentation has a tab, which YAML does not allow."""
    return tuple(n for n, line in enumerate(_lines_of(path), 1) if _TAB.match(line))[:MOST_PATHS]


def _expanded(text: str) -> str:
    return os.path.expandvars(os.path.expanduser(text))


def _parse(lines: list[str]) -> Iterator[PathLine]:
    section, key, depth = "", "", -1
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        indent = len(line) - len(line.lstrip())
        if depth >= 0 and indent > depth:
            yield PathLine(number, section, key, line.strip())
            continue
        depth = -1
        top, pair = _SECTION.match(line), _PAIR.match(line)
        if top:
            section = top[1].strip()
        elif pair:
            key, value = pair[2], _value(pair[3] or "")
            if _BLOCK.match(value):
                depth = len(pair[1])
            elif value and key != "is_default":
                yield PathLine(number, section, key, value)


def _value(text: str) -> str:
    text = text.strip()
    if text[:1] in ("'", '"'):
        return text[1:].partition(text[0])[0]
    return re.split(r"\s#", text, maxsplit=1)[0].strip()


@dataclass(frozen=True)
class Stray:
    """A models folder, or a single model, at `path` that belongs at, or in, `belongs`. `inode`
    ((device, inode)), `size` in bytes and `examined` are of a model that was looked at."""

    path: str
    belongs: str
    inode: tuple[int, int] | None = None
    size: int = 0
    examined: Examined = Examined(WeightsState.UNREAD)


def find_strays(folders: Iterable[Folder], home: str, caller: BoundedCaller) -> list[Stray]:
    """Category folders with models directly in one of `folders`."""
    found = [
        Stray(path, os.path.join(home, _PROPER[os.path.basename(path).casefold()]))
        for folder in folders
        for path in folder.paths(frozenset(n for n in folder.folders if n.casefold() in _PROPER))
    ]
    holds = caller.each(lambda stray: _holds_weights(stray.path), found)
    return [stray for stray, models in zip(found, holds, strict=True) if models]


def find_loose(folders: Iterable[Folder], home: str, caller: BoundedCaller) -> list[Stray]:
    """Models directly in one of `folders`, with the folder for their kind if their contents show
    it, and whether they are what their names say."""
    once = {folder.path: folder for folder in folders}
    paths = [
        p
        for folder in once.values()
        for p in folder.paths(folder.files)
        if extension_of(p) in _LOOSE
    ]
    look = partial(_examined, home=home, allowance=ByteSemaphore(_MOST_HELD))
    seen = caller.each(look, paths[:_MOST_LOOSE])
    return [*seen, *(Stray(path, "") for path in paths[_MOST_LOOSE:])]


def _examined(path: str, home: str, allowance: ByteSemaphore) -> Stray:
    try:
        found = os.stat(path)
    except OSError:
        return Stray(path, "")
    examined = examine(path, found.st_size, allowance)
    belongs = os.path.join(home, examined.kind) if examined.kind else ""
    return Stray(path, belongs, (found.st_dev, found.st_ino), found.st_size, examined)


def find_unread(
    top: Folder, used: Collection[str], home: str, caller: BoundedCaller
) -> list[Stray]:
    """Models in folders of `top` whose names mean nothing to ComfyUI, and straight below those.
    Folders on the way to a path in `used` are left out."""
    names = {n for n in top.folders if not n.startswith(".") and n.casefold() not in _PROPER}
    names -= {n for n in names if n.casefold() == MODELS or n in _NOT_FOR_MODELS}
    paths = [p for p in top.paths(frozenset(names)) if not any(contains(p, x) for x in used)]
    folders = caller.each(list_folder, paths[:_MOST_FOLDERS])
    below = [p for folder in folders for p in folder.paths(folder.folders)[:_MOST_SUBFOLDERS]]
    return find_loose([*folders, *caller.each(list_folder, below)], home, caller)


def wrong_case(tops: Iterable[Folder], homes: Iterable[Folder]) -> list[Stray]:
    """`Models` for `models` in `tops`, `Checkpoints` for `checkpoints` in the models folders."""
    found = []
    for folder in tops:
        names = (n for n in folder.folders if n.casefold() == MODELS and n != MODELS)
        found += [_beside(folder, name, MODELS) for name in sorted(names)]
    for folder in homes:
        for name in sorted(folder.folders):
            proper = _PROPER.get(name.casefold())
            if proper is not None and proper != name:
                found.append(_beside(folder, name, proper))
    return found


def _beside(folder: Folder, name: str, proper: str) -> Stray:
    return Stray(os.path.join(folder.path, name), os.path.join(folder.path, proper))


def _holds_weights(path: str) -> bool:
    """In its files or its first subfolders', so that a `configs` with user settings does not count
    as a models folder."""
    folder = list_folder(path)
    if any(map(_is_weights, folder.files | folder.links)):
        return True
    below = (list_folder(p) for p in folder.paths(folder.folders)[:_MOST_SUBFOLDERS])
    return any(_is_weights(name) for sub in below for name in sub.files | sub.links)


def _is_weights(name: str) -> bool:
    return extension_of(name) in _WEIGHTS
