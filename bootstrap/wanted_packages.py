"""Pure: what node packs lack in ComfyUI's Python, and the name under which it is kept.

Everything that could make the answer another one goes into the name: the interpreter, the C
library, each installed package's version, each requirement. So an image that changed asks anew,
and what was made for one image is used by no other.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass

from bootstrap.checks.verdicts import Judged, Verdict, judge
from bootstrap.facts.node_packs import Pack, State
from bootstrap.facts.packages import PackagesFacts
from bootstrap.versions import parse_version

_ARCHIVE = re.compile(r"[A-Za-z0-9._+-]+-torch[A-Za-z0-9._+-]+-[0-9a-f]{16}\.zip")
_UNSAFE = re.compile(r"[^A-Za-z0-9._+-]")


@dataclass(frozen=True)
class Wanted:
    """`missing` are requirements as pip reads them, each once, in order. `wrong` are those that
    are installed in a version that will not do: nothing is ever installed over them."""

    missing: tuple[str, ...]
    wrong: tuple[str, ...]


def wanted_by(packs: Iterable[Pack], packages: PackagesFacts) -> Wanted:
    """What the active packs require that is not there."""
    judged = [
        judge(requirement, packages)
        for pack in packs
        if pack.state is State.GOOD and not pack.disabled
        for requirement in pack.wishes.requirements
    ]
    return Wanted(_of(judged, Verdict.MISSING), _of(judged, Verdict.WRONG))


def name_for(wanted: Wanted, packages: PackagesFacts, libc: str) -> str:
    """The name, without ending, of the archive that has what is missing; fit for a file."""
    torch = next(iter(packages.versions_of("torch")), None) or "none"
    machine = packages.markers.get("platform_machine", "")
    told = json.dumps([wanted.missing, constraints(packages), packages.tag, machine, libc])
    digest = hashlib.sha256(told.encode("utf-8", "backslashreplace")).hexdigest()[:16]
    return _UNSAFE.sub("_", f"{packages.tag}-{machine}-torch{torch}-{digest}")[:200]


def is_archive_name(name: str) -> bool:
    """Was a file of this name made by us, for whatever image and requirements?"""
    return _ARCHIVE.fullmatch(name) is not None


def constraints(packages: PackagesFacts) -> list[str]:
    """Lines for pip's `--constraint`: all that is installed, as it is."""
    installed = {p.name: p.version for p in reversed(packages.packages)}
    return sorted(
        f"{name}=={version}"
        for name, version in installed.items()
        if version is not None and parse_version(version) is not None
    )


def _of(judged: Iterable[Judged], verdict: Verdict) -> tuple[str, ...]:
    texts = (str(j) for j in judged if j.verdict is verdict)
    return tuple(sorted(dict.fromkeys(texts)))
