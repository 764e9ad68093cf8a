"""Findings about the packages that ComfyUI and its nodes require."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from bootstrap.core.findings import Finding, error, info, ok, warning
from bootstrap.core.text import joined, pluralize, printable, shell_quote, summarize_list
from bootstrap.environment.imports import HardImport
from bootstrap.environment.node_packs import COMFYUI
from bootstrap.environment.package_store import Record
from bootstrap.environment.requirements import Judgement, Verdict
from bootstrap.environment.resolve import Unit, units_of
from bootstrap.environment.site_packages import pip_install

CODES = {
    "packages.installed": "Packages that ComfyUI or its nodes require were installed",
    "packages.conflict": "A required package conflicts with others or cannot be installed",
    "packages.failed": "Required packages could not be installed; the next start tries again",
    "packages.not_kept": "Installed packages could not be saved on the volume",
    "packages.not_judged": "It could not be determined which required packages are missing",
    "packages.no_uv": "uv is missing, so nothing can be installed",
    "comfyui.requirement_missing": "A package that ComfyUI cannot start without is missing",
}
# So many owners get a finding each; the rest share one.
_MOST_OWNERS = 10


def not_ready(
    judgement: Judgement, uv: Path | None = None, units: Sequence[Unit] = ()
) -> list[Finding]:
    """Why nothing can be judged, or `units` cannot be installed; None if they can."""
    if judgement.judged_with is None:
        return [
            info(
                "packages.not_judged",
                f"{printable(judgement.packages.python)} has neither packaging nor pip: what "
                "ComfyUI and its nodes require was not evaluated, and nothing is installed.",
                "Install packaging there, if nodes fail to import.",
            )
        ]
    if uv is None and units:
        return [
            warning(
                "packages.no_uv",
                f"uv was not found: {summarize_list([u.text for u in units], 8)} cannot be "
                "installed.",
                "Use the worker's image, or install requirements/worker.txt, which has uv.",
                requirements=[unit.text for unit in units[:50]],
            )
        ]
    return []


def with_set(judgement: Judgement, record: Record, kept: Path) -> list[Finding]:
    """What a package set provides and what it does not; `judgement` is without it."""
    after = record.on(judgement)
    refused = "; ".join(record.refused.values())
    return [
        *_installed(judgement, record, kept),
        *_conflicts(after, record, kept),
        *cannot_start(after, refused),
    ]


def _installed(judgement: Judgement, record: Record, kept: Path) -> list[Finding]:
    if not record.installed:
        return []
    units = units_of(judgement.verdicts)
    owners = dict.fromkeys(owner for unit in units for owner in unit.owners)
    names = [f"{name} {version}" for name, version in record.installed.items()]
    replaced = [f"{n} {old}" for n, old in record.replaced.items()]
    instead = f" They replace {summarize_list(replaced, 8)}." if replaced else ""
    return [
        ok(
            "packages.installed",
            f"On the path of {printable(judgement.packages.python)} for {_owners(owners)}: "
            f"{summarize_list(names, 8)}.{instead}",
            archive=str(kept),
            packages=dict(record.installed),
            replaced=dict(record.replaced),
            asked_by={unit.text: list(unit.owners) for unit in units[:200]},
        )
    ]


def _conflicts(judgement: Judgement, record: Record, kept: Path) -> list[Finding]:
    """For each owner the packages that it does not get, and why."""
    by_owner: dict[str, list[Verdict]] = {}
    for verdict in judgement.unmet:
        by_owner.setdefault(verdict.owner, []).append(verdict)
    owners = list(by_owner)
    found = [_conflict(owner, by_owner[owner], record, kept) for owner in owners[:_MOST_OWNERS]]
    if rest := owners[_MOST_OWNERS:]:
        found.append(
            warning(
                "packages.conflict",
                f"Packages for {pluralize(len(rest), 'more node')} were not installed either: "
                f"{summarize_list(rest, 20)}.",
                "Fix the ones listed first.",
                owners=rest[:200],
            )
        )
    return found


def _conflict(owner: str, unmet: Sequence[Verdict], record: Record, kept: Path) -> Finding:
    reasons = record.refused
    listed = [f"{v}: {reasons[v.text]}" if v.text in reasons else str(v) for v in unmet]
    who = COMFYUI if owner == COMFYUI else f"The custom node {printable(owner)}"
    then = "some of its nodes may be missing" if owner == COMFYUI else "it may fail to import"
    image = "an image whose Python has what it needs."
    fix = (
        f"Use {image}"
        if owner == COMFYUI
        else f"Update the custom node, disable it, or use {image}"
    )
    return warning(
        "packages.conflict",
        f"{who} lacks some of its requirements, and {then}: {joined(listed, 5, '; ')}.",
        f"{fix} To try again with the same files: `{shell_quote('rm', '-f', str(kept))}`.",
        owner=owner,
        requirements=[
            {"wanted": v.text, "installed": v.version, "reason": reasons.get(v.text)}
            for v in unmet[:50]
        ],
    )


def failed(judgement: Judgement, problem: Exception, timeout: float, tried: str) -> Finding:
    """Nothing was installed; another start may succeed."""
    by_owner: dict[str, list[str]] = {}
    for verdict in judgement.unmet:
        by_owner.setdefault(verdict.owner, []).append(str(verdict))
    listed = [f"{printable(owner)}: {summarize_list(texts)}" for owner, texts in by_owner.items()]
    missing = joined(listed, 5, "; ", "more custom nodes")
    return warning(
        "packages.failed",
        f"Not installed ({problem}; tried: {tried}): {missing}.",
        "uv's lines in the worker's log say more. If it was too slow, raise PACKAGES_TIMEOUT "
        f"({timeout:g} s), and with it RUNPOD_INIT_TIMEOUT; if the index was not reached, check "
        "PIP_INDEX_URL. The next start tries again.",
        missing={owner: texts[:50] for owner, texts in list(by_owner.items())[:200]},
        tried=tried,
    )


def broke_off(problem: Exception) -> Finding:
    """Part of the set is missing, which was not known until ComfyUI had been started."""
    return warning(
        "packages.failed",
        f"Packages could not be read from the volume to the end: {problem}. ComfyUI runs without "
        "some of them.",
        "The next start tries again, and rebuilds the set if it is damaged.",
    )


def not_kept(kept: Path, problem: OSError) -> Finding:
    """Installed for this start only."""
    return warning(
        "packages.not_kept",
        f"Packages could not be kept as {kept}: {problem.strerror or problem}.",
        "This worker has them; each start installs them again until the volume can be written to "
        "and has space.",
    )


def cannot_start(judgement: Judgement, tried: str = "") -> list[Finding]:
    """The error for what this ComfyUI cannot start without; None if everything is there, or the
    interpreter could not be asked. `tried` is why it was not installed."""
    if not judgement.absent or not judgement.packages.usable:
        return []
    missing = [(e.distribution, _asked_for(e, judgement)) for e in judgement.absent]
    texts = [text for _, text in missing]
    which = f"ComfyUI {judgement.version}" if judgement.version else "ComfyUI"
    python = printable(judgement.packages.python)
    return [
        error(
            "comfyui.requirement_missing",
            f"{which} cannot start: {python} lacks {summarize_list(texts, 8)}."
            f"{f' It was not installed: {tried}.' if tried else ''}",
            "Set PACKAGES=install, with an index that can be reached (PIP_INDEX_URL), or install "
            f"it yourself: `{pip_install(judgement.packages, missing)}`.",
            modules=[each.module for each in judgement.absent],
            requirements=texts,
        )
    ]


def _asked_for(each: HardImport, judgement: Judgement) -> str:
    """The requirement as in ComfyUI's own file, since exact versions matter."""
    asked = (v.text for v in judgement.verdicts if v.core and v.name == each.distribution)
    return next(asked, each.distribution)


def _owners(owners: Iterable[str]) -> str:
    nodes = [owner for owner in owners if owner != COMFYUI]
    both = [COMFYUI] if COMFYUI in owners else []
    if nodes:
        both.append(f"{pluralize(len(nodes), 'custom node')} ({summarize_list(nodes, 5)})")
    return " and ".join(both)
