"""Whether a requirement is met by what is installed, and what is said of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from bootstrap.facts.packages import PackagesFacts
from bootstrap.markers import evaluate
from bootstrap.module_names import alike, module_of
from bootstrap.requirements_text import Requirement
from bootstrap.versions import satisfies


class Verdict(str, Enum):
    """What became of one requirement. `UNKNOWN` is also what does not apply here."""

    MET = "met"
    MISSING = "missing"
    WRONG = "wrong"
    UNTRACKED = "untracked"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Judged:
    """A requirement, what became of it, and the version that is installed (None for none)."""

    requirement: Requirement
    verdict: Verdict
    version: str | None = None

    @property
    def name(self) -> str:
        """The package's normalised name."""
        return self.requirement.name

    def __str__(self) -> str:
        if self.verdict is Verdict.WRONG:
            return f"{self.requirement.text} ({self.version} is installed)"
        return self.requirement.text


def judge(requirement: Requirement, packages: PackagesFacts) -> Judged:
    """Whether a requirement is met by what is installed; never a guess."""
    if evaluate(requirement.marker, packages.markers) is not True:
        return Judged(requirement, Verdict.UNKNOWN)
    versions = packages.versions_of(requirement.name)
    if not versions:
        if any(packages.versions_of(other) for other in alike(requirement.name)):
            return Judged(requirement, Verdict.MET)
        if module_of(requirement.name) in packages.modules:
            return Judged(requirement, Verdict.UNTRACKED)
        return Judged(requirement, Verdict.MISSING)
    known = [version for version in versions if version is not None]
    verdicts = [satisfies(version, requirement.specifiers) for version in known]
    if True in verdicts:
        return Judged(requirement, Verdict.MET, known[0])
    if None in verdicts or not known:
        return Judged(requirement, Verdict.UNKNOWN)
    return Judged(requirement, Verdict.WRONG, known[0])
