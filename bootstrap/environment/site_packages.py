"""The interpreter that runs ComfyUI, and what it has installed: as it says itself
(requirements_child.py), with what lies beside it; and the pip command that
changes that, and where to type it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bootstrap.core.concurrency import BoundedCaller, VolumeTimeout
from bootstrap.core.files import list_folder
from bootstrap.core.redact import MASK, masked
from bootstrap.core.text import on_pod, typed
from bootstrap.environment.python_probe import Failure, PythonTrouble, Venv, look_at_venv
from bootstrap.volume.locate import mount_of

READ_SECONDS = 15.0
MOST_LISTED = 500
_HEAD = 4096
_SHEBANG = re.compile(r"""(?:^#!\s*|exec'? ["'])(/[^"'\n]*python[\d.]*)""")
# Scripts that pip writes; one of them tells where all of them look for Python.
_SCRIPTS = ("pip", "pip3", "torchrun", "hf", "f2py", "tqdm")


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

    `python` is as people are to type it: the one on the volume, where a local copy was asked.
    `tag` is such as `cpython-311`, `managed` that pip refuses to change it (PEP 668), `markers`
    what PEP 508 compares with. `folders` are where it looks for packages, `other_versions` those
    of another Python in the same place (`3.10`), which it does not see. `scripts_python` is the
    interpreter that the first lines of its scripts name, where that is another than this. `network`
    names the network file system that the packages are on.
    """

    python: str
    failure: Failure | None = None
    version: str = ""
    prefix: str = ""
    base_prefix: str = ""
    tag: str = ""
    libc: str = ""
    managed: bool = False
    markers: Mapping[str, str] = field(default_factory=dict)
    folders: tuple[str, ...] = ()
    packages: tuple[Package, ...] = ()
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
        first = self.packages[:MOST_LISTED]
        data["packages"] = {p.name: p.version for p in reversed(first)}
        data["package_count"] = len(self.packages)
        data["folders"] = list(self.folders)[:MOST_LISTED]
        if self.failure is not None:
            data["failure"] = {
                "trouble": self.failure.trouble.value,
                "reason": self.failure.reason,
            }
        return data


def packages_facts(
    python: Path, said: Mapping[str, Any] | Failure, seconds: float
) -> PackagesFacts:
    """What `python` says of itself (requirements_child.py), and what is beside it; never raises."""
    venv = look_at_venv(str(python.parent.parent))
    named = os.path.join(venv.mirror_of, "bin", python.name) if venv and venv.mirror_of else python
    if isinstance(said, Failure):
        return PackagesFacts(str(named), said, venv=venv, seconds=seconds)
    prefix = str(said["prefix"])
    folders = tuple(map(str, said["folders"]))
    caller = BoundedCaller(READ_SECONDS)
    found: dict[str, Any]
    try:
        found = {
            "other_versions": caller.one(lambda: _other_versions(prefix, folders)),
            "scripts_python": caller.one(lambda: _scripts_python(python)) if venv else None,
        }
    except VolumeTimeout as problem:
        found = {"failure": Failure(PythonTrouble.SILENT, f"its packages: {problem}")}
    return PackagesFacts(
        python=str(named),
        version=str(said["version"]),
        prefix=prefix,
        base_prefix=str(said["base_prefix"]),
        tag=str(said["tag"]),
        libc=str(said["libc"]),
        managed=bool(said["managed"]),
        markers={str(k): str(v) for k, v in dict(said["markers"]).items()},
        folders=folders,
        packages=tuple(Package(p["name"], p["version"], p["folder"]) for p in said["packages"]),
        venv=venv,
        network=_network(folders[0] if folders else prefix),
        problems=tuple(map(str, said["problems"])),
        seconds=seconds,
        **found,
    )


def _other_versions(prefix: str, folders: tuple[str, ...]) -> tuple[str, ...]:
    """Pythons that have packages under `prefix`/lib and are not the one that runs."""
    found = []
    for name in sorted(list_folder(os.path.join(prefix, "lib")).names):
        path = os.path.join(prefix, "lib", name, "site-packages")
        python = re.fullmatch(r"python3\.\d+", name)
        if python and path not in folders and list_folder(path).names:
            found.append(name[len("python") :])
    return tuple(found)


def _head(path: str) -> str | None:
    try:
        with open(path, "rb") as file:
            return file.read(_HEAD).decode("utf-8", "replace")
    except OSError:
        return None


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


# Each is built for one torch: pip brings another torch with another version of these.
_BOUND_TO_TORCH = frozenset({"torchvision", "torchaudio", "torchtext", "xformers", "flash-attn"})


def pip_install(packages: PackagesFacts, requirements: Iterable[tuple[str, str]]) -> str:
    """The command that installs requirements, given as (normalised name, text).

    It keeps torch as it is where something bound to torch is installed, gets pip first where the
    venv has none, and passes Debian's guard where the interpreter is the system's own.
    """
    wanted = {name: masked(text) for name, text in requirements}
    torch = public_torch(packages)
    if torch and "torch" not in wanted and _BOUND_TO_TORCH & set(wanted):
        wanted["torch"] = f"torch=={torch}"
    flags = ["--break-system-packages"] if packages.managed else []
    command = typed(packages.python, "-m", "pip", "install", *flags, *wanted.values())
    if packages.packages and not packages.versions_of("pip"):
        return f"{typed(packages.python, '-m', 'ensurepip')} && {command}"
    return command


def public_torch(packages: PackagesFacts) -> str | None:
    """The installed torch's version without its local part: `2.9.1` of `2.9.1+cu128`."""
    version = next(iter(packages.versions_of("torch")), None)
    return version.partition("+")[0] if version else None


def where_to_type(command: str, python: str, comfyui: str, then: str = "") -> str:
    """A fix that changes `python`: on a Pod when it lies on ComfyUI's volume, else in the image."""
    if MASK in command:
        login = f"Where it says {MASK}, type the login that the requirements file has."
        then = f"{login} {then}".rstrip()
    volume = comfyui.rstrip("/").rpartition("/")[0]
    if volume and python.startswith(f"{volume}/"):
        return on_pod(command, volume, then)
    fix = f"`{command}`, as a RUN line in the image's Dockerfile (a Pod forgets it when it ends)."
    return f"{fix} {then}".rstrip()
