"""What is said of the packages that ComfyUI and its nodes ask for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from bootstrap.environment.hard_imports import HardImport
from bootstrap.environment.judgement import Judgement, Verdict
from bootstrap.environment.package_store import Record
from bootstrap.environment.requirement_files import COMFYUI
from bootstrap.environment.resolve import Unit
from bootstrap.findings import Finding, error, info, ok, warning
from bootstrap.wording import counted, named, shown

CODES = {
    "packages.installed": "Packages that ComfyUI or its nodes ask for were added to its path.",
    "packages.conflict": "Packages that ComfyUI or a node asks for do not go with the others.",
    "packages.failed": "Packages that ComfyUI or its nodes ask for could not be installed.",
    "packages.not_kept": "Installed packages could not be kept on the volume.",
    "packages.not_judged": "What ComfyUI and its nodes ask for could not be judged.",
    "packages.no_uv": "uv is not there, so that nothing can be installed.",
    "comfyui.requirement_missing": "A package that ComfyUI cannot start without is missing.",
}
# A finding each for so many owners; the rest share one.
_MOST_OWNERS = 10


def not_ready(
    judgement: Judgement, uv: Path | None, mode: str, units: Sequence[Unit]
) -> Finding | None:
    """Why nothing can be judged or installed, if that is so."""
    if judgement.judged_with is None:
        return info(
            "packages.not_judged",
            f"{shown(str(judgement.python))} has neither packaging nor pip: what ComfyUI and its "
            "nodes ask for was not judged, and nothing is installed.",
            "Install packaging there, if nodes fail to import.",
        )
    if uv is None and mode == "install" and units:
        return warning(
            "packages.no_uv",
            f"uv was not found: {_texts(units)} cannot be installed.",
            "Use the worker's image, or install requirements/worker.txt, which has uv.",
            requirements=[unit.text for unit in units[:50]],
        )
    return None


def installed(
    judgement: Judgement, record: Record, units: Sequence[Unit], kept: Path
) -> list[Finding]:
    """What is there now, for whom, and from where."""
    if not record.installed:
        return []
    owners = dict.fromkeys(owner for unit in units for owner in unit.owners)
    names = [f"{name} {version}" for name, version in record.installed.items()]
    replaced = [f"{n} {old}" for n, old in record.replaced.items()]
    instead = f" They stand in for {named(replaced, 8)}." if replaced else ""
    return [
        ok(
            "packages.installed",
            f"On the path of {shown(str(judgement.python))} for {_owners(owners)}: "
            f"{named(names, 8)}.{instead}",
            archive=str(kept),
            packages=dict(record.installed),
            replaced=dict(record.replaced),
            asked_by={unit.text: list(unit.owners) for unit in units[:200]},
        )
    ]


def conflicts(judgement: Judgement, record: Record, kept: Path) -> list[Finding]:
    """For each owner what it does not get, and why."""
    by_owner: dict[str, list[Verdict]] = {}
    for verdict in judgement.unmet:
        by_owner.setdefault(verdict.owner, []).append(verdict)
    owners = list(by_owner)
    found = [_conflict(owner, by_owner[owner], record, kept) for owner in owners[:_MOST_OWNERS]]
    if rest := owners[_MOST_OWNERS:]:
        found.append(
            warning(
                "packages.conflict",
                f"Packages for {counted(len(rest), 'more node')} were not installed either: "
                f"{named(rest, 20)}.",
                "Fix the ones named first.",
                owners=rest[:200],
            )
        )
    return found


def _conflict(owner: str, unmet: Sequence[Verdict], record: Record, kept: Path) -> Finding:
    reasons = record.refused
    told = [f"{v}: {reasons[v.text]}" if v.text in reasons else str(v) for v in unmet[:5]]
    more = f"; and {len(unmet) - 5} more" if len(unmet) > 5 else ""
    who = COMFYUI if owner == COMFYUI else f"The custom node {shown(owner)}"
    then = "some of its nodes may be missing" if owner == COMFYUI else "it may fail to import"
    return warning(
        "packages.conflict",
        f"{who} does not get all that it asks for, and {then}: {'; '.join(told)}{more}.",
        "Update the custom node, disable it, or use an image whose Python has what it needs. To "
        f"try again with the same files, remove {kept}.",
        owner=owner,
        requirements=[
            {"wanted": v.text, "installed": v.version, "reason": reasons.get(v.text)}
            for v in unmet[:50]
        ],
    )


def failed(judgement: Judgement, problem: Exception, timeout: float, tried: str) -> Finding:
    """Nothing was installed; another start may do better."""
    by_owner: dict[str, list[str]] = {}
    for verdict in judgement.unmet:
        by_owner.setdefault(verdict.owner, []).append(str(verdict))
    told = "; ".join(f"{shown(o)}: {named(texts, 5)}" for o, texts in list(by_owner.items())[:5])
    more = f"; and {len(by_owner) - 5} more custom nodes" if len(by_owner) > 5 else ""
    return warning(
        "packages.failed",
        f"Not installed ({problem}; tried: {tried}): {told}{more}.",
        "uv's lines in the worker's log say more. If it was too slow, raise PACKAGES_TIMEOUT "
        f"({timeout:g} s), and with it RUNPOD_INIT_TIMEOUT; if the index was not reached, check "
        "PIP_INDEX_URL. The next start tries again.",
        missing={owner: texts[:50] for owner, texts in list(by_owner.items())[:200]},
        tried=tried,
    )


def not_kept(kept: Path, problem: OSError) -> Finding:
    """Installed for this start only."""
    return warning(
        "packages.not_kept",
        f"Packages could not be kept as {kept}: {problem.strerror or problem}.",
        "This worker has them; each start installs them again until the volume can be written to "
        "and has room.",
    )


def cannot_start(
    version: str | None, judgement: Judgement, absent: Iterable[HardImport], tried: str = ""
) -> list[Finding]:
    """The error for modules without which this ComfyUI ends at its start; none where all are
    there, or the interpreter could not be asked."""
    absent = list(absent)
    missing = [_asked_for(each, judgement) for each in absent]
    if not missing or judgement.failure is not None:
        return []
    which = f"ComfyUI {version}" if version else "ComfyUI"
    why = f" Installing them failed: {tried}." if tried else ""
    return [
        error(
            "comfyui.requirement_missing",
            f"{which} cannot start: {shown(str(judgement.python))} lacks {named(missing, 8)}.{why}",
            "Set PACKAGES=install and an index that can be reached (PIP_INDEX_URL), or install "
            "them into that Python yourself.",
            modules=[each.module for each in absent],
            requirements=missing,
        )
    ]


def _asked_for(each: HardImport, judgement: Judgement) -> str:
    """The requirement as ComfyUI's own file has it, since exact versions matter."""
    asked = (v.text for v in judgement.verdicts if v.core and v.name == each.distribution)
    return next(asked, each.distribution)


def _owners(owners: Iterable[str]) -> str:
    nodes = [owner for owner in owners if owner != COMFYUI]
    both = [COMFYUI] if COMFYUI in owners else []
    if nodes:
        both.append(f"{counted(len(nodes), 'custom node')} ({named(nodes, 5)})")
    return " and ".join(both)


def _texts(units: Sequence[Unit]) -> str:
    return named([unit.text for unit in units], 8)
