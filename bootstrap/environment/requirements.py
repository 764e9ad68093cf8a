"""What ComfyUI's Python has and lacks, as that Python reports it; for the checker and the worker.

Both use `judge`, so that they never contradict each other. The child (`requirements_child.py`) has
`packaging` and `importlib.metadata`; this side needs only the standard library.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

from bootstrap.core.redact import child_environment, masked
from bootstrap.environment.imports import ALIKE, MODULES, HardImport, hard_imports
from bootstrap.environment.node_packs import COMFYUI, RequirementFile, Requirements
from bootstrap.environment.python_probe import ASK_SECONDS, Failure, PythonTrouble, ask_python
from bootstrap.environment.site_packages import PackagesFacts, packages_facts

# ComfyUI's web page: the worker provides its own.
_PAGE = ("comfyui-frontend-package", "comfyui-workflow-templates", "comfyui-embedded-docs")
# Always checked: a copy without a record must not be replaced either.
_KIN_MODULES = ("torch", "torchvision", "torchaudio", "xformers", "triton")


class RequirementState(str, Enum):
    """The state of a requirement. `UNTRACKED`: can be imported, but no record has its version.
    `SKIPPED`: its marker excludes this Python. `UNREAD`: cannot be parsed. `UNJUDGED`: there is
    neither `packaging` nor pip."""

    MET = "met"
    MISSING = "missing"
    WRONG = "wrong"
    UNTRACKED = "untracked"
    SKIPPED = "skipped"
    UNREAD = "unread"
    UNJUDGED = "unjudged"


_UNMET = (RequirementState.MISSING, RequirementState.WRONG)


@dataclass(frozen=True)
class Verdict:
    """One requirement of one owner (COMFYUI or a custom node). `text` is the requirement for an
    installer, `name` the package's normalised name ("" if an address does not have it), `version`
    the installed one."""

    owner: str
    text: str
    name: str
    state: RequirementState
    version: str | None = None

    @property
    def core(self) -> bool:
        """Is it ComfyUI's own requirement?"""
        return self.owner == COMFYUI

    @property
    def page(self) -> bool:
        """Is it an unmet requirement of ComfyUI's web page? No job needs that."""
        return self.core and self.name.startswith(_PAGE) and self.state in _UNMET

    @property
    def unmet(self) -> bool:
        """Is it required, but missing or in another version?"""
        return self.state in _UNMET and not self.page

    def __str__(self) -> str:
        if self.state is RequirementState.WRONG:
            return f"{self.text} ({self.version} is installed)"
        return self.text


@dataclass(frozen=True)
class Dependencies:
    """What an installed distribution requires: (name, specifiers, state) each; and its extras and
    what they add, verbatim."""

    requires: tuple[tuple[str, str, RequirementState], ...] = ()
    extras: tuple[str, ...] = ()
    extra_lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Judgement:
    """The result. If `packages` has a failure, the rest is empty. `judged_with` is None if there is
    neither `packaging` nor pip. `installed` are versions by normalised name, None for a damaged
    record. `absent` are modules that this ComfyUI cannot start without and that cannot be imported;
    `untracked_kin` are torch and related packages without a record. `needs` is by name.
    """

    packages: PackagesFacts
    version: str | None = None
    judged_with: str | None = None
    installed: Mapping[str, str | None] = field(default_factory=dict)
    verdicts: tuple[Verdict, ...] = ()
    absent: tuple[HardImport, ...] = ()
    untracked_kin: tuple[str, ...] = ()
    needs: Mapping[str, Dependencies] = field(default_factory=dict)

    @property
    def unmet(self) -> tuple[Verdict, ...]:
        """Requirements that are missing or in another version, ComfyUI's own first."""
        return tuple(v for v in self.verdicts if v.unmet)

    def torch(self) -> str | None:
        """The installed torch's version with its build: `2.9.1+cu128`."""
        return self.installed.get("torch")

    def with_packages(
        self, added: Mapping[str, str], unmet: Iterable[Verdict], modules: Iterable[str]
    ) -> Judgement:
        """The judgement with the packages `added` (versions by name) and their `modules` on
        ComfyUI's path; `unmet` is what is still unmet then, logins masked."""
        left = {(v.owner, v.text): v for v in unmet}
        verdicts = []
        for v in self.verdicts:
            met = replace(v, state=RequirementState.MET, version=added.get(v.name, v.version))
            verdicts.append(left.get((v.owner, masked(v.text)), met if v.unmet else v))
        brought = set(modules)
        return replace(
            self,
            verdicts=tuple(verdicts),
            installed={**self.installed, **added},
            absent=tuple(each for each in self.absent if each.module not in brought),
        )


def judge(
    python: Path,
    env: Mapping[str, str],
    requirements: Requirements,
    arguments: Sequence[str] = (),
    *,
    needs: bool = False,
    before: Path | None = None,
    after: Path | None = None,
) -> Judgement:
    """Judge in `python` the requirements of a ComfyUI started with `arguments`; never raises. Takes
    0.2 s on local disk. `env` is the worker's environment; secrets are withheld from the child.
    `needs` also returns what each installed distribution requires. `before` and `after` are package
    folders ahead of and after the interpreter's own.
    """
    start = time.monotonic()
    hard = hard_imports(requirements.version, arguments)
    question = {
        "files": [{"lines": file.lines, "toml": file.toml} for file in requirements.files],
        "imports": [*(each.module for each in hard), *_KIN_MODULES],
        "alike": ALIKE,
        "modules": MODULES,
        "needs": needs,
        "before": str(before) if before else None,
        "after": str(after) if after else None,
    }
    said = ask_python(python, child_environment(env, (), python), question, ASK_SECONDS)
    try:
        packages = packages_facts(python, said, time.monotonic() - start)
        if isinstance(said, Failure):
            return Judgement(packages, requirements.version)
        return _understood(packages, requirements, hard, said)
    except (KeyError, TypeError, ValueError) as problem:
        failure = Failure(PythonTrouble.FAILED, f"its answer could not be parsed ({problem!r})")
        return Judgement(PackagesFacts(str(python), failure), requirements.version)


def _understood(
    packages: PackagesFacts,
    requirements: Requirements,
    hard: Sequence[HardImport],
    said: Mapping[str, Any],
) -> Judgement:
    installed: dict[str, str | None] = {}
    for one in packages.packages:
        installed.setdefault(one.name, one.version)
    absent = frozenset(map(str, said["absent"]))
    return Judgement(
        packages,
        requirements.version,
        judged_with=said["judged_with"],
        installed=installed,
        verdicts=tuple(
            verdict
            for file, found in zip(requirements.files, said["verdicts"], strict=True)
            for verdict in _verdicts(file, found)
        ),
        absent=tuple(each for each in hard if each.module in absent),
        untracked_kin=tuple(m for m in _KIN_MODULES if m not in absent and m not in installed),
        needs={name: _needs(entry) for name, entry in said.get("needs", {}).items()},
    )


def _verdicts(file: RequirementFile, found: Iterable[Mapping[str, Any]]) -> Iterable[Verdict]:
    for one in found:
        state = RequirementState(one["state"])
        yield Verdict(file.owner, one["text"], one["name"], state, one["version"])


def _needs(entry: Mapping[str, Any]) -> Dependencies:
    return Dependencies(
        tuple((str(n), str(s), RequirementState(state)) for n, s, state in entry["requires"]),
        tuple(map(str, entry["extras"])),
        tuple(map(str, entry["extra_lines"])),
    )
