"""The interpreter that runs ComfyUI and its installed packages, as it reports them
(requirements_child.py), with what is beside it; and the pip command that changes them, and where
to type it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bootstrap.core.concurrency import BoundedCaller, VolumeTimeout
from bootstrap.core.files import list_folder, open_regular
from bootstrap.core.redact import MASK, masked
from bootstrap.core.text import on_pod, shell_quote
from bootstrap.environment.python_probe import Failure, PythonTrouble, Venv, look_at_venv
from bootstrap.volume.locate import mount_of

READ_SECONDS = 15.0
MOST_LISTED = 500
_HEAD = 4096
_SHEBANG = re.compile(r"""(?:^#!\s*|exec'? ["'])(/[^"'\n]*python[\d.]*)""")
# Scripts that pip writes; the shebang of one applies to all.
_SCRIPTS = ("pip", "pip3", "torchrun", "hf", "f2py", "tqdm")


@dataclass(frozen=True)
class Package:
    """An installed distribution; `name` is normalised, `version` is None if its record is damaged
    (pip was interrupted)."""

    name: str
    version: str | None
    folder: str


@dataclass(frozen=True)
class PackagesFacts:
    """An interpreter and what it can import. After a `failure` the other fields keep their
    defaults. `python` is the path for people to type: the one on the volume, if a local copy was
    asked. `tag` is for example `cpython-311`; `managed`: pip refuses to change it (PEP 668);
    `markers` are the values for PEP 508. `folders` are its package folders, `other_versions` other
    Pythons' in the same place (`3.10`), which it does not see. `scripts_python` is the interpreter
    in its scripts' shebang lines, if another. `network` is the network file system of the packages.
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
        """Did it answer, and does it see its own packages?"""
        return self.failure is None and not self.sees_nothing

    @property
    def sees_nothing(self) -> bool:
        """Is it in a venv made by another Python version, so that it finds no packages?"""
        own = self.markers.get("python_version", "")
        made_by = self.venv.version if self.venv else None
        return bool(self.other_versions) and made_by != own and own not in self.other_versions

    def versions_of(self, name: str) -> tuple[str | None, ...]:
        """Versions of a distribution (normalised name) in the first folder that has it."""
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
    """What `python` reported (requirements_child.py), and what is beside it; never raises."""
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
    """Other Pythons with packages under `prefix`/lib."""
    found = []
    for name in sorted(list_folder(os.path.join(prefix, "lib")).names):
        path = os.path.join(prefix, "lib", name, "site-packages")
        python = re.fullmatch(r"python3\.\d+", name)
        if python and path not in folders and list_folder(path).names:
            found.append(name[len("python") :])
    return tuple(found)


def _head(path: str) -> str | None:
    try:
        with open_regular(path) as file:
            return file.read(_HEAD).decode("utf-8", "replace")
    except OSError:
        return None


def _scripts_python(python: Path) -> str | None:
    """The interpreter in the shebang lines of scripts beside `python`, if another."""
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


# Each is built for one torch: with another version of these pip installs another torch.
_BOUND_TO_TORCH = frozenset({"torchvision", "torchaudio", "torchtext", "xformers", "flash-attn"})


def pip_install(packages: PackagesFacts, requirements: Iterable[tuple[str, str]]) -> str:
    """The command that installs requirements, given as (normalised name, text).

    It pins torch if something bound to torch is installed, installs pip first if the venv has none,
    and overrides Debian's guard for the system's own interpreter.
    """
    wanted = {name: masked(text) for name, text in requirements}
    torch = public_torch(packages)
    if torch and "torch" not in wanted and _BOUND_TO_TORCH & set(wanted):
        wanted["torch"] = f"torch=={torch}"
    flags = ["--break-system-packages"] if packages.managed else []
    command = shell_quote(packages.python, "-m", "pip", "install", *flags, *wanted.values())
    if packages.packages and not packages.versions_of("pip"):
        return f"{shell_quote(packages.python, '-m', 'ensurepip')} && {command}"
    return command


def public_torch(packages: PackagesFacts) -> str | None:
    """The installed torch's version without its local part: `2.9.1` of `2.9.1+cu128`."""
    version = next(iter(packages.versions_of("torch")), None)
    return version.partition("+")[0] if version else None


def where_to_type(command: str, python: str, comfyui: str, then: str = "") -> str:
    """Where to change `python`: on a Pod if it is on ComfyUI's volume, else in the image."""
    if MASK in command:
        login = f"Where it says {MASK}, type the login that the requirements file has."
        then = f"{login} {then}".rstrip()
    volume = comfyui.rstrip("/").rpartition("/")[0]
    if volume and python.startswith(f"{volume}/"):
        return on_pod(command, volume, then)
    fix = f"`{command}`, as a RUN line in the image's Dockerfile (a Pod loses it when it ends)."
    return f"{fix} {then}".rstrip()
