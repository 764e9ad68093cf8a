"""Which Python runs ComfyUI: by what is on the volume, what starts here, torch and the driver.

A virtual environment is any folder with a pyvenv.cfg, whatever its name. One made by a Python that
is not on this machine (a template's image had it elsewhere, or uv fetched it) runs with a local
Python of the same version, through a venv on local disk whose site-packages link to it. Nothing on
the volume is changed.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import which

from bootstrap.config import Settings
from bootstrap.core.files import list_folder
from bootstrap.core.findings import Finding, error, info, warning
from bootstrap.core.text import IN_ENDPOINT, printable
from bootstrap.environment.python_probe import (
    PROBE_SECONDS,
    Venv,
    look_at_venv,
    read_torch_build,
    runs_with,
)
from bootstrap.volume import Layout

CODES = {
    "comfyui.python_missing": "No Python that can run ComfyUI was found",
    "python.venv_unused": "A virtual environment on the volume is not used",
    "python.stand_in": "A virtual environment runs with this machine's Python of the same version",
}
IMAGE_PYTHON = Path("/opt/comfyui/bin/python")
NVIDIA = Path("/proc/driver/nvidia/version")
# Besides ComfyUI's folder, its parent and the root: folders in which templates keep several venvs
# (ai-dock, madiator, AUTOMATIC1111's neighbours).
_NESTED = ("environments/python", "runpod-venvs", "venvs")
_MOST_VENVS = 20
_NO_PYTHON, _CLOSED = "this machine has no Python", "may not be entered"
_VERSION = "import sys; print('%d.%d' % sys.version_info[:2])"
_PROBE = f"{_VERSION}; import importlib.util as u; sys.exit(0 if u.find_spec('torch') else 3)"
_DRIVER = re.compile(r"\s(\d{3,}(?:\.\d+)+)\s")


@dataclass(frozen=True)
class Choice:
    """`python` runs ComfyUI. `venv` is its virtual environment, if any; `interpreter` is a Python
    of this machine that replaces the one that made it."""

    python: Path
    venv: Venv | None = None
    interpreter: Path | None = None
    findings: tuple[Finding, ...] = ()

    def venv_on(self, volume: Path) -> Path | None:
        """The folder of its virtual environment, if that is on the volume."""
        if self.venv is None:
            return None
        place = Path(os.path.realpath(self.venv.path))
        return place if place.is_relative_to(os.path.realpath(volume)) else None


@dataclass(frozen=True)
class _Refused:
    """Why a candidate is rejected; `choice` if it would run, but not with this driver."""

    place: str
    why: str
    venv: Venv | None = None
    choice: Choice | None = None


def choose_python(settings: Settings, layout: Layout) -> Choice | Finding:
    """The first candidate that starts and has a torch that this machine's driver can run; or a
    finding that says what each lacks. COMFYUI_PYTHON, if set, is the only candidate.
    """
    driver = _driver_version()
    refused: list[_Refused] = []
    for candidate in _candidates(settings, layout):
        tried = _try(candidate, driver)
        if isinstance(tried, Choice):
            return _with_findings(tried, refused)
        refused.append(tried)
    # Drivers differ between machines; the check of torch says what to do.
    late = next((r.choice for r in refused if r.choice is not None), None)
    return late or _none(refused)


def venvs_of(layout: Layout) -> list[Venv]:
    """The virtual environments in known places on the volume, likeliest first."""
    if not layout.root_exists:
        return []
    homes = [layout.home, layout.home.parent, layout.root]
    homes = [home for home in dict.fromkeys(homes) if home.is_relative_to(layout.root)]
    found: list[Venv] = []
    for home in [*homes, *(layout.root / name for name in _NESTED)]:
        folder = list_folder(str(home))
        looked = (look_at_venv(path) for path in folder.paths(folder.folders | folder.links))
        found += sorted((venv for venv in looked if venv is not None), key=_rank)
    once = {os.path.realpath(venv.path): venv for venv in reversed(found)}
    return [_with_interpreter(venv) for venv in reversed(once.values())][:_MOST_VENVS]


def _with_interpreter(venv: Venv) -> Venv:
    if venv.python_exists or venv.version is None:
        return venv
    other = interpreter_of(venv.version)
    return replace(venv, interpreter=None if other is None else str(other))


def _rank(venv: Venv) -> tuple[bool, bool, float]:
    """Sort key: ComfyUI's own first, backups last, newest first."""
    return (not venv.for_comfyui, venv.is_backup, -venv.made)


def _candidates(settings: Settings, layout: Layout) -> Iterator[Venv | Path]:
    if settings.comfyui_python is not None:
        yield settings.comfyui_python
        return
    if layout.comfyui_on_volume or layout.nodes is not None:
        yield from (venv for venv in venvs_of(layout) if _is_for(venv, layout))
    elif layout.comfyui is not None:
        for name in ("venv", ".venv"):
            own = look_at_venv(str(layout.comfyui / name))
            if own is not None:
                yield own
    yield IMAGE_PYTHON
    on_path = which("python3")
    if on_path:
        yield Path(on_path)


def _is_for(venv: Venv, layout: Layout) -> bool:
    """Outside ComfyUI's folder a venv may be another program's, such as a trainer's or a
    webui's."""
    return venv.for_comfyui or Path(venv.path).is_relative_to(layout.home)


def _try(candidate: Venv | Path, driver: str | None) -> Choice | _Refused:
    if isinstance(candidate, Venv):
        place, choice = candidate.path, _start_venv(candidate)
    else:
        place, problem = str(candidate), _problem_with(candidate)[1]
        own = look_at_venv(str(candidate.parent.parent))
        choice = Choice(candidate, own) if problem is None else _Refused(place, problem)
    if isinstance(choice, _Refused):
        return choice
    build = read_torch_build(choice.python)
    if build is None or runs_with(build, driver):
        return choice
    why = f"its torch {build.version} is built for CUDA {build.cuda}, which driver {driver} lacks"
    return _Refused(place, why, choice.venv, choice)


def _start_venv(venv: Venv) -> Choice | _Refused:
    """With its own Python, else with one of the same version."""
    own = Path(venv.path, "bin", "python")
    version, problem = _problem_with(own, venv.full)
    if version == venv.version or (version is not None and venv.version is None):
        return Choice(own, venv) if problem is None else _Refused(venv.path, problem, venv)
    other = interpreter_of(venv.version) if venv.version else None
    if other is None:
        wrong = f"its Python {own} is {version} here" if version else f"its Python is {problem}"
        why = f"{wrong}, and {_NO_PYTHON} {venv.version or '(unknown version)'}"
        return _Refused(venv.path, why, venv)
    try:
        python = _stand_in(venv, other)
    except OSError as trouble:
        return _Refused(venv.path, f"{trouble.strerror or trouble}", venv)
    problem = _problem_with(python, venv.full)[1]
    if problem is not None:
        return _Refused(venv.path, f"with {other} it {problem}", venv)
    return Choice(python, venv, other)


def interpreter_of(version: str) -> Path | None:
    """A Python of that version ("3.12") on this machine, outside any venv's folder."""
    bases = (Path("/usr/bin"), Path("/usr/local/bin"), Path(sys.base_prefix) / "bin")
    found = which(f"python{version}")
    for path in (*(base / f"python{version}" for base in bases), *([Path(found)] if found else [])):
        if path.is_file() and _problem_with(path)[0] == version:
            return Path(os.path.realpath(path))
    return None


def _stand_in(venv: Venv, interpreter: Path) -> Path:
    """The Python of a venv on local disk with the packages of `venv`, made once per machine. Raises
    OSError."""
    identity = f"{venv.path}\0{interpreter}\0{os.path.realpath(venv.path)}"
    name = f"comfyui-python-{os.geteuid()}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    place = Path(tempfile.gettempdir(), name)
    new = Path(tempfile.mkdtemp(prefix=f"{name}-"))
    try:
        _furnish(new, venv, interpreter)
        if _is_as(place, new):
            return place / "bin" / "python"
        os.rename(new, place)
        return place / "bin" / "python"
    except OSError:
        if _is_as(place, new):  # made by another thread by now
            return place / "bin" / "python"
        raise
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _furnish(place: Path, venv: Venv, interpreter: Path) -> None:
    library = Path("lib", f"python{venv.version}")
    (place / "bin").mkdir()
    (place / library).mkdir(parents=True)
    (place / library / "site-packages").symlink_to(Path(venv.path) / library / "site-packages")
    for name in ("python", "python3", f"python{venv.version}"):
        (place / "bin" / name).symlink_to(interpreter)
    text = Path(venv.path, "pyvenv.cfg").read_text("utf-8", "replace")
    kept = [line for line in text.splitlines() if not re.match(r"\s*(home|executable)\s*=", line)]
    lines = [f"home = {interpreter.parent}", *kept, f"stands-for = {venv.path}", ""]
    (place / "pyvenv.cfg").write_text("\n".join(lines), "utf-8")


def _is_as(place: Path, new: Path) -> bool:
    """Is `place` ours, and made from the same parts?"""
    try:
        same = (place / "pyvenv.cfg").read_bytes() == (new / "pyvenv.cfg").read_bytes()
        return same and place.stat().st_uid == os.geteuid() and (place / "bin/python").exists()
    except OSError:
        return False


def _problem_with(python: Path, has_torch: bool = False) -> tuple[str | None, str | None]:
    """(its version, if it starts; why it is unsuitable, or None). Torch is searched for, not
    imported; if it is known to be there, site-packages on the volume are not read at all."""
    options = ["-I", "-S", "-c", _VERSION] if has_torch else ["-I", "-c", _PROBE]
    try:
        os.stat(python)
    except PermissionError:
        return None, f"a folder on the way to it {_CLOSED} by user {os.geteuid()}"
    except (OSError, ValueError):
        return None, "a broken link" if os.path.islink(python) else "not there"
    try:
        answer = subprocess.run(
            [str(python), *options],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PROBE_SECONDS,
            check=False,
        )
    except OSError as problem:
        return None, problem.strerror or "cannot be run"
    except subprocess.TimeoutExpired:
        return None, f"no answer in {PROBE_SECONDS} s"
    if answer.returncode not in (0, 3) or not answer.stdout.strip():
        return None, "does not start"
    return answer.stdout.split()[-1], "has no torch" if answer.returncode else None


def _driver_version() -> str | None:
    """`NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.124.06  Wed …`; None without one."""
    try:
        match = _DRIVER.search(NVIDIA.read_text("utf-8", "replace"))
    except OSError:
        return None
    return match[1] if match else None


def _with_findings(choice: Choice, refused: Sequence[_Refused]) -> Choice:
    findings = [_unused(r, choice) for r in refused if r.venv is not None]
    if choice.interpreter is not None and choice.venv is not None:
        findings.append(_stands_in(choice.venv, choice.interpreter))
    return replace(choice, findings=tuple(findings))


def _unused(refused: _Refused, choice: Choice) -> Finding:
    version = refused.venv.version if refused.venv else None
    build = (
        f"Build the image with that version (--build-arg PYTHON_VERSION={version}), or recreate "
        "the environment with a Python that the image has; "
        if version
        else ""
    )
    return warning(
        "python.venv_unused",
        f"The virtual environment {printable(refused.place)} is not used: {refused.why}. ComfyUI "
        f"runs with {choice.python}, without the packages in it.",
        f"{build}COMFYUI_PYTHON {IN_ENDPOINT} names another Python.",
        path=refused.place,
    )


def _stands_in(venv: Venv, interpreter: Path) -> Finding:
    return info(
        "python.stand_in",
        f"The Python that made {printable(venv.path)} is not on this machine; {interpreter}, of "
        f"the same version ({venv.version}), runs in its place, with the venv's packages.",
        "Nothing to do.",
        path=venv.path,
    )


def _none(refused: Sequence[_Refused]) -> Finding:
    tried = [f"{r.place} ({r.why})" for r in refused]
    lacking = [r.venv.version for r in refused if r.venv and r.venv.version and _NO_PYTHON in r.why]
    fix = "Deploy the project's own image, whose Python has torch"
    if lacking:
        fix += f", or one built with --build-arg PYTHON_VERSION={lacking[0]} for the environment"
    fix += f". Or set COMFYUI_PYTHON to a Python here that has torch, {IN_ENDPOINT}."
    if any(_CLOSED in r.why for r in refused):
        fix += " To make folders accessible: `chmod -R a+rX` with that folder's path."
    return error(
        "comfyui.python_missing",
        f"No Python that can run ComfyUI was found: tried {', '.join(tried) or 'nothing'}.",
        fix,
        tried=tried,
    )
