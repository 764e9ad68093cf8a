"""Small real venvs in a folder that acts as the volume, and their mirrors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bootstrap.core.findings import Finding
from bootstrap.environment import PackagesFacts, requirements
from bootstrap.environment.node_packs import Requirements
from bootstrap.environment.python_probe import ASK_SECONDS
from bootstrap.environment.requirements import judge
from bootstrap.environment.venv_mirror import Mirror, MirrorRequest, mirror_venv, record_opened

LIBRARY = f"python{sys.version_info[0]}.{sys.version_info[1]}"
# Long enough ago to be archived (archive_writer.py leaves out what has just changed).
_AGE = 3600.0

FILES = {
    "alpha/__init__.py": "from alpha.deep import value\nVERSION = 1\n",
    "alpha/deep/__init__.py": "value = 'first'\n",
    "alpha/data.txt": "beside alpha",
    "alpha/tests/test_alpha.py": "seldom = True\n",
    "alpha/include/alpha.h": "#define ALPHA\n",
    "space/one/__init__.py": "name = 'one'\n",
    "single.py": "x = 1\n",
    "alpha-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: alpha\nVersion: 1.0\n",
    "alpha-1.0.dist-info/entry_points.txt": "[alpha.plugins]\ngo = alpha:VERSION\n",
    "alpha-1.0.dist-info/RECORD": "alpha/__init__.py,,\nalpha/deep/__init__.py,,\n"
    "alpha/include/alpha.h,,\nalpha-1.0.dist-info/METADATA,,\n"
    "alpha-1.0.dist-info/entry_points.txt,,\nalpha-1.0.dist-info/RECORD,,\n",
}


def gather_packages(
    python: Path, env: Mapping[str, str] | None = None, timeout: float = ASK_SECONDS
) -> PackagesFacts:
    """What `python` has installed, with no requirements."""
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(requirements, "ASK_SECONDS", timeout)
        return judge(python, env or os.environ, Requirements()).packages


@dataclass
class VolumeVenv:
    """`path` on the volume; `scratch` is this machine's disk."""

    path: Path
    scratch: Path

    @property
    def site(self) -> Path:
        """Its site-packages."""
        return self.path / "lib" / LIBRARY / "site-packages"

    @property
    def store(self) -> Path:
        """Where archives are kept."""
        return self.path.parent / ".comfyui-worker" / "python"

    def write(self, name: str, text: str, age: float = _AGE) -> Path:
        """A file in site-packages that was last changed `age` seconds ago."""
        path = self.site / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        then = time.time() - age
        os.utime(path, (then, then))
        return path

    def try_to_mirror(self, **more: Any) -> Mirror | Finding:
        """A mirror at a new place."""
        place = Path(tempfile.mkdtemp(dir=self.scratch)) / "python"
        given = {"timeout": 30.0, "room": 1 << 30, "store": self.store, **more}
        return mirror_venv(MirrorRequest(self.path, place, **given))

    def mirror(self, **more: Any) -> Mirror:
        """As above; there must be one."""
        made = self.try_to_mirror(**more)
        assert isinstance(made, Mirror), made
        made.deferred.join()
        return made

    def recorded(self, program: str = "import alpha, single, space.one") -> Mirror:
        """A mirror whose Python has run `program`, and an archive of what that opened."""
        made = self.mirror()
        ask(made.python, program)
        said = record_opened(made)
        assert said.endswith("archived"), said
        return made


def make_venv(volume: Path, scratch: Path, *flags: str) -> VolumeVenv:
    """A venv made by this Python, with `FILES` in it."""
    scratch.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "venv", "--without-pip", *flags, str(volume / "venv")]
    subprocess.run(command, check=True)
    made = VolumeVenv(volume / "venv", scratch)
    for name, text in FILES.items():
        made.write(name, text)
    return made


def ask(python: Path, program: str, answer: str = "None") -> Any:
    """Run `program` in an interpreter; the value of the expression `answer`, by way of JSON."""
    with asked(python, program, answer) as value:
        return value


@contextmanager
def asked(python: Path, program: str, answer: str) -> Iterator[Any]:
    """The same; the process lives until the end of the block."""
    text = f"{program}\nimport json, sys\nprint(json.dumps({answer}), flush=True)\nsys.stdin.read()"
    with subprocess.Popen(
        [str(python), "-c", text],
        env={"PATH": "/usr/bin:/bin"},
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdin is not None and child.stdout is not None
        value = json.loads(child.stdout.readline())
        yield value
        child.stdin.close()
        assert child.wait() == 0


def contents(folder: Path) -> dict[str, str | bytes]:
    """What lies in a folder: bytes of files and texts of links by path."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or (path.is_file() and path.suffix != ".pyc")
    }
