"""Small volumes to break: a healthy one, its findings, and a finding's command run verbatim."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bootstrap.config import Settings
from bootstrap.core.findings import Finding, Severity
from bootstrap.doctor.checks.volume import check_volume
from bootstrap.doctor.checks.volume_layout import check_case
from bootstrap.doctor.facts import volume_probe
from bootstrap.doctor.facts.volume_facts import VolumeFacts
from bootstrap.doctor.facts.volume_probe import USUAL_CATEGORIES
from bootstrap.volume import locate
from tests.support.model_folders import safetensors, write

MOUNTED = "36 25 0:42 / {root} rw,relatime - fuse mfs#master:9421 rw,user_id=0"
OWN_DISK = "27 1 254:0 / / rw,relatime - overlay overlay rw"


def healthy(root: Path) -> Path:
    """A volume with a ComfyUI that has a models folder with the usual categories."""
    comfyui = root / "ComfyUI"
    for name in ("comfy", "custom_nodes", "input", "output"):
        (comfyui / name).mkdir(parents=True)
    for name in ("main.py", "nodes.py", "folder_paths.py"):
        (comfyui / name).write_text("")
    for name in USUAL_CATEGORIES:
        (comfyui / "models" / name).mkdir(parents=True)
    model(comfyui / "models/checkpoints/real.safetensors")
    return root


def model(path: Path) -> Path:
    """A whole model at `path`."""
    if path.suffix == ".safetensors":
        return safetensors(path)
    return write(path, b"GGUF\3\0\0" if path.suffix == ".gguf" else b"\x80\2model")


def settings(root: Path, image: Path | None = None) -> Settings:
    """VOLUME_PATH at `root`, COMFYUI_DIR at `image`; a worker does not make links that name another
    mount point work."""
    return Settings(volume_path=root, comfyui_dir=image, link_other_mount=False)


def facts_of(
    root: Path, image: Path | None = None, mounts: str = MOUNTED, timeout: float = 10.0
) -> VolumeFacts:
    """Facts of the volume at `root`, which a fake mountinfo calls a network volume."""
    mountinfo = root.parent / "mountinfo"
    mountinfo.write_text(f"{OWN_DISK}\n{mounts.format(root=root)}\n")
    given = settings(root, image)
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(volume_probe, "MOUNTINFO", mountinfo)
        patches.setattr(volume_probe, "TIMEOUT", timeout)
        return volume_probe.gather_volume(locate(given), given)


def look(root: Path, image: Path | None = None, mounts: str = MOUNTED) -> list[Finding]:
    """The findings for the volume at `root`."""
    facts = facts_of(root, image, mounts)
    return [*check_volume(facts, settings(root, image)), *check_case(facts)]


def grave(findings: list[Finding]) -> list[str]:
    """Codes of warnings and errors."""
    return [f.code for f in findings if f.severity.rank >= Severity.WARNING.rank]


def only(findings: list[Finding], code: str) -> Finding:
    """The finding `code`, which must be there once."""
    (finding,) = [f for f in findings if f.code == code]
    return finding


def command_of(finding: Finding) -> str:
    """The command in a finding's fix, which must be the one in its details."""
    match = re.search(r"`([^`]+)`", finding.fix)
    assert match, finding.fix
    assert finding.details["command"] == match[1]
    return match[1]


def follow(finding: Finding, **env: str) -> str:
    """Run the command of a finding's fix in bash; what it printed. This Python is found there by
    its full name (`python3.11`), even if it runs in a virtual environment."""
    here = os.path.dirname(os.path.realpath(sys.executable))
    done = subprocess.run(
        ["bash", "-c", command_of(finding)],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": f"{here}:{os.environ['PATH']}", **env},
        check=False,
    )
    assert done.returncode == 0, (command_of(finding), done.stderr)
    return done.stdout


@contextmanager
def mounted(place: Path, *options: str, kind: str = "tmpfs") -> Iterator[Path]:
    """A real mount at `place`; skips the test where mounting is not permitted."""
    place.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", kind, *options, "none", str(place)]
    if not shutil.which("mount"):
        pytest.skip("there is no mount command")
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not permitted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], capture_output=True, check=False)
