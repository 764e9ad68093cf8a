"""What the interpreter that runs ComfyUI has installed, read from folders and never imported.

The interpreter is asked once who it is and where it looks; what lies there is then read side by
side, since each question to a network volume takes 1.5 ms.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bootstrap.core.concurrency import SilentError, Together
from bootstrap.core.redact import child_environment
from bootstrap.environment.python import (
    ASK_SECONDS,
    Failure,
    Trouble,
    Venv,
    ask_python,
    look_at_venv,
)
from bootstrap.environment.requirements import normalised
from bootstrap.volume.layout import mount_of

READ_SECONDS = 15.0
MOST_TOLD = 500
_MOST_PACKAGES = 3000
_HEAD = 4096  # Name and Version stand among the first lines: core metadata specification
_METADATA = re.compile(r"^(Name|Version):[ \t]*(\S+)", re.MULTILINE | re.IGNORECASE)
_SHEBANG = re.compile(r"""(?:^#!\s*|exec'? ["'])(/[^"'\n]*python[\d.]*)""")
# Scripts that pip writes; one of them tells where all of them look for Python.
_SCRIPTS = ("pip", "pip3", "torchrun", "hf", "f2py", "tqdm")
_WORD = re.compile(r"[A-Za-z]\w*", re.ASCII)


@dataclass(frozen=True)
class Package:
    """An installed distribution; `name` is normalised, `version` None when its record is damaged
    (pip was interrupted)."""

    name: str
    version: str | None
    folder: str


@dataclass(frozen=True)
class PackagesFacts:
    """An interpreter and what it can import. Fields behind a `failure` keep their defaults.

    `tag` is such as `cpython-311`, `managed` that pip refuses to change it (PEP 668), `markers`
    what PEP 508 compares with. `folders` are where it looks for packages, `other_versions` those
    of another Python in the same place (`3.10`), which it does not see. `modules` can be imported
    and belong to no distribution of that name. `scripts_python` is the interpreter that the first
    lines of its scripts name, where that is another than this. `network` names the network file
    system that the packages are on.
    """

    python: str
    failure: Failure | None = None
    version: str = ""
    prefix: str = ""
    base_prefix: str = ""
    tag: str = ""
    managed: bool = False
    markers: Mapping[str, str] = field(default_factory=dict)
    folders: tuple[str, ...] = ()
    packages: tuple[Package, ...] = ()
    modules: frozenset[str] = frozenset()
    venv: Venv | None = None
    other_versions: tuple[str, ...] = ()
    scripts_python: str | None = None
    network: str | None = None
    problems: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def usable(self) -> bool:
        """Did it answer, and does it see the packages beside it?"""
        return self.failure is None and not self.sees_nothing

    @property
    def sees_nothing(self) -> bool:
        """Does it stand in a venv that another Python version made, so that it finds nothing?"""
        own = self.markers.get("python_version", "")
        made_by = self.venv.version if self.venv else None
        return bool(self.other_versions) and made_by != own and own not in self.other_versions

    def versions_of(self, name: str) -> tuple[str | None, ...]:
        """Versions of a distribution, by its normalised name, in the first folder that has it."""
        found = [p for p in self.packages if p.name == name]
        return tuple(p.version for p in found if p.folder == found[0].folder)

    def as_dict(self) -> dict[str, Any]:
        """The facts as JSON-ready data of bounded size."""
        data = asdict(self)
        told = self.packages[:MOST_TOLD]
        data["packages"] = {p.name: p.version for p in reversed(told)}
        data["package_count"] = len(self.packages)
        data["modules"] = sorted(self.modules)[:MOST_TOLD]
        data["folders"] = list(self.folders)[:MOST_TOLD]
        if self.failure is not None:
            data["failure"] = {
                "trouble": self.failure.trouble.value,
                "reason": self.failure.reason,
            }
        return data


def gather_packages(
    python: Path, env: Mapping[str, str] | None = None, timeout: float = ASK_SECONDS
) -> PackagesFacts:
    """Ask `python` who it is and read what it has; never raises.

    `env` is the worker's environment (by default this process's); secrets are kept from the
    child. `timeout` is how many seconds the interpreter has; reading has `READ_SECONDS` more.
    """
    start = time.monotonic()
    given = os.environ if env is None else env
    venv = look_at_venv(str(python.parent.parent))
    said = ask_python(python, child_environment(given, (), python), timeout)
    if isinstance(said, Failure):
        return PackagesFacts(str(python), said, venv=venv, seconds=time.monotonic() - start)
    together = Together(READ_SECONDS)
    try:
        found = _read(said, together)
    except SilentError as problem:
        found = {"failure": Failure(Trouble.SILENT, f"its packages: {problem}")}
    return PackagesFacts(
        python=str(python),
        version=str(said.get("version", "")),
        prefix=str(said.get("prefix", "")),
        base_prefix=str(said.get("base_prefix", "")),
        tag=str(said.get("tag", "")),
        managed=bool(said.get("managed")),
        markers={str(k): str(v) for k, v in dict(said.get("markers", {})).items()},
        venv=venv,
        scripts_python=_scripts_python(python) if venv else None,
        seconds=time.monotonic() - start,
        **found,
    )


def _read(said: Mapping[str, Any], together: Together) -> dict[str, Any]:
    folders = _package_folders(said)
    listed = dict(zip(folders, together.each(_names_in, folders), strict=True))
    folders = [folder for folder in folders if listed[folder]]
    records = [(f, n) for f in folders for n in sorted(listed[f]) if _is_record(n)]
    cut = len(records) > _MOST_PACKAGES
    packages = [p for p in together.each(_package, records[:_MOST_PACKAGES]) if p is not None]
    known = {package.name for package in packages}
    names = [(f, n) for f in folders for n in sorted(listed[f]) if _may_be_module(n, known)]
    modules = [m for m in together.each(_module, names[:_MOST_PACKAGES]) if m is not None]
    prefix = str(said.get("prefix", ""))
    return {
        "folders": tuple(folders),
        "packages": tuple(packages),
        "modules": frozenset(modules),
        "other_versions": together.one(lambda: _other_versions(prefix, folders)),
        "network": _network(folders[0] if folders else prefix),
        "problems": (f"more than {_MOST_PACKAGES} packages: not all were read",) if cut else (),
    }


def _package_folders(said: Mapping[str, Any]) -> list[str]:
    """sys.path without the standard library, which has no packages' records."""
    stdlib = str(said.get("stdlib", ""))
    found = []
    for path in map(str, said["path"]):
        standard = bool(stdlib) and (path + "/").startswith(stdlib + "/")
        if os.path.isabs(path) and (not standard or path.endswith("-packages")):
            found.append(path)
    return list(dict.fromkeys(found))


def _names_in(folder: str) -> frozenset[str]:
    try:
        return frozenset(os.listdir(folder))
    except OSError:
        return frozenset()


def _is_record(name: str) -> bool:
    """pip puts a `~` before what it is about to remove, or failed to."""
    return name.endswith((".dist-info", ".egg-info")) and not name.startswith(("~", "."))


def _package(record: tuple[str, str]) -> Package | None:
    folder, name = record
    path = os.path.join(folder, name)
    inside = ("METADATA",) if name.endswith(".dist-info") else ("PKG-INFO", "")
    for file in inside:
        head = _head(os.path.join(path, file) if file else path)
        if head is None:
            continue
        told = {key.lower(): value for key, value in reversed(_METADATA.findall(head))}
        if "name" in told:
            return Package(normalised(told["name"]), told.get("version"), folder)
    stem = name.rpartition(".")[0].split("-")[0]
    return Package(normalised(stem), None, folder) if _WORD.fullmatch(stem) else None


def _head(path: str) -> str | None:
    try:
        with open(path, "rb") as file:
            return file.read(_HEAD).decode("utf-8", "replace")
    except OSError:
        return None


def _may_be_module(name: str, known: set[str]) -> bool:
    stem, _, ending = name.partition(".")
    importable = ending in ("", "py") or ending.endswith("so")
    return importable and bool(_WORD.fullmatch(stem)) and normalised(stem) not in known


def _module(entry: tuple[str, str]) -> str | None:
    """A folder counts when it has an __init__.py: an uninstalled package may leave an empty one."""
    folder, name = entry
    if "." in name or os.path.isfile(os.path.join(folder, name, "__init__.py")):
        return name.partition(".")[0]
    return None


def _other_versions(prefix: str, folders: list[str]) -> tuple[str, ...]:
    """Pythons that have packages under `prefix`/lib and are not the one that runs."""
    found = []
    for name in sorted(_names_in(os.path.join(prefix, "lib"))):
        path = os.path.join(prefix, "lib", name, "site-packages")
        if re.fullmatch(r"python3\.\d+", name) and path not in folders and _names_in(path):
            found.append(name[len("python") :])
    return tuple(found)


def _scripts_python(python: Path) -> str | None:
    """The interpreter in the first lines of scripts beside `python`, where it is another one."""
    for name in _SCRIPTS:
        head = _head(str(python.parent / name))
        match = _SHEBANG.search(head[:1000]) if head else None
        if match is not None:
            there = os.path.dirname(match[1])
            same = os.path.realpath(there) == os.path.realpath(python.parent)
            return None if same else match[1]
    return None


def _network(path: str) -> str | None:
    mount = mount_of(os.path.realpath(path), Path("/proc/self/mountinfo"))
    return mount.system if mount is not None and mount.network else None
