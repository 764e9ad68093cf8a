"""The structure of a mirror: a virtual environment on local disk around a copy of site-packages.

    bin/python*         links to the interpreter that the venv was made from
    bin/pip*            local programs; all others are links to the volume's
    pyvenv.cfg          as the volume's, its `home` that of the interpreter
    lib/python3.x/site-packages     copies and links (MirrorTree)
    everything else     links to the volume

What a node installs with `python -m pip` goes into the mirror: it works while this worker runs, and
the volume, which other workers use, stays unchanged.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from bootstrap.core.files import open_regular
from bootstrap.core.findings import Fault
from bootstrap.environment.python_probe import MIRROR_OF, venv_settings
from bootstrap.environment.venv_mirror import audit_hook

#: Bytecode folders, whose contents are valid if the source files beside them are.
BYTECODE = "__pycache__"
#: Files of this size (bytes) or more are linked and read ahead, not copied.
LARGE = 1 << 20
_FIX_VENV = (
    "Make the venv with a Python that the image has, or set COMFYUI_PYTHON to one of the image's."
)
_LIBRARY = re.compile(r"python(3\.\d+)")
_MOST_TEXT = 1 << 16
_HOOK = "_worker_files_opened"
_PIP = """\
#!/bin/sh
exec '{python}' -m pip "$@"
"""


class FileState(NamedTuple):
    """Identifies a version of a file: size in bytes, modification time in ns. `mode` has the
    permissions."""

    size: int
    mtime_ns: int
    mode: int = 0o644

    @classmethod
    def of(cls, found: os.stat_result) -> FileState:
        """From a file's stat result."""
        return cls(found.st_size, found.st_mtime_ns, found.st_mode & 0o777)

    def same_content(self, other: FileState) -> bool:
        """Permissions aside, the same file?"""
        return self[:2] == other[:2]


@dataclass
class ListedFolder:
    """A listing of one folder on the volume: names of files, and of links with their text.
    `mtime_ns` is 0 for bytecode, which is not checked again."""

    mtime_ns: int
    files: set[str] = field(default_factory=set)
    links: dict[str, str] = field(default_factory=dict)


@dataclass
class MirrorTree:
    """A mirror: folders by path ("" is site-packages itself), copied files, sizes of large ones
    that ComfyUI's start needs, in that order, and paths of folders that are still single links
    (deferred.py)."""

    folders: dict[str, ListedFolder] = field(default_factory=dict)
    copied: dict[str, FileState] = field(default_factory=dict)
    large: dict[str, int] = field(default_factory=dict)
    deferred: set[str] = field(default_factory=set)

    def holds(self, path: str) -> bool:
        """Is there a plain file of this path on the volume?"""
        parent, name = os.path.split(path)
        return parent in self.folders and name in self.folders[parent].files

    def names_in(self, path: str) -> frozenset[str]:
        """Plain files in one folder; none if there is no such folder."""
        return frozenset(self.folders[path].files) if path in self.folders else frozenset()

    def linked_files(self) -> Iterator[str]:
        """Plain files that were not copied."""
        for parent, folder in self.folders.items():
            for name in folder.files:
                path = join(parent, name)
                if path not in self.copied:
                    yield path

    def below(self, path: str) -> list[str]:
        """Folders in the folder `path`, at any depth."""
        prefix = f"{path}/" if path else ""
        return [p for p in list(self.folders) if p.startswith(prefix) and p != path]

    def forget(self, path: str) -> None:
        """Remove a file or folder that is gone."""
        for folder in [path, *self.below(path)] if path in self.folders else ():
            for name in self.folders.pop(folder).files:
                self._forget_file(join(folder, name))
        self.deferred.discard(path)
        parent, name = os.path.split(path)
        if parent in self.folders:
            self.folders[parent].files.discard(name)
            self.folders[parent].links.pop(name, None)
        self._forget_file(path)

    def _forget_file(self, path: str) -> None:
        self.copied.pop(path, None)
        self.large.pop(path, None)


def join(parent: str, name: str) -> str:
    """A path below site-packages."""
    return f"{parent}/{name}" if parent else name


def source_of(bytecode: str) -> str | None:
    """The source file that `a/__pycache__/b.cpython-311.pyc` was compiled from; None for any other
    path (PEP 3147)."""
    parent, name = os.path.split(bytecode)
    above, folder = os.path.split(parent)
    if folder != BYTECODE or not name.endswith(".pyc"):
        return None
    return join(above, f"{name.partition('.')[0]}.py")


def bytecode_of(source: str, tag: str) -> str | None:
    """The place of a source file's bytecode; None for any other file."""
    parent, name = os.path.split(source)
    stem, suffix = os.path.splitext(name)
    return join(join(parent, BYTECODE), f"{stem}.{tag}.pyc") if suffix == ".py" else None


def is_fresh(header: bytes, source: FileState) -> bool:
    """Was bytecode with this header compiled from this version of its source? PEP 552: magic,
    flags, then the source's time and size; unknown if there is a hash instead."""
    if len(header) < 16 or header[4:8] != bytes(4):
        return False
    seconds = source.mtime_ns // 1_000_000_000 & 0xFFFFFFFF
    size = source.size & 0xFFFFFFFF
    return header[8:16] == seconds.to_bytes(4, "little") + size.to_bytes(4, "little")


def children(tree: MirrorTree) -> Mapping[str, set[str]]:
    """Names of the folders in each folder."""
    found: dict[str, set[str]] = {path: set() for path in tree.folders}
    for path in (*tree.folders, *tree.deferred):
        if path:
            parent, name = os.path.split(path)
            found.setdefault(parent, set()).add(name)
    return found


def with_deferred_folders(tree: MirrorTree, needed: Iterable[str]) -> MirrorTree:
    """The tree with only the folders that have one of the `needed` files; other folders in them are
    deferred. Bytecode follows its source."""
    kept = {""}
    for path in needed:
        parent = os.path.dirname(path)
        while parent not in kept:
            kept.add(parent)
            parent = os.path.dirname(parent)
    kept |= {join(path, BYTECODE) for path in kept} & tree.folders.keys()
    others = {path for path in (*tree.folders, *tree.deferred) if path not in kept}
    deferred = {path for path in others if os.path.dirname(path) in kept}
    folders = {path: folder for path, folder in tree.folders.items() if path in kept}
    return MirrorTree(folders, tree.copied, tree.large, deferred)


class CannotMirror(Fault):
    """No mirror is possible; the message completes "The venv … was not copied to local disk: …"."""

    def __init__(self, why: str, fix: str = _FIX_VENV) -> None:
        super().__init__("python.not_copied", why, fix)


@dataclass(frozen=True)
class MirroredVenv:
    """A venv on the volume. `library` is `python3.11`, `tag` its bytecode's suffix, `interpreter`
    the program on this machine that runs it: the target of its `bin/python`, or, as a `stand_in`,
    another of the same version."""

    path: Path
    settings: str
    library: str
    interpreter: Path
    stand_in: bool
    names: tuple[str, ...]
    programs: tuple[str, ...]

    @property
    def site(self) -> Path:
        """Its site-packages."""
        return self.path / "lib" / self.library / "site-packages"

    @property
    def tag(self) -> str:
        """As in `module.cpython-311.pyc`."""
        return f"cpython-{self.library.removeprefix('python').replace('.', '')}"


def look_at_venv(path: Path, interpreter: Path | None) -> MirroredVenv:
    """What a mirror needs to know of a venv; `interpreter` replaces the venv's own, whose link may
    lead to another version on this machine. Raises CannotMirror, OSError."""
    path = Path(os.path.realpath(path))  # as in processes' memory maps
    with open_regular(path / "pyvenv.cfg") as file:
        settings = file.read(_MOST_TEXT).decode("utf-8", "replace")
    own = Path(os.path.realpath(path / "bin" / "python"))
    if interpreter is None and not own.exists():
        raise CannotMirror(f"its Python is not on this machine ({own})")
    program = Path(os.path.abspath(interpreter or own))
    library = _library(path, venv_settings(settings))
    names, programs = tuple(os.listdir(path)), tuple(os.listdir(path / "bin"))
    return MirroredVenv(path, settings, library, program, interpreter is not None, names, programs)


def make_skeleton(venv: MirroredVenv, place: Path) -> Path:
    """Create the venv in the new folder `place`, with empty site-packages; returns its Python.
    Raises OSError."""
    programs = place / "bin"
    programs.mkdir(parents=True)
    (place / "lib" / venv.library / "site-packages").mkdir(parents=True)
    (place / "pyvenv.cfg").write_text(_settings(venv), encoding="utf-8")
    (place / "lib64").symlink_to("lib")
    for name in {*venv.programs, "python", "python3", venv.library}:
        _add_program(venv, programs, name)
    for name in set(venv.names) - {"bin", "lib", "lib64", "pyvenv.cfg"}:
        (place / name).symlink_to(venv.path / name)
    return programs / "python"


def settle_paths(site: Path, source: Path) -> None:
    """Keep folders reachable that `.pth` files name relative to site-packages, outside it. Raises
    OSError."""
    for path in site.glob("*.pth"):
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
        settled = "".join(_settled(line, source) for line in text.splitlines(keepends=True))
        if settled != text:
            path.unlink()
            path.write_text(settled, encoding="utf-8", errors="surrogateescape")


def install_hook(site: Path, source: Path, log: Path) -> None:
    """Make each process of this Python append to `log` what it opens below `site` and `source`.
    Raises OSError."""
    program = Path(audit_hook.__file__).read_text(encoding="utf-8")
    (site / f"{_HOOK}.py").write_text(program, encoding="utf-8")
    line = f"import {_HOOK}; {_HOOK}.start({str(log)!r}, {(str(site), str(source))!r})\n"
    (site / f"{_HOOK}.pth").write_text(line, encoding="utf-8")


def _library(path: Path, settings: dict[str, str]) -> str:
    """The folder of the Python that made it; an upgrade may have left another's."""
    found = [name for name in os.listdir(path / "lib") if _LIBRARY.fullmatch(name)]
    version = settings.get("version") or settings.get("version_info") or ""
    wanted = "python" + ".".join(version.split(".")[:2])
    if wanted in found:
        return wanted
    if len(found) != 1:
        raise CannotMirror(
            f"which of lib/{', lib/'.join(sorted(found)) or 'python3.x'} it uses is not clear"
        )
    return found[0]


def _settings(venv: MirroredVenv) -> str:
    """Adds what it mirrors, and corrects the home of an interpreter that is elsewhere on this
    machine."""
    home = venv_settings(venv.settings).get("home", "")
    lines = venv.settings.splitlines()
    if not os.path.isdir(home) or venv.stand_in:
        rest = [line for line in lines if not re.match(r"\s*home\s*=", line)]
        lines = [f"home = {venv.interpreter.parent}", *rest]
    return "\n".join([*lines, f"{MIRROR_OF} = {venv.path}", ""])


def _add_program(venv: MirroredVenv, programs: Path, name: str) -> None:
    place = programs / name
    if re.fullmatch(r"python[\d.]*", name):
        place.symlink_to(venv.interpreter)
    elif re.fullmatch(r"pip[\d.]*", name):
        place.write_text(_PIP.format(python=programs / "python"), encoding="utf-8")
        place.chmod(0o755)
    else:
        place.symlink_to(venv.path / "bin" / name)


def _settled(line: str, source: Path) -> str:
    text = line.rstrip()
    if not text.startswith(".."):
        return line
    return os.path.normpath(source / text) + line[len(text) :]
