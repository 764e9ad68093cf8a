"""What a Python says of itself and of ComfyUI, and what files say of virtual environments and of
torch, which is never imported here."""

from __future__ import annotations

import ast
import errno
import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from bootstrap.core.files import link_text, list_folder, open_regular
from bootstrap.core.findings import Finding, error

_MOST_TEXT = 16 << 10
_SETTING = re.compile(r"^[ \t]*([\w-]+)[ \t]*=[ \t]*(.*)$", re.MULTILINE)
# Takes 0.2 s on local disk; seconds on a cold network volume, since starting reads about 100 files.
ASK_SECONDS = 20.0
_MOST_REASON = 300
_CHILD = Path(__file__).with_name("requirements_child.py")
CODES = {
    "comfyui.help_failed": "ComfyUI's `main.py --help` failed",
}
PROBE_SECONDS = 60  # a venv on a cold network volume
MIRROR_OF = "mirror-of"  # in the pyvenv.cfg of a mirror: the folder of the venv on the volume


@dataclass(frozen=True)
class Venv:
    """`version` is the Python that made it ("3.11"), None if unknown. `python_text` is the text of
    the link `bin/python`, `python_exists` whether it leads to a program. `made_at` is where it was
    created, as its scripts' shebang lines still say. `full`: it has torch itself. `for_comfyui`: it
    also has packages that only ComfyUI requires. `made` is its creation time, in seconds since
    1970. `interpreter` is a Python of this machine with the same version, if the one that made it
    is not here. `mirror_of` is the venv on the volume of which this is the local copy
    (venv_mirror/layout.py)."""

    path: str
    version: str | None
    python_text: str | None
    python_exists: bool
    made_at: str | None
    full: bool = False
    for_comfyui: bool = False
    made: float = 0.0
    interpreter: str | None = None
    mirror_of: str | None = None

    @property
    def is_backup(self) -> bool:
        """Was it put aside, by a template or by a person who made a new one?"""
        return self.path.endswith((".bak", ".old"))


def look_at_venv(path: str) -> Venv | None:
    """The virtual environment at `path`; None if it is not one (no pyvenv.cfg: PEP 405)."""
    try:
        with open_regular(os.path.join(path, "pyvenv.cfg")) as file:
            config = venv_settings(file.read(_MOST_TEXT).decode("utf-8", "replace"))
            made = os.fstat(file.fileno()).st_mtime
    except OSError:
        return None
    python = os.path.join(path, "bin", "python")
    library, names = _library(path, _short(config.get("version") or config.get("version_info")))
    return Venv(
        path=path,
        version=library,
        python_text=link_text(python),
        python_exists=os.path.exists(python),
        made_at=_made_at(config.get("command", ""), path),
        full="torch" in names,
        # torchsde: required since 2023, when no package had ComfyUI's name yet.
        for_comfyui="torchsde" in names or any(n.startswith(("comfyui_", "comfy_")) for n in names),
        made=made,
        mirror_of=config.get(MIRROR_OF),
    )


def _library(path: str, stated: str | None) -> tuple[str | None, frozenset[str]]:
    """The version whose site-packages are filled, and their contents: pyvenv.cfg may name a later
    version, after an upgrade that left the packages behind."""
    libraries = list_folder(os.path.join(path, "lib")).folders
    found = sorted(n.removeprefix("python") for n in libraries if n.startswith("python3."))
    version = stated if stated in found or len(found) != 1 else found[0]
    packages = os.path.join(path, "lib", f"python{version}", "site-packages")
    return version, list_folder(packages).names


def venv_settings(text: str) -> dict[str, str]:
    """The settings in a pyvenv.cfg."""
    return {name: value.strip() for name, value in _SETTING.findall(text)}


def _read(path: str | Path) -> str:
    """The beginning of a plain file. Raises OSError."""
    with open_regular(path) as file:
        return file.read(_MOST_TEXT).decode("utf-8", "replace")


def _short(version: str | None) -> str | None:
    match = re.match(r"(\d+\.\d+)", version or "")
    return match[1] if match else None


def _made_at(command: str, path: str) -> str | None:
    """From `command = … -m venv /workspace/venv` (Python 3.11 on), else from bin/activate."""
    word = command.rpartition(" ")[2]
    if os.path.isabs(word):
        return os.path.normpath(word)
    try:
        text = _read(os.path.join(path, "bin", "activate"))
    except OSError:
        return None
    match = re.search(r"^[ \t]*VIRTUAL_ENV=['\"]?([^'\"\n]+)", text, re.MULTILINE)
    return match[1] if match and os.path.isabs(match[1]) else None


class PythonTrouble(str, Enum):
    """Why an interpreter cannot be used."""

    MISSING = "missing"
    LINK_BROKEN = "link_broken"
    NOT_EXECUTABLE = "not_executable"
    NO_LOADER = "no_loader"
    OTHER_MACHINE = "other_machine"
    FAILED = "failed"
    SILENT = "silent"


@dataclass(frozen=True)
class Failure:
    """Why an interpreter did not answer, with its own or the system's message."""

    trouble: PythonTrouble
    reason: str


def ask_python(
    python: Path,
    env: Mapping[str, str],
    question: Mapping[str, Any],
    timeout: float = ASK_SECONDS,
) -> dict[str, Any] | Failure:
    """The answer of `python` (requirements_child.py), or why not. `timeout` in seconds."""
    if not os.path.exists(python):
        if os.path.islink(python):
            return Failure(PythonTrouble.LINK_BROKEN, f"it leads to {os.path.realpath(python)}")
        return Failure(PythonTrouble.MISSING, "there is no such file")
    try:
        child = subprocess.run(
            [str(python), "-I", "-B", str(_CHILD)],
            env=dict(env),
            input=json.dumps(question).encode("utf-8", "backslashreplace"),
            capture_output=True,
            timeout=timeout,
            check=False,
        )
    except OSError as problem:
        return _not_started(problem)
    except subprocess.TimeoutExpired:
        return Failure(PythonTrouble.SILENT, f"no answer in {timeout:g} s")
    if child.returncode != 0:
        return Failure(PythonTrouble.FAILED, _last_words(child.stderr, child.returncode))
    return _understood(child.stdout)


def _not_started(problem: OSError) -> Failure:
    reason = problem.strerror or str(problem)
    if problem.errno == errno.ENOENT:
        # The file exists, so its loader (glibc's on Alpine) or its shebang's interpreter is
        # missing: execve(2).
        return Failure(PythonTrouble.NO_LOADER, reason)
    if problem.errno == errno.ENOEXEC:
        return Failure(PythonTrouble.OTHER_MACHINE, reason)
    if problem.errno in (errno.EACCES, errno.EPERM):
        return Failure(PythonTrouble.NOT_EXECUTABLE, reason)
    return Failure(PythonTrouble.FAILED, reason)


def _last_words(stderr: bytes, code: int) -> str:
    lines = [line.strip() for line in stderr.decode("utf-8", "replace").splitlines()]
    # After a failed start Python adds lines about threads and an empty stack.
    telling = [line for line in lines if "rror" in line or "not found" in line]
    words = (telling or [line for line in lines if line] or [f"exit code {code}"])[-1]
    return words[:_MOST_REASON]


def _understood(stdout: bytes) -> dict[str, Any] | Failure:
    lines = stdout.decode("utf-8", "surrogateescape").splitlines()
    try:
        said = json.loads(lines[-1])
    except (IndexError, ValueError):
        return Failure(PythonTrouble.FAILED, "its answer could not be parsed")
    if not isinstance(said, dict) or not isinstance(said.get("path"), list):
        return Failure(PythonTrouble.FAILED, "its answer could not be parsed")
    return said


def ask_help(python: Path, comfyui: Path, env: dict[str, str]) -> str | Finding:
    """The output of `main.py --help`, which does not import torch (0.2 s from local disk)."""
    command = [str(python), "main.py", "--help"]
    try:
        answer = subprocess.run(
            command,
            cwd=comfyui,
            env=env,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PROBE_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as problem:
        return _help_failed(comfyui, str(problem))
    if answer.returncode != 0:
        return _help_failed(
            comfyui, (answer.stderr.strip().splitlines() or ["no reason given"])[-1]
        )
    return answer.stdout


def _help_failed(comfyui: Path, why: str) -> Finding:
    return error(
        "comfyui.help_failed",
        f"`main.py --help` in {comfyui} did not work: {why}",
        "Check that ComfyUI on the volume is complete: on a Pod, cd into its folder and run "
        "`git status`, then `git checkout .` to restore missing files.",
    )


# The oldest Linux driver for programs built with a CUDA of that version. From 11 on, any minor
# version runs on the major's first driver ("minor version compatibility"). Source: NVIDIA, CUDA
# Compatibility, "Minor Version Compatibility", and the CUDA Toolkit release notes, table "CUDA
# Toolkit and Minimum Required Driver Version" (docs.nvidia.com, read in 2026).
OLDEST_DRIVER: dict[tuple[int, int], tuple[int, ...]] = {
    (10, 0): (410, 48),
    (10, 1): (418, 39),
    (10, 2): (440, 33),
    (11, 0): (450, 80, 2),
    (12, 0): (525, 60, 13),
    (13, 0): (580, 65, 6),
}


@dataclass(frozen=True)
class TorchBuild:
    """An installed torch. `cuda` is the CUDA it was built for (`12.8`), None for a CPU or ROCm
    build; `hip` the ROCm version.
    """

    version: str | None
    cuda: str | None
    hip: str | None = None


def read_torch_build(python: Path) -> TorchBuild | None:
    """The torch of an interpreter, from torch/version.py or the package's metadata; None if its own
    folders have none. Only reads files.
    """
    for folder in dict.fromkeys(_package_folders(python)):
        build = _from_version_file(folder) or _from_metadata(folder)
        if build:
            return build
    return None


def version_numbers(text: str) -> tuple[int, ...]:
    """`570.124.06` -> (570, 124, 6); empty for a text without numbers."""
    return tuple(int(n) for n in re.findall(r"\d+", text))


def oldest_driver(cuda: tuple[int, ...]) -> tuple[int, ...] | None:
    """The oldest driver for a CUDA version; None if it is older than the table."""
    known = [key for key in OLDEST_DRIVER if key <= cuda[:2]]
    return OLDEST_DRIVER[max(known)] if known else None


def runs_with(build: TorchBuild, driver: str | None) -> bool:
    """Is the driver new enough for the CUDA of that torch? True if it is unknown."""
    needed = oldest_driver(version_numbers(build.cuda)) if build.cuda else None
    have = version_numbers(driver or "")
    return not needed or not have or have >= needed


def _package_folders(python: Path) -> Iterator[Path]:
    """An interpreter's site-packages and dist-packages, a venv's own first: there `bin/python` is a
    link to another interpreter, and its location makes it the venv's."""
    for binary in (python, python.resolve()):
        prefix = binary.parent.parent
        for library in (prefix / "lib", prefix / "local/lib", prefix / "lib64"):
            for name in ("site-packages", "dist-packages"):
                yield from sorted(library.glob(f"python3*/{name}"))
        if not _sees_system(prefix):
            return
    yield Path("/usr/lib/python3/dist-packages")


def _sees_system(prefix: Path) -> bool:
    """Whether packages outside `prefix` count: for a venv only if it was set up so."""
    try:
        settings = venv_settings(_read(prefix / "pyvenv.cfg").lower())
    except OSError:
        return True
    return settings.get("include-system-site-packages") == "true"


def _from_version_file(folder: Path) -> TorchBuild | None:
    """torch/version.py has assignments such as `cuda: Optional[str] = '12.8'`."""
    try:
        tree = ast.parse(_read(folder / "torch/version.py"))
    except (OSError, ValueError, SyntaxError):
        return None
    values: dict[str, str] = {}
    for node in tree.body:
        targets = [*getattr(node, "targets", ()), getattr(node, "target", None)]
        value = getattr(node, "value", None)
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            values.update((t.id, value.value) for t in targets if isinstance(t, ast.Name))
    if "__version__" not in values:
        return None
    return TorchBuild(values["__version__"], values.get("cuda"), hip=values.get("hip"))


def _from_metadata(folder: Path) -> TorchBuild | None:
    """The version in `torch-2.9.1+cu128.dist-info`; `+cu128` says CUDA 12.8."""
    for info in sorted(folder.glob("torch-*.dist-info")):
        version = info.name[len("torch-") : -len(".dist-info")]
        local = version.partition("+")[2]
        digits = local[2:] if local.startswith("cu") and local[2:].isdigit() else ""
        cuda = f"{digits[:-1]}.{digits[-1]}" if len(digits) >= 3 else None
        hip = local[4:] if local.startswith("rocm") else None
        return TorchBuild(version, cuda, hip=hip)
    return None
