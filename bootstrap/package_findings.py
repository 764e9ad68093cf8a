"""What is said of packages that were added for node packs, or were not."""

from __future__ import annotations

from pathlib import Path

from bootstrap.core.findings import Finding, ok, warning
from bootstrap.core.text import named
from bootstrap.package_archive import Record
from bootstrap.wanted_packages import Wanted

CODES = {
    "nodes.packages_added": "Packages that node packs require were added to ComfyUI's path.",
    "nodes.packages_refused": "Packages that node packs require were not installed.",
    "nodes.packages_failed": "Node packs' requirements could not be installed.",
    "nodes.packages_not_kept": "Installed packages could not be kept on the volume.",
}


def added(record: Record, archive: Path) -> Finding:
    """What is there now, and from where."""
    names = [f"{name} {version}" for name, version in sorted(record.installed.items())]
    return ok(
        "nodes.packages_added",
        f"For node packs, behind what ComfyUI's Python has: {named(names, 8)}.",
        archive=str(archive),
        packages=dict(record.installed),
    )


def refused(wanted: Wanted, record: Record, archive: Path | None) -> list[Finding]:
    """What is not installed and why; nothing where all was."""
    reasons = {**dict.fromkeys(wanted.wrong, "nothing is installed over it"), **record.refused}
    if not reasons:
        return []
    told = "; ".join(f"{text}: {reason}" for text, reason in list(reasons.items())[:5])
    again = f" To try again with the same files, remove {archive}." if record.refused else ""
    return [
        warning(
            "nodes.packages_refused",
            f"Not installed for node packs, which may fail to import: {told}.",
            "Update the pack, or build an image that has what it needs; what is installed is never "
            f"replaced.{again}",
            refused=reasons,
        )
    ]


def failed(wanted: Wanted, problem: Exception, timeout: float) -> Finding:
    """Nothing was installed; another start may do better."""
    return warning(
        "nodes.packages_failed",
        f"What node packs require ({named(wanted.missing, 8)}) was not installed: {problem}.",
        "pip's lines in the worker's log say more. If it was too slow, raise "
        f"NODE_REQUIREMENTS_TIMEOUT ({timeout:g} s), and with it RUNPOD_INIT_TIMEOUT; if the index "
        "was not reached, look at PIP_INDEX_URL. The next start tries again.",
        requirements=list(wanted.missing),
    )


def not_kept(archive: Path, problem: OSError) -> Finding:
    """Installed for this start only."""
    return warning(
        "nodes.packages_not_kept",
        f"Packages for node packs could not be kept as {archive}: {problem.strerror or problem}.",
        "This worker has them; each start installs them anew until the volume can be written to "
        "and has room.",
    )
