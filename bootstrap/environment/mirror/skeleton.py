"""A virtual environment on local disk around a mirror of site-packages.

    bin/python*         links to the interpreter that the venv was made from
    bin/pip*            local programs; all others are links to the volume's
    pyvenv.cfg          as the volume's, its `home` that of the interpreter
    lib/python3.x/site-packages     the mirror
    everything else     links to the volume

What a node installs with `python -m pip` goes into the mirror: it works while this worker lives,
and the volume, which other workers read, stays as it is.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from bootstrap.environment.mirror import opened
from bootstrap.environment.python import venv_settings

_LIBRARY = re.compile(r"python(3\.\d+)")
_MOST_TEXT = 1 << 16
_HOOK = "_worker_files_opened"
_PIP = """\
#!/bin/sh
exec '{python}' -m pip "$@"
"""


class NotAVenv(Exception):
    """No mirror can be made of it; the message completes "… was not copied: …"."""


@dataclass(frozen=True)
class Venv:
    """A venv on the volume. `library` is `python3.11`, `tag` what its bytecode is called by,
    `interpreter` the program on this machine that runs it: the one behind its `bin/python`, or, as
    a `stand_in`, another of the same version."""

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


def look_at_venv(path: Path, interpreter: Path | None) -> Venv:
    """What a mirror needs to know; `interpreter` is used in place of the venv's own, whose link may
    lead to another version on this machine. Raises NotAVenv, OSError."""
    path = Path(os.path.realpath(path))  # as the maps of processes have it
    with open(path / "pyvenv.cfg", encoding="utf-8", errors="replace") as file:
        settings = file.read(_MOST_TEXT)
    own = Path(os.path.realpath(path / "bin" / "python"))
    if interpreter is None and not own.exists():
        raise NotAVenv(f"its Python is not on this machine ({own})")
    program = Path(os.path.abspath(interpreter or own))
    library = _library(path, venv_settings(settings))
    names, programs = tuple(os.listdir(path)), tuple(os.listdir(path / "bin"))
    return Venv(path, settings, library, program, interpreter is not None, names, programs)


def make_skeleton(venv: Venv, place: Path) -> Path:
    """The venv at the new folder `place`, its site-packages still empty; its Python. Raises
    OSError."""
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
    """Folders that `.pth` files name relative to site-packages, outside of it, are where they
    were. Raises OSError."""
    for path in site.glob("*.pth"):
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
        settled = "".join(_settled(line, source) for line in text.splitlines(keepends=True))
        if settled != text:
            path.unlink()
            path.write_text(settled, encoding="utf-8", errors="surrogateescape")


def note_opened(site: Path, source: Path, log: Path) -> None:
    """From now on each process of this Python adds to `log` what it opens below `site` and
    `source`. Raises OSError."""
    program = Path(opened.__file__).read_text(encoding="utf-8")
    (site / f"{_HOOK}.py").write_text(program, encoding="utf-8")
    line = f"import {_HOOK}; {_HOOK}.start({str(log)!r}, {(str(site), str(source))!r})\n"
    (site / f"{_HOOK}.pth").write_text(line, encoding="utf-8")


def _library(path: Path, settings: dict[str, str]) -> str:
    """The folder of the Python it was made by, where an upgrade has left that of another."""
    found = [name for name in os.listdir(path / "lib") if _LIBRARY.fullmatch(name)]
    version = settings.get("version") or settings.get("version_info") or ""
    wanted = "python" + ".".join(version.split(".")[:2])
    if wanted in found:
        return wanted
    if len(found) != 1:
        raise NotAVenv(
            f"which of lib/{', lib/'.join(sorted(found)) or 'python3.x'} it uses is not clear"
        )
    return found[0]


def _settings(venv: Venv) -> str:
    """The home of an interpreter that is somewhere else on this machine is set right."""
    home = venv_settings(venv.settings).get("home", "")
    if os.path.isdir(home) and not venv.stand_in:
        return venv.settings
    rest = [line for line in venv.settings.splitlines() if not re.match(r"\s*home\s*=", line)]
    return "\n".join([f"home = {venv.interpreter.parent}", *rest, ""])


def _add_program(venv: Venv, programs: Path, name: str) -> None:
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
