"""Pure: which nodes failed to import in a boot, why, and how long each pack took.

Read from what ComfyUI logs (nodes.py, 2023 to v0.38):

    Cannot import /…/custom_nodes/Pack module for custom nodes: No module named 'x'
    Import times for custom nodes:
       0.3 seconds: /…/custom_nodes/Good
       0.1 seconds (IMPORT FAILED): /…/custom_nodes/Pack
    IMPORT FAILED: nodes_canny.py
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from bootstrap.core.findings import Finding, info, ok, warning
from bootstrap.core.text import counted, named, shown, typed
from bootstrap.environment.modules import distribution_of
from bootstrap.environment.site_packages import PackagesFacts, pip_install, where_to_type

CODES = {
    "nodes.import_failed": "A custom node pack could not be imported.",
    "nodes.import_failed_more": "Further custom node packs could not be imported.",
    "nodes.extras_failed": "Some of ComfyUI's own extra nodes could not be imported.",
    "nodes.import_slow": "Custom node packs took long to import.",
    "nodes.imported": "All custom nodes were imported.",
}
# A finding each for so many packs; the rest share one.
MOST_PACKS = 10
SLOW_SECONDS = 5.0
_TIME = re.compile(r"^\s*(\d+(?:\.\d+)?) seconds( \(IMPORT FAILED\))?: (.*\S)\s*$")
_REASON = re.compile(r"Cannot import (.+?) module for custom nodes: ?(.*)")
_EXTRA = re.compile(r"^IMPORT FAILED: (\S+)")
_MODULE = re.compile(r"No module named '([^']+)'")


@dataclass(frozen=True)
class Import:
    """One pack's import: `seconds` it took, whether it `failed`, and the `reason` if given."""

    path: str
    seconds: float
    failed: bool
    reason: str = ""

    @property
    def name(self) -> str:
        """The pack's own name."""
        return self.path.rstrip("/").rpartition("/")[2]


def read_imports(log: Sequence[str]) -> tuple[list[Import], list[str]]:
    """The packs in the order of the log, and the failed files of ComfyUI's own extras.

    The last boot in the log counts.
    """
    reasons: dict[str, str] = {}
    imports: list[Import] = []
    extras: list[str] = []
    for line in log:
        if line.startswith("Import times for custom nodes"):
            imports, extras = [], []
        elif match := _REASON.search(line):
            reasons[match[1]] = match[2]
        elif match := _TIME.match(line):
            imports.append(
                Import(match[3], float(match[1]), bool(match[2]), reasons.get(match[3], ""))
            )
        elif match := _EXTRA.match(line):
            extras.append(match[1])
    return imports, list(dict.fromkeys(extras))


def check_node_imports(
    log: Sequence[str], packages: PackagesFacts | None, comfyui: str
) -> list[Finding]:
    """Findings about what a boot's log says of nodes; none for an empty log.

    `packages` is the interpreter that pip lines are for, `comfyui` the folder it ran in.
    """
    imports, extras = read_imports(log)
    failed = [each for each in imports if each.failed]
    found = [_failed(each, packages, comfyui) for each in failed[:MOST_PACKS]]
    if len(failed) > MOST_PACKS:
        found.append(_more(failed[MOST_PACKS:]))
    if extras:
        found.append(_extras(extras))
    slow = sorted((i for i in imports if i.seconds >= SLOW_SECONDS), key=lambda i: -i.seconds)
    if slow:
        found.append(_slow(slow))
    if imports and not failed:
        found.append(ok("nodes.imported", f"{counted(len(imports), 'custom node pack')} imported."))
    return found


def _failed(one: Import, packages: PackagesFacts | None, comfyui: str) -> Finding:
    module = _MODULE.search(one.reason)
    fix = (
        "Look for its traceback above `Cannot import` in the worker's log; update the pack on a "
        f"Pod: `{typed('git', '-C', one.path, 'pull')}`, or disable it: "
        f"`{typed('mv', one.path, f'{one.path}.disabled')}`."
    )
    if module and packages is not None:
        name = distribution_of(module[1])
        command = pip_install(packages, [(name, name)])
        fix = where_to_type(command, packages.python, comfyui)
    return warning(
        "nodes.import_failed",
        f"Custom node pack {shown(one.name)} could not be imported: "
        f"{one.reason or 'the log does not say why'}. Workflows with its nodes fail.",
        fix,
        pack=one.path,
        seconds=one.seconds,
        **({"module": module[1]} if module else {}),
    )


def _more(failed: Sequence[Import]) -> Finding:
    return warning(
        "nodes.import_failed_more",
        f"Further node packs could not be imported: {named([each.name for each in failed])}.",
        "Fix the ones named first: they most often lack the same packages.",
        packs={each.path: each.reason for each in failed[:50]},
    )


def _extras(files: Sequence[str]) -> Finding:
    return info(
        "nodes.extras_failed",
        f"ComfyUI's own extra nodes in {named(files)} could not be imported; the rest works.",
        "Install ComfyUI's requirements.txt completely if a workflow needs them.",
        files=list(files),
    )


def _slow(slow: Sequence[Import]) -> Finding:
    times = ", ".join(f"{shown(each.name)} {each.seconds:.1f} s" for each in slow[:5])
    return info(
        "nodes.import_slow",
        f"Custom node packs that took long to import, at every cold start: {times}.",
        "Disable what no workflow uses by renaming its folder to NAME.disabled.",
        seconds={each.path: each.seconds for each in slow[:50]},
    )
