"""What this machine's apt and pip are set to, in a form that a build can be lent and forgets.

The image must not learn where the packages came from on the machine that built it, so nothing of
this is an ENV or a COPY: all of it is bound into the build.
"""

from __future__ import annotations

import ast
import os
import platform
import ssl
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

# Where the build sees them: names that tell nothing of this machine.
_LENT = "/run/packages"
# Of pip's settings, those that say where packages come from.
_KEPT = frozenset(
    "index-url extra-index-url find-links no-index trusted-host proxy retries".split()
)
# Paths that tell nothing: every Debian has them.
_EVERYWHERE = frozenset(("", "/", "/root", "/etc/apt", "/etc/ssl/certs/ca-certificates.crt"))
_LONG_ENOUGH = 5
_LISTS = frozenset("extra-index-url find-links trusted-host".split())


@dataclass
class Lent:
    """Host paths and where a build sees them, in the order they were lent."""

    paths: dict[Path, str] = field(default_factory=dict)

    def lend(self, path: Path) -> str:
        """`path` as the build sees it."""
        return self.paths.setdefault(path, f"{_LENT}/{len(self.paths)}")

    def volumes(self) -> list[str]:
        """Arguments for buildah: all of them, to be read only."""
        return [f"--volume={path}:{inside}:ro" for path, inside in self.paths.items()]


@dataclass(frozen=True)
class DebianSource:
    """A release of Debian or Ubuntu and a server that has it."""

    suite: str
    mirror: str


def lend_packages(folder: Path) -> Lent:
    """apt's and pip's settings, wheel folders and certificates; `folder` holds what is written."""
    lent = Lent({Path("/etc/apt"): "/etc/apt"})
    settings = pip_settings()
    authorities = settings.get("cert") or ssl.get_default_verify_paths().cafile
    lines = [f"{key} = {_translated(key, value, lent)}" for key, value in _places(settings)]
    if authorities:
        lines.append(f"cert = {lent.lend(Path(authorities).resolve())}")
    conf = folder / "pip.conf"
    conf.write_text("\n".join(["[global]", "timeout = 180", *lines, ""]), encoding="utf-8")
    lent.paths[conf] = "/etc/pip.conf"
    return lent


def pip_settings() -> dict[str, str]:
    """What `pip config list` says, the environment's over the files'."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    pairs = [line.partition("=") for line in text.splitlines() if "=" in line]
    pairs.sort(key=lambda pair: pair[0].startswith(":env:"))
    return {name.rpartition(".")[2]: str(ast.literal_eval(value)) for name, _, value in pairs}


def debian_source() -> DebianSource:
    """The release this machine runs and the first server its apt has for it."""
    suite = platform.freedesktop_os_release()["VERSION_CODENAME"]
    command = [
        *("apt-get", "indextargets", "--format", "$(REPO_URI)"),
        *("Created-By: Packages", f"Codename: {suite}", "Component: main"),
    ]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert found, f"apt has no package list of {suite}: run apt-get update"
    return DebianSource(suite, found[0])


def telling(lent: Lent, env: Mapping[str, str] = os.environ) -> list[str]:
    """Texts that would show in a layer which machine it was built on."""
    words = [word for _, value in _places(pip_settings()) for word in value.split()]
    hosts = {urlsplit(word).hostname or "" for word in words} | {platform.node()}
    repository = str(Path(__file__).resolve().parents[2])
    paths = {*map(str, lent.paths), env.get("HOME", ""), repository} - _EVERYWHERE
    # A host called `vm` would be found in any archive.
    return sorted(paths | {host for host in hosts if len(host) > _LONG_ENOUGH})


def _places(settings: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(key, value) for key, value in settings.items() if key in _KEPT]


def _translated(key: str, value: str, lent: Lent) -> str:
    words = value.split() if key in _LISTS else [value]
    return "\n    ".join(_inside(word, lent) for word in words)


def _inside(word: str, lent: Lent) -> str:
    """An address stays, a folder becomes what the build sees of it."""
    if word.startswith("file://"):
        # An index of files has them beside itself: its parent is lent.
        index = Path(unquote(urlsplit(word).path))
        return f"file://{lent.lend(index.parent)}/{index.name}"
    return lent.lend(Path(word)) if os.path.isabs(word) else word
