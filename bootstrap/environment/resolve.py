"""Which packages to add so that ComfyUI's and its custom nodes' requirements are met, resolved by
uv.

Installed distributions take part in the resolution unchanged: each is given to uv as an empty wheel
at a fixed address. So torch and related packages are never replaced or looked up in an index, and
an incompatible requirement is refused with uv's own message.

ComfyUI's requirements come first and may replace versions in the image. A custom node's may too,
but never what ComfyUI, another node or an installed package needs. If not all are compatible, the
largest compatible subset found is used.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from bootstrap.core.redact import masked
from bootstrap.environment.requirements import Dependencies, Judgement, RequirementState, Verdict
from bootstrap.environment.uv import Uv, UvFailed

#: torch, and packages built for one torch: as installed, or not at all.
_KIN = re.compile(
    r"torch|torchvision|torchaudio|torchtext|xformers|(?:pytorch-)?triton.*|nvidia-.*"
)
_VERSION = re.compile(r"(?:\d+!)?\d[\w.]*(?:\+[\w.]+)?", re.ASCII)
_NEVER = "sys_platform == 'never'"
_MOST_BUILDS = 10
_STUBS = "installed"


@dataclass(frozen=True)
class Unit:
    """One unmet requirement and its owners; `wrong`: installed in another version."""

    text: str
    name: str
    owners: tuple[str, ...]
    core: bool
    wrong: bool = False

    @property
    def is_address(self) -> bool:
        """Is it an address, whose server may be down while the index is not?"""
        return "://" in self.text


@dataclass(frozen=True)
class Resolution:
    """Exact requirements to install, by normalised name: `adds` are new, `replaces` change a
    version. `refused` has a reason for each requirement that cannot be met."""

    adds: Mapping[str, str] = field(default_factory=dict)
    replaces: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)

    def also_refused(self, more: Mapping[str, str]) -> Resolution:
        """The same plan with further refusals, `more`."""
        return replace(self, refused={**more, **self.refused})


def units_of(verdicts: Iterable[Verdict]) -> tuple[Unit, ...]:
    """The unmet requirements, each once: ComfyUI's first, then by number of nodes."""
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
    """Plans for one interpreter. `judgement` must have been made with `needs`."""

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
        """What to install for `units`. Raises UvFailed if uv failed for a reason other than
        packages."""
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
        """Never build `package` again: use wheels only, or do without it."""
        name = _normalised(package)
        line = self._last.get(name, "")
        if "://" in line or not self.only_wheels(name, reason):
            self.forbid(name, reason)

    def only_wheels(self, package: str, reason: str) -> bool:
        """Never build `package` from now on; False if that was already the case."""
        known = package in self._only_wheels or len(self._only_wheels) >= _MOST_BUILDS
        self._only_wheels[package] = reason
        return not known

    def builds(self) -> list[str]:
        """uv's flags for packages that must not be built."""
        return [part for name in self._only_wheels for part in ("--only-binary", name)]

    def forbid(self, package: str, reason: str) -> None:
        """Never install `package` from now on."""
        self._forbidden[package] = reason

    def _without_hopeless(self, units: Sequence[Unit]) -> tuple[Sequence[Unit], dict[str, str]]:
        """Units without those that are known to be unavailable."""
        known = {u.text: self._forbidden[u.name] for u in units if u.name in self._forbidden}
        known |= {u.text: self._hopeless[u.text] for u in units if u.text in self._hopeless}
        return [unit for unit in units if unit.text not in known], known

    def _releasable(self, units: Iterable[Unit], kept: Collection[str]) -> frozenset[str]:
        """Installed packages in another version than required, which may be replaced."""
        names = {unit.name for unit in units if unit.wrong and unit.name in self._stubs}
        return frozenset(name for name in names if name not in kept and not is_kin(name))

    def _plan_core(
        self, core: Sequence[Unit], released: frozenset[str]
    ) -> tuple[dict[str, str], dict[str, str]]:
        """Plan for ComfyUI alone, with everything else unchanged; if that fails, with its
        dependencies free to change, except torch and related packages."""
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
        """The largest subset of `units` found that `solve` accepts, and why the others are not in
        it. A unit that blocks several others is dropped for them.
        """
        chosen, refused = _grow(units, solve, self._reason)
        if len(refused) < 2:
            return chosen, refused
        refused_first = sorted(units, key=lambda unit: unit.text not in refused)
        others, fewer = _grow(refused_first, solve, self._reason)
        return (others, fewer) if len(others) > len(chosen) else (chosen, refused)

    def _reason(self, problem: UvFailed) -> str:
        """uv's message, or why a package was left out before."""
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
        """What uv would install for `units`, by name, without what is there already. Results are
        cached."""
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
        """Constraints of unchanged packages: their specifiers on what may change, and on what is
        missing (torch names its triton)."""
        there = self._judged.installed
        for name, needs in self._judged.needs.items():
            for wanted, specifiers, state in needs.requires if name not in loose else ():
                may_change = wanted in open_names or wanted not in there
                if specifiers and state is not RequirementState.WRONG and may_change:
                    yield f"{wanted}{specifiers}"

    def _needs_of_nodes(self, open_names: Collection[str]) -> Iterator[str]:
        """A node's met requirements stay met, unless ComfyUI itself needs another version."""
        of_core = {v.name for v in self._judged.unmet if v.core}
        for verdict in self._judged.verdicts:
            if verdict.state is not RequirementState.MET or "://" in verdict.text:
                continue
            if verdict.name in open_names and verdict.name not in of_core | self._closure:
                yield re.sub(r"\[[^\[\]]*\]", "", verdict.text)

    def _overrides(self, units: Sequence[Unit]) -> Iterator[str]:
        """Importable packages without a record that uv could read are left as they are."""
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
        """uv prefers the versions in its output file."""
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
    """Greedy, by halves, so that few conflicts among many cost few tries."""
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
    """The requirement whose address uv could not use, if that is its complaint."""
    for unit in units:
        address = unit.text.partition(" @ ")[2] or unit.text
        plain = re.sub(r"^(?:git|hg|svn|bzr)\+|#.*|@[^/@]*$", "", masked(address))
        if unit.is_address and (plain in str(problem) or unit.name == problem.package):
            return unit
    return None


def _closure(judgement: Judgement) -> frozenset[str]:
    """Everything ComfyUI needs, directly or indirectly, by what is installed."""
    pending = [
        v.name for v in judgement.verdicts if v.core and v.state is not RequirementState.SKIPPED
    ]
    found: set[str] = set()
    while pending:
        name = pending.pop()
        if name not in found:
            found.add(name)
            pending += [n for n, _, _ in judgement.needs.get(name, Dependencies()).requires]
    return frozenset(found)


def _named_lines(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        match = re.match(r"([A-Za-z0-9][\w.-]*)\s*(?:\[[^\]]*\]\s*)?(?:==|@)", line)
        if match is not None:
            yield _normalised(match[1]), line.strip()


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _write_stubs(judgement: Judgement, folder: Path) -> dict[str, str]:
    """Write an empty wheel for each installed distribution; returns addresses by name."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for name, version in judgement.installed.items():
        if version is not None and _VERSION.fullmatch(version):
            found[name] = _write_stub(
                folder, name, version, judgement.needs.get(name, Dependencies())
            )
    return found


def _write_stub(folder: Path, name: str, version: str, needs: Dependencies) -> str:
    """Without its dependencies, which are installed or not needed; only its extras are declared."""
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
