"""This machine's configuration of apt and pip, in a form that a build can use but does not keep.

The image must not record where the packages came from on the machine that built it, so none of this
is an ENV or a COPY: all of it is bound into the build.
"""

from __future__ import annotations

import ast
import json
import os
import platform
import ssl
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

# Where the build sees them: names that reveal nothing about this machine.
_LENT = "/run/packages"
# pip's settings that say where packages come from.
_KEPT = frozenset(
    "index-url extra-index-url find-links no-index trusted-host proxy retries".split()
)
# Paths that reveal nothing: every Debian has them.
_EVERYWHERE = frozenset(("", "/", "/root", "/etc/apt", "/etc/ssl/certs/ca-certificates.crt"))
_LONG_ENOUGH = 5
# As pip does: the best version from any source.
_UV = ('index-strategy = "unsafe-best-match"',)
_LISTS = frozenset("extra-index-url find-links trusted-host".split())


@dataclass
class Lent:
    """Host paths and where a build sees them, in the order in which they were lent."""

    paths: dict[Path, str] = field(default_factory=dict)

    def lend(self, path: Path) -> str:
        """`path` as the build sees it."""
        return self.paths.setdefault(path, f"{_LENT}/{len(self.paths)}")

    def volumes(self) -> list[str]:
        """Arguments for buildah: all of them, read-only."""
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
    lines = [f"{key} = {_translated(key, value, lent)}" for key, value in _places(settings)]
    if trusted := authorities():
        lines.append(f"cert = {lent.lend(trusted)}")
    lent.paths[_uv_settings(settings, folder, lent)] = "/etc/uv/uv.toml"
    conf = folder / "pip.conf"
    conf.write_text("\n".join(["[global]", "timeout = 180", *lines, ""]), encoding="utf-8")
    lent.paths[conf] = "/etc/pip.conf"
    return lent


def _uv_settings(settings: Mapping[str, str], folder: Path, lent: Lent) -> Path:
    """The same sources for uv, which does not read pip's settings."""
    reported = {key: _translated(key, value, lent).split() for key, value in _places(settings)}
    lines = [
        f"{key} = {json.dumps(value if key in _LISTS else value[0])}"
        for key, value in reported.items()
        if key in ("index-url", "extra-index-url", "find-links")
    ]
    lines += ["no-index = true"] if settings.get("no-index") in ("1", "true") else []
    path = folder / "uv.toml"
    path.write_text("\n".join([*lines, *_UV, ""]), "utf-8")
    return path


def pip_settings() -> dict[str, str]:
    """What `pip config list` says; the environment overrides files."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    pairs = [line.partition("=") for line in text.splitlines() if "=" in line]
    pairs.sort(key=lambda pair: pair[0].startswith(":env:"))
    return {name.rpartition(".")[2]: str(ast.literal_eval(value)) for name, _, value in pairs}


def authorities() -> Path | None:
    """The certificates that this machine trusts, as one file."""
    named = pip_settings().get("cert") or ssl.get_default_verify_paths().cafile
    return Path(named).resolve() if named else None


def debian_source() -> DebianSource:
    """The release this machine runs and the first server its apt has for it."""
    suite = platform.freedesktop_os_release()["VERSION_CODENAME"]
    command = [
        *("apt-get", "indextargets", "--format", "$(REPO_URI)"),
        *("Created-By: Packages", f"Codename: {suite}", "Component: main"),
    ]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert found, f"apt has no package list for {suite}: run apt-get update"
    return DebianSource(suite, found[0])


def identifying(lent: Lent, env: Mapping[str, str] = os.environ) -> list[str]:
    """Texts that would reveal in a layer which machine it was built on."""
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
    """A URL stays, a path becomes the one that the build sees."""
    if word.startswith("file://"):
        # A local index has its files beside it: its parent is lent.
        index = Path(unquote(urlsplit(word).path))
        return f"file://{lent.lend(index.parent)}/{index.name}"
    return lent.lend(Path(word)) if os.path.isabs(word) else word
