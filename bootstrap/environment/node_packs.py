"""A ComfyUI's version and custom node packs, their git checkouts and what they require, read from
files and never imported.

Requirements are raw lines of a requirements.txt, or a pyproject.toml's text, as pip reads them:
joined lines, comments, `-r`. Options for where packages come from (`--index-url`, `--find-links`)
are ignored: the endpoint decides that, not a custom node. Nothing outside the owner's folder is
read, through a link or `..`, and only plain files.
"""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from bootstrap.core.concurrency import BoundedCaller
from bootstrap.core.files import Folder, list_folder, open_regular
from bootstrap.core.redact import LOGIN
from bootstrap.volume import CUSTOM_NODES
from bootstrap.volume.args_file import group_flags

#: The owner of ComfyUI's own requirements.
COMFYUI = "ComfyUI"
_FILE = "requirements.txt"
_MANAGER = "manager_requirements.txt"
_MOST_TEXT = 64 << 10
_MOST_GIT = 1 << 20  # of packed-refs
_MOST_LINES = 300
_MOST_INCLUDES = 8
_COMMENT = re.compile(r"(^|\s)#.*$")
_PER_LINE_OPTIONS = re.compile(r"\s--?(?:hash|config-settings|global-option|install-option)\b.*")
_INCLUDE = re.compile(r"(?:-r|--requirement)[\s=]*(?P<file>\S.*)")
_EDITABLE = re.compile(r"(?:-e|--editable)[\s=]+")
COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
DISABLED = ".disabled"
MOST_PACKS = 500


@dataclass(frozen=True)
class Git:
    """A checkout: `branch` is None at a detached commit, `tag` a tag on exactly the checked-out
    commit, `origin` its remote address, without login."""

    branch: str | None = None
    commit: str | None = None
    tag: str | None = None
    origin: str | None = None


def look_at_git(folder: str) -> Git | None:
    """The checkout in `folder`; None if it is not a usable one. Four small reads."""
    home = os.path.join(folder, ".git")
    pointer = read_text(home)  # a submodule's .git is a file
    if pointer is not None and pointer.startswith("gitdir:"):
        home = os.path.join(folder, pointer[len("gitdir:") :].strip())
    head = (read_text(os.path.join(home, "HEAD")) or "").strip()
    if not head:
        return None
    packed = read_text(os.path.join(home, "packed-refs"), _MOST_GIT) or ""
    branch = head[len("ref: refs/heads/") :] if head.startswith("ref: refs/heads/") else None
    commit = _commit_of(home, f"refs/heads/{branch}", packed) if branch else head
    if commit is not None and not COMMIT.fullmatch(commit):
        commit = None
    origin = _origin(read_text(os.path.join(home, "config")) or "")
    return Git(
        branch=branch,
        commit=commit,
        tag=_tag(commit, packed) if commit else None,
        origin=LOGIN.sub("", origin) if origin else None,
    )


def _origin(config: str) -> str | None:
    """The url of the remote "origin", line by line as git reads it: a section lasts until the
    next one begins."""
    inside = False
    for line in map(str.strip, config.splitlines()):
        if line.startswith("["):
            inside = line.partition("]")[0].replace(" ", "").lower() == '[remote"origin"'
            continue
        key, equals, value = line.partition("=")
        if inside and equals and key.strip().lower() == "url" and value.strip():
            return value.split()[0]
    return None


def _commit_of(home: str, reference: str, packed: str) -> str | None:
    loose = read_text(os.path.join(home, reference))
    if loose:
        return loose.strip()
    match = re.search(rf"^([0-9a-f]+) {re.escape(reference)}$", packed, re.MULTILINE)
    return match[1] if match else None


def _tag(commit: str, packed: str) -> str | None:
    """An annotated tag's line is followed by `^` and its commit."""
    direct = re.search(rf"^{commit} refs/tags/(\S+)$", packed, re.MULTILINE)
    peeled = re.search(rf"^[0-9a-f]+ refs/tags/(\S+)\n\^{commit}$", packed, re.MULTILINE)
    match = direct or peeled
    return match[1] if match else None


@dataclass(frozen=True)
class RequirementFile:
    """One owner's requirements: `lines` of a requirements file, or a pyproject.toml's text in
    `toml`. `owner` is COMFYUI or a custom node's name, `path` the file."""

    owner: str
    path: str
    lines: tuple[str, ...] = ()
    toml: str | None = None

    @property
    def core(self) -> bool:
        """Is it ComfyUI's own?"""
        return self.owner == COMFYUI


class PackState(str, Enum):
    """The state of a pack. `NO_INIT` is a folder that Python cannot import."""

    GOOD = "good"
    EMPTY = "empty"
    NO_INIT = "no_init"
    LINK_BROKEN = "link_broken"
    UNREADABLE = "unreadable"


@dataclass(frozen=True)
class Pack:
    """One pack. `only_git`: a checkout has nothing but `.git`. `inner` is a folder in it that is a
    pack (unpacked one level too deep), `origin` the address it was cloned from; both are set only
    if the pack is not `GOOD`. `requirements` is its file; `install_script`: it has an install.py.
    """

    name: str
    path: str
    state: PackState = PackState.GOOD
    disabled: bool = False
    only_git: bool = False
    inner: str | None = None
    origin: str | None = None
    requirements: RequirementFile | None = None
    install_script: bool = False


def gather_packs(
    comfyui: str, caller: BoundedCaller, nodes: str | None = None, arguments: Sequence[str] = ()
) -> tuple[Pack, ...]:
    """All packs by name, as a ComfyUI started with `arguments` would load them, and disabled ones;
    at most `MOST_PACKS`. Those in the folder `nodes` override ComfyUI's own of the same name.

    Raises VolumeTimeout.
    """
    homes = [os.path.join(comfyui, CUSTOM_NODES), *([nodes] if nodes is not None else [])]
    found: dict[str, Folder] = {}
    for folder in caller.each(list_folder, homes):
        found.update({name: folder for name in folder.names if _is_pack(name, folder)})
    names = sorted(found)[:MOST_PACKS]
    packs = caller.each(lambda name: _look(found[name].path, name, found[name]), names)
    if "--disable-all-custom-nodes" not in arguments:
        return tuple(packs)
    named = _values_of("--whitelist-custom-nodes", arguments)
    return tuple(p if p.name in named else replace(p, disabled=True) for p in packs)


def _values_of(flag: str, arguments: Sequence[str]) -> frozenset[str]:
    """The values after a flag that takes several."""
    values: set[str] = set()
    for first, *rest in group_flags(arguments):
        name, _, value = first.partition("=")
        if name == flag:
            values.update([value, *rest] if value else rest)
    return frozenset(values)


def _is_pack(name: str, folder: Folder) -> bool:
    """ComfyUI tries every folder and every .py file; a hidden one (`.git`) is not a pack."""
    if name.startswith((".", "__pycache__")):
        return False
    stem = name.removesuffix(DISABLED)
    return name not in folder.files or stem.endswith(".py")


def _look(home: str, name: str, folder: Folder) -> Pack:
    path = os.path.join(home, name)
    disabled = name.endswith(DISABLED)
    if name in folder.files or (name in folder.links and os.path.isfile(path)):
        return Pack(name, path, disabled=disabled)
    inside = list_folder(path)
    state = _state(inside, name in folder.links)
    good = state is PackState.GOOD
    git = look_at_git(path) if not good and ".git" in inside.names else None
    asking = good and {"requirements.txt", "pyproject.toml"} & inside.names
    return Pack(
        name=name,
        path=path,
        state=state,
        disabled=disabled,
        only_git=state is PackState.EMPTY and bool(inside.names),
        inner=_inner(inside) if state is PackState.NO_INIT else None,
        origin=git.origin if git else None,
        requirements=requirement_file(name, path) if asking else None,
        install_script="install.py" in inside.names,
    )


def _state(inside: Folder, is_link: bool) -> PackState:
    if inside.trouble is not None:
        return PackState.UNREADABLE if inside.exists or not is_link else PackState.LINK_BROKEN
    if not inside.names - {".git"}:
        return PackState.EMPTY
    return PackState.GOOD if "__init__.py" in inside.names else PackState.NO_INIT


def _inner(inside: Folder) -> str | None:
    for name in sorted(inside.folders)[:20]:
        text = read_text(os.path.join(inside.path, name, "__init__.py")) or ""
        if "NODE_CLASS_MAPPINGS" in text or "comfy_entrypoint" in text:
            return name
    return None


VERSION_FILE = "comfyui_version.py"
PROJECT_FILE = "pyproject.toml"


@dataclass(frozen=True)
class Requirements:
    """`files` are ComfyUI's own first, then the nodes'; `version` is None if unknown."""

    version: str | None = None
    files: tuple[RequirementFile, ...] = ()


def read_requirements(
    comfyui: str, caller: BoundedCaller, nodes: str | None = None, arguments: Sequence[str] = ()
) -> Requirements:
    """The requirements of the ComfyUI in a folder, started with `arguments`, and of custom nodes in
    `nodes`. Raises VolumeTimeout."""
    packs = gather_packs(comfyui, caller, nodes, arguments)
    own = caller.one(lambda: comfyui_file(comfyui, arguments))
    return Requirements(read_version(comfyui, caller)[0], files_of(own, packs))


def files_of(own: RequirementFile | None, packs: Iterable[Pack]) -> tuple[RequirementFile, ...]:
    """ComfyUI's file and those of the active custom nodes."""
    active = (pack for pack in packs if pack.state is PackState.GOOD and not pack.disabled)
    return tuple(file for file in (own, *(p.requirements for p in active)) if file is not None)


def read_version(
    comfyui: str, caller: BoundedCaller, git: Git | None = None
) -> tuple[str | None, str | None]:
    """The version and its source: comfyui_version.py since 2025, pyproject.toml since mid-2024,
    before that a git tag. Raises VolumeTimeout."""
    paths = [os.path.join(comfyui, name) for name in (VERSION_FILE, PROJECT_FILE)]
    texts = caller.each(read_text, paths)
    match = re.search(r"""^__version__\s*=\s*["']([^"']+)""", texts[0] or "", re.MULTILINE)
    if match:
        return match[1], VERSION_FILE
    if version := project_value(texts[1] or "", "version"):
        return version, PROJECT_FILE
    git = git or caller.one(lambda: look_at_git(comfyui))
    if git is not None and git.tag and re.fullmatch(r"v\d+(\.\d+)*", git.tag):
        return git.tag[1:], "git"
    return None, None


def project_value(text: str, key: str) -> str | None:
    """A value in the `[project]` of a pyproject.toml, such as its version."""
    project = re.search(r"^\[project\]\s*\n((?:(?!\[).*\n?)*)", text, re.MULTILINE)
    found = project and re.search(rf"""^{key}\s*=\s*["']([^"'\n]+)""", project[1], re.MULTILINE)
    return found[1] if found else None


def requirement_file(
    owner: str, folder: str, names: Sequence[str] = (_FILE,)
) -> RequirementFile | None:
    """The files `names` in `folder`, by default requirements.txt, which ComfyUI-Manager installs;
    else the dependencies in its pyproject.toml; None without either."""
    lines = _read(folder, names)
    if lines is not None:
        return RequirementFile(owner, os.path.join(folder, _FILE), lines)
    home = os.path.realpath(folder)
    text = None if owner == COMFYUI else read_text(_inside(home, home, PROJECT_FILE))
    return RequirementFile(owner, os.path.join(folder, PROJECT_FILE), toml=text) if text else None


def comfyui_file(folder: str, arguments: Sequence[str]) -> RequirementFile | None:
    """The requirements of the ComfyUI in `folder`, started with `arguments`: its manager, a
    separate package since 0.4, has its own file."""
    manager = {"--enable-manager", "--enable-manager-legacy-ui"} & set(arguments)
    return requirement_file(COMFYUI, folder, (_FILE, *([_MANAGER] if manager else [])))


def _read(folder: str, names: Sequence[str]) -> tuple[str, ...] | None:
    """Lines of the files `names` and of those included with -r, if they are in `folder`."""
    home = os.path.realpath(folder)
    pending = [_inside(home, home, name) for name in names]
    seen: set[str] = set()
    lines: list[str] | None = None
    while pending and len(seen) <= _MOST_INCLUDES:
        path = pending.pop(0)
        text = None if path is None or path in seen else read_text(path)
        if path is None or text is None:
            continue
        seen.add(path)
        own, includes = _parse(text)
        pending += [_inside(home, os.path.dirname(path), include) for include in includes]
        lines = [*(lines or []), *own]
    return None if lines is None else tuple(dict.fromkeys(lines))[:_MOST_LINES]


def _inside(home: str, folder: str, name: str) -> str | None:
    """The file `name` relative to `folder`, links resolved; None if it is outside `home`."""
    path = os.path.realpath(os.path.join(folder, name))
    return path if path.startswith(home.rstrip(os.sep) + os.sep) else None


def _parse(text: str) -> tuple[list[str], list[str]]:
    """Requirements, and the files included with -r."""
    lines: list[str] = []
    includes: list[str] = []
    for line in _logical_lines(text):
        line = _PER_LINE_OPTIONS.sub("", _COMMENT.sub("", line)).strip()
        include = _INCLUDE.fullmatch(line)
        if include is not None:
            includes.append(include["file"].strip().strip("'\""))
            continue
        line = _EDITABLE.sub("", line, count=1) if _EDITABLE.match(line) else line
        if line and not line.startswith("-"):
            lines.append(line)
    return lines, includes


def _logical_lines(text: str) -> list[str]:
    """Lines, joined after a trailing backslash; lines with a NUL are dropped."""
    joined: list[str] = []
    open_line = ""
    for line in text.splitlines():
        if line.endswith("\\") and not line.lstrip().startswith("#"):
            open_line += line[:-1]
            continue
        joined.append(open_line + line)
        open_line = ""
    return [line for line in [*joined, open_line] if line and "\0" not in line]


def read_text(path: str | None, most: int = _MOST_TEXT) -> str | None:
    """A small plain file, decoded by its byte order mark (PowerShell writes UTF-16), else as UTF-8,
    else as Latin-1; None if it cannot be read."""
    if path is None:
        return None
    try:
        with open_regular(path) as file:
            data = file.read(most)
    except (OSError, ValueError):  # a path from a file may hold a NUL
        return None
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", "replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")
