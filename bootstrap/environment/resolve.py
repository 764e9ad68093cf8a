"""Which packages to add so that ComfyUI and its custom nodes have what they ask for: uv decides.

What is installed takes part in the resolution as it is: each distribution is given to uv as a wheel
without contents, at a fixed address. So torch and its kin are never replaced nor looked for in an
index, and a requirement that cannot go with them is refused with uv's own words.

ComfyUI's requirements come first and may replace other versions of what the image has. A custom
node's may too, but never what ComfyUI, another node or an installed package needs as it is. Where
not all go together, the largest rest that does is taken.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from bootstrap.core.redact import masked
from bootstrap.environment.requirements import Judgement, Needs, RequirementState, Verdict
from bootstrap.environment.uv import Uv, UvFailed

#: Built for one torch, or torch itself: as installed, or not at all.
_KIN = re.compile(
    r"torch|torchvision|torchaudio|torchtext|xformers|(?:pytorch-)?triton.*|nvidia-.*"
)
_VERSION = re.compile(r"(?:\d+!)?\d[\w.]*(?:\+[\w.]+)?", re.ASCII)
_NEVER = "sys_platform == 'never'"
_MOST_BUILDS = 10
_STUBS = "installed"


@dataclass(frozen=True)
class Unit:
    """One requirement that is not met, and who asks for it; `wrong`: there in another version."""

    text: str
    name: str
    owners: tuple[str, ...]
    core: bool
    wrong: bool = False

    @property
    def is_address(self) -> bool:
        """Does it name a place, whose server may be down while the index is not?"""
        return "://" in self.text


@dataclass(frozen=True)
class Resolution:
    """Requirements to install exactly, by normalised name: `adds` what is not there, `replaces`
    what has another version. `refused` has a reason for each requirement that cannot be met."""

    adds: Mapping[str, str] = field(default_factory=dict)
    replaces: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)

    def also_refused(self, more: Mapping[str, str]) -> Resolution:
        """The same plan, which `more` was not for."""
        return replace(self, refused={**more, **self.refused})


def units_of(verdicts: Iterable[Verdict]) -> tuple[Unit, ...]:
    """What is not met, each requirement once: ComfyUI's first, then what most nodes ask for."""
    found: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        if verdict.unmet:
            found.setdefault(verdict.text, []).append(verdict)
    units = [
        Unit(
            text,
            same[0].name,
            tuple(v.owner for v in same),
            any(v.core for v in same),
            same[0].state is RequirementState.WRONG,
        )
        for text, same in found.items()
    ]
    return tuple(sorted(units, key=lambda u: (not u.core, -len(u.owners), u.text)))


def is_kin(name: str) -> bool:
    """Is it torch, or built for one torch?"""
    return _KIN.fullmatch(name) is not None


class Resolver:
    """Plans for one interpreter. `judgement` must have been asked with `needs`."""

    def __init__(self, uv: Uv, judgement: Judgement, scratch: Path) -> None:
        self._uv = uv
        self._judged = judgement
        self._scratch = scratch
        self._stubs = _write_stubs(judgement, scratch / _STUBS)
        self._only_wheels: dict[str, str] = {}
        self._forbidden: dict[str, str] = {}
        self._closure = _closure(judgement)
        self._hopeless: dict[str, str] = {}
        self._last: Mapping[str, str] = {}
        self._answers: dict[object, dict[str, str] | UvFailed] = {}

    def plan(self, units: Sequence[Unit]) -> Resolution:
        """What to install for `units`. Raises UvFailed where nothing can be said of packages."""
        units, given_up = self._without_hopeless(units)
        if not units:
            return Resolution(refused=given_up)
        core = [unit for unit in units if unit.core]
        nodes = [unit for unit in units if not unit.core]
        by_core = self._releasable(core, ())
        by_nodes = self._releasable(nodes, self._closure | by_core)
        try:
            return self._as_plan(self._solve(units, by_core | by_nodes), given_up)
        except UvFailed as problem:
            if (culprit := _named_in(problem, units)) is not None:
                self._hopeless[culprit.text] = str(problem)
                return self.plan(units).also_refused(given_up)
            if problem.passing:
                raise
        fixed, refused = self._plan_core(core, by_core) if core else ({}, {})
        chosen, unmet = self._largest(nodes, lambda some: self._solve(some, by_nodes, fixed))
        found = self._solve(chosen, by_nodes, fixed) if chosen else {}
        return self._as_plan({**found, **fixed}, {**given_up, **refused, **unmet})

    def cannot_build(self, package: str, reason: str) -> None:
        """From now on use no source of `package`, or, where there is no other, do without."""
        name = _normalised(package)
        line = self._last.get(name, "")
        if "://" in line or not self.only_wheels(name, reason):
            self.forbid(name, reason)

    def only_wheels(self, package: str, reason: str) -> bool:
        """From now on build nothing of `package`; False where that is said once too often."""
        known = package in self._only_wheels or len(self._only_wheels) >= _MOST_BUILDS
        self._only_wheels[package] = reason
        return not known

    def builds(self) -> list[str]:
        """uv's flags that say what must not be built."""
        return [part for name in self._only_wheels for part in ("--only-binary", name)]

    def forbid(self, package: str, reason: str) -> None:
        """From now on never install `package`."""
        self._forbidden[package] = reason

    def _without_hopeless(self, units: Sequence[Unit]) -> tuple[Sequence[Unit], dict[str, str]]:
        """Units without those of which it is known that they cannot be had."""
        known = {u.text: self._forbidden[u.name] for u in units if u.name in self._forbidden}
        known |= {u.text: self._hopeless[u.text] for u in units if u.text in self._hopeless}
        return [unit for unit in units if unit.text not in known], known

    def _releasable(self, units: Iterable[Unit], kept: Collection[str]) -> frozenset[str]:
        """Installed packages in another version than these ask for, which may be replaced."""
        names = {unit.name for unit in units if unit.wrong and unit.name in self._stubs}
        return frozenset(name for name in names if name not in kept and not is_kin(name))

    def _plan_core(
        self, core: Sequence[Unit], released: frozenset[str]
    ) -> tuple[dict[str, str], dict[str, str]]:
        """For ComfyUI alone: with all else as it is; where that will not do, with whatever it needs
        free to change, but for torch and its kin."""
        chosen, refused = self._largest(core, lambda some: self._solve(some, released))
        found = self._solve(chosen, released) if chosen else {}
        if not refused:
            return found, refused
        free = frozenset(n for n in self._closure if n in self._stubs and not is_kin(n)) | released
        met = [v for v in self._judged.verdicts if v.core and v.state is RequirementState.MET]
        kept = [Unit(v.text, v.name, (v.owner,), True) for v in met if not is_kin(v.name)]
        more, fewer = self._largest(core, lambda some: self._solve([*kept, *some], free))
        if len(fewer) >= len(refused):
            return found, refused
        return self._solve([*kept, *more], free), fewer

    def _largest(
        self, units: Sequence[Unit], solve: Callable[[Sequence[Unit]], object]
    ) -> tuple[list[Unit], dict[str, str]]:
        """The largest part of `units` found that `solve` can do, and why the others are not in it.

        One that stands in the way of several is given up for them.
        """
        chosen, refused = _grow(units, solve, self._reason)
        if len(refused) < 2:
            return chosen, refused
        refused_first = sorted(units, key=lambda unit: unit.text not in refused)
        others, fewer = _grow(refused_first, solve, self._reason)
        return (others, fewer) if len(others) > len(chosen) else (chosen, refused)

    def _reason(self, problem: UvFailed) -> str:
        """In uv's words, or why a package was left out before."""
        text = str(problem)
        for name, reason in {**self._only_wheels, **self._forbidden}.items():
            if re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text):
                return reason
        return text

    def _solve(
        self,
        units: Sequence[Unit],
        released: frozenset[str],
        fixed: Mapping[str, str] | None = None,
    ) -> dict[str, str]:
        """What uv would install for `units`, by name; what is there already is left out. The same
        question is asked once."""
        given = fixed or {}
        left_out = (*self._only_wheels, *self._forbidden)
        key = (frozenset(u.text for u in units), released, tuple(given.values()), left_out)
        if key not in self._answers:
            try:
                self._answers[key] = self._ask(units, released, given)
            except UvFailed as problem:
                self._answers[key] = problem
        answer = self._answers[key]
        if isinstance(answer, UvFailed):
            raise answer
        return answer

    def _ask(
        self, units: Sequence[Unit], released: frozenset[str], fixed: Mapping[str, str]
    ) -> dict[str, str]:
        wanted = self._written("wanted.in", [unit.text for unit in units])
        held = self._written("held.txt", self._constraints(released, fixed))
        gone = self._written("gone.txt", self._overrides(units))
        answer = self._written("answer.txt", self._preferences(released))
        more = [part for file in self._uv.constraint_files for part in ("--constraints", file)]
        try:
            self._uv.run(
                *("compile", str(wanted), "--constraints", str(held), "--overrides", str(gone)),
                *("--output-file", str(answer), "--no-header", "--no-annotate", "--quiet"),
                *(*more, *self.builds()),
            )
        except UvFailed as problem:
            if problem.package and self.only_wheels(_normalised(problem.package), str(problem)):
                return self._ask(units, released, fixed)
            raise
        lines = dict(_named_lines(answer.read_text("utf-8")))
        return {n: line for n, line in lines.items() if not self._is_there(n, line)}

    def _constraints(self, released: frozenset[str], fixed: Mapping[str, str]) -> Iterator[str]:
        loose = released | fixed.keys()
        for name, address in self._stubs.items():
            if name not in loose:
                yield f"{name} @ {address}"
        yield from fixed.values()
        for name in self._forbidden:
            yield f"{name}<0.dev0"
        open_names = {n for n in released if n not in fixed}
        yield from self._needs_of_installed(open_names, loose)
        yield from self._needs_of_nodes(open_names)

    def _needs_of_installed(
        self, open_names: Collection[str], loose: Collection[str]
    ) -> Iterator[str]:
        """What stays as it is keeps what it needs: its specifiers on what may change, and on what
        is not there (torch names its triton)."""
        there = self._judged.installed
        for name, needs in self._judged.needs.items():
            for wanted, specifiers, state in needs.requires if name not in loose else ():
                may_change = wanted in open_names or wanted not in there
                if specifiers and state is not RequirementState.WRONG and may_change:
                    yield f"{wanted}{specifiers}"

    def _needs_of_nodes(self, open_names: Collection[str]) -> Iterator[str]:
        """A node that has what it needs keeps it, unless ComfyUI itself needs another version."""
        of_core = {v.name for v in self._judged.unmet if v.core}
        for verdict in self._judged.verdicts:
            if verdict.state is not RequirementState.MET or "://" in verdict.text:
                continue
            if verdict.name in open_names and verdict.name not in of_core | self._closure:
                yield re.sub(r"\[[^\[\]]*\]", "", verdict.text)

    def _overrides(self, units: Sequence[Unit]) -> Iterator[str]:
        """What can be imported and has no record that uv could read is taken as it is."""
        asked = {unit.name for unit in units}
        untracked = {v.name for v in self._judged.verdicts if v.state is RequirementState.UNTRACKED}
        for needs in self._judged.needs.values():
            untracked |= {
                name for name, _, state in needs.requires if state is RequirementState.UNTRACKED
            }
        untracked |= set(self._judged.untracked_kin)
        unreadable = self._judged.installed.keys() - self._stubs.keys()
        for name in sorted((untracked | unreadable) - asked):
            yield f"{name} ; {_NEVER}"

    def _preferences(self, released: frozenset[str]) -> Iterator[str]:
        """uv keeps the versions that its output file has where it can."""
        for name in sorted(released):
            yield f"{name}=={self._judged.installed[name]}"

    def _is_there(self, name: str, line: str) -> bool:
        if f"@ {(self._scratch / _STUBS).as_uri()}/" in line:
            return True
        return line == f"{name}=={self._judged.installed.get(name)}"

    def _as_plan(self, found: Mapping[str, str], refused: Mapping[str, str]) -> Resolution:
        there = self._judged.installed
        self._last = found
        return Resolution(
            {name: line for name, line in found.items() if name not in there},
            {name: line for name, line in found.items() if name in there},
            refused,
        )

    def _written(self, name: str, lines: Iterable[str]) -> Path:
        path = self._scratch / name
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return path


def _grow(
    units: Sequence[Unit],
    solve: Callable[[Sequence[Unit]], object],
    reason: Callable[[UvFailed], str],
) -> tuple[list[Unit], dict[str, str]]:
    """First come, first served, by halves: few conflicts among many cost few tries."""
    refused: dict[str, str] = {}

    def grow(accepted: list[Unit], some: Sequence[Unit]) -> list[Unit]:
        try:
            solve([*accepted, *some])
            return list(some)
        except UvFailed as problem:
            if problem.passing:
                raise
            if len(some) == 1:
                refused[some[0].text] = reason(problem)
                return []
        half = len(some) // 2
        first = grow(accepted, some[:half])
        return [*first, *grow([*accepted, *first], some[half:])]

    return (grow([], units) if units else []), refused


def _named_in(problem: UvFailed, units: Iterable[Unit]) -> Unit | None:
    """The requirement with an address that uv could not use, if that is what it complains of."""
    for unit in units:
        address = unit.text.partition(" @ ")[2] or unit.text
        plain = re.sub(r"^(?:git|hg|svn|bzr)\+|#.*|@[^/@]*$", "", masked(address))
        if unit.is_address and (plain in str(problem) or unit.name == problem.package):
            return unit
    return None


def _closure(judgement: Judgement) -> frozenset[str]:
    """All that ComfyUI needs, directly or not, by what is installed."""
    pending = [
        v.name for v in judgement.verdicts if v.core and v.state is not RequirementState.SKIPPED
    ]
    found: set[str] = set()
    while pending:
        name = pending.pop()
        if name not in found:
            found.add(name)
            pending += [n for n, _, _ in judgement.needs.get(name, Needs()).requires]
    return frozenset(found)


def _named_lines(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        match = re.match(r"([A-Za-z0-9][\w.-]*)\s*(?:\[[^\]]*\]\s*)?(?:==|@)", line)
        if match is not None:
            yield _normalised(match[1]), line.strip()


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _write_stubs(judgement: Judgement, folder: Path) -> dict[str, str]:
    """A wheel without contents for each installed distribution; its address by name."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for name, version in judgement.installed.items():
        if version is not None and _VERSION.fullmatch(version):
            found[name] = _write_stub(folder, name, version, judgement.needs.get(name, Needs()))
    return found


def _write_stub(folder: Path, name: str, version: str, needs: Needs) -> str:
    """What it needs it has, or does without; only what its extras would add is reported."""
    plain = name.replace("-", "_")
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Provides-Extra: {extra}" for extra in needs.extras]
    lines += [f"Requires-Dist: {line}" for line in needs.extra_lines]
    path = folder / f"{plain}-{version}-py3-none-any.whl"
    info = f"{plain}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{info}/METADATA", "\n".join(lines) + "\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return path.as_uri()
