"""Pure: ComfyUI's command line.

Flags come and go between versions and an unknown one ends ComfyUI with argparse's code 2, so only
those that its own `--help` names are used.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bootstrap.core.findings import Finding, warning
from bootstrap.volume.args_file import group_flags

CODES = {"comfyui.flag_unknown": "A flag that this version of ComfyUI does not know"}

# Python 3.14 colours its help when FORCE_COLOR is set.
_COLOUR = re.compile(r"\x1b\[[\d;]*m")

# On by default in 0.38: each worker would scan all models on the volume, at its start and at each
# question for nodes, and keep them in a database.
_NO_ASSETS = "--disable-assets"


@dataclass(frozen=True)
class Folders:
    """Where ComfyUI writes, and the file that tells it of further models, if there is one."""

    input: Path
    output: Path
    user: Path
    temp_parent: Path
    front_end: Path
    database: str
    model_paths: Path | None = None


def flags_in(help_text: str) -> frozenset[str]:
    """The long flags that a `--help` text lists."""
    plain = _COLOUR.sub("", help_text)
    return frozenset(re.findall(r"(?<![\w-])--[a-zA-Z][\w-]*", plain))


def arguments(
    known: frozenset[str], folders: Folders, port: int, extra: Iterable[str]
) -> tuple[list[str], list[Finding]]:
    """What follows `main.py`: our flags, as far as known, then the user's."""
    ours: list[list[str]] = [
        ["--listen", "127.0.0.1"],
        ["--port", str(port)],
        ["--disable-auto-launch"],
        ["--input-directory", str(folders.input)],
        ["--output-directory", str(folders.output)],
        ["--temp-directory", str(folders.temp_parent)],
        ["--user-directory", str(folders.user)],
        ["--database-url", folders.database],
        ["--front-end-root", str(folders.front_end)],
    ]
    if folders.model_paths is not None:
        ours.append(["--extra-model-paths-config", str(folders.model_paths)])
    kept = [part for group in ours if group[0] in known for part in group]
    users, findings = _known_groups(extra, known)
    if _NO_ASSETS in known and "--enable-assets" not in users:
        kept.append(_NO_ASSETS)
    return kept + users, findings


def _known_groups(extra: Iterable[str], known: frozenset[str]) -> tuple[list[str], list[Finding]]:
    """The user's flags with their values, without those this version does not know."""
    groups = group_flags(tuple(extra))
    kept: list[str] = []
    findings: list[Finding] = []
    for group in groups:
        flag = group[0].split("=", 1)[0]
        if flag in known:
            kept.extend(group)
        else:
            findings.append(_unknown_flag(flag))
    return kept, findings


def _unknown_flag(flag: str) -> Finding:
    return warning(
        "comfyui.flag_unknown",
        f"This ComfyUI does not know the flag {flag}; it was left out.",
        f"Remove {flag} from COMFYUI_ARGS (or comfyui_args.txt on the volume), or update the "
        "ComfyUI on the volume.",
        flag=flag,
    )
