"""What ComfyUI's Python has and lacks, asked of that Python itself; for the checker and the worker.

Both go through `judge`, so that one never says what the other denies. The child (`judge_child.py`)
has `packaging` and `importlib.metadata`; this side needs the standard library only.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

from bootstrap.command import environment
from bootstrap.environment.requirement_files import COMFYUI, RequirementFile
from bootstrap.masking import masked
from bootstrap.module_names import ALIKE, MODULES

JUDGE_SECONDS = 20.0
# ComfyUI's web page: the worker gives it one of its own.
_PAGE = ("comfyui-frontend-package", "comfyui-workflow-templates", "comfyui-embedded-docs")
#: Looked for in any case: a copy without a record must not be replaced either.
_KIN_MODULES = ("torch", "torchvision", "torchaudio", "xformers", "triton")
_CHILD = Path(__file__).with_name("judge_child.py")
_MOST_REASON = 300


class State(str, Enum):
    """What became of a requirement. `UNTRACKED`: it can be imported, but no record says in which
    version. `SKIPPED`: its marker says that it is not for this Python. `UNREAD`: not understood."""

    MET = "met"
    MISSING = "missing"
    WRONG = "wrong"
    UNTRACKED = "untracked"
    SKIPPED = "skipped"
    UNREAD = "unread"
    UNJUDGED = "unjudged"


@dataclass(frozen=True)
class Verdict:
    """One requirement of one owner. `text` is what to ask an installer for, `name` the package's
    normalised name ("" where an address does not tell), `version` what is installed."""

    owner: str
    text: str
    name: str
    state: State
    version: str | None = None

    @property
    def core(self) -> bool:
        """Is it ComfyUI's own requirement?"""
        return self.owner == COMFYUI

    @property
    def page(self) -> bool:
        """Is it a part of ComfyUI's web page, which no job needs?"""
        return self.core and self.name.startswith(_PAGE)

    @property
    def unmet(self) -> bool:
        """Is it needed, and missing or there in another version?"""
        return self.state in (State.MISSING, State.WRONG) and not self.page

    def __str__(self) -> str:
        if self.state is State.WRONG:
            return f"{self.text} ({self.version} is installed)"
        return self.text


@dataclass(frozen=True)
class Needs:
    """What an installed distribution requires: (name, specifiers, state) each; and, as they are
    written, its extras and what they add."""

    requires: tuple[tuple[str, str, State], ...] = ()
    extras: tuple[str, ...] = ()
    extra_lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Judgement:
    """What was found. With a `failure` (why the interpreter did not answer) all else is empty.

    `judged_with` is None where neither `packaging` nor pip is there: requirements were not judged.
    `installed` are versions by normalised name, None for a damaged record. `absent` are the
    modules, of those asked for, that cannot be imported.
    """

    python: Path
    failure: str | None = None
    judged_with: str | None = None
    tag: str = ""
    machine: str = ""
    libc: str = ""
    prefix: str = ""
    version: str = ""
    installed: Mapping[str, str | None] = field(default_factory=dict)
    verdicts: tuple[Verdict, ...] = ()
    absent: tuple[str, ...] = ()
    needs: Mapping[str, Needs] = field(default_factory=dict)

    @property
    def unmet(self) -> tuple[Verdict, ...]:
        """What is missing or has another version, ComfyUI's own first."""
        return tuple(v for v in self.verdicts if v.unmet)

    def of(self, owner: str) -> tuple[Verdict, ...]:
        """The verdicts on one owner's requirements."""
        return tuple(v for v in self.verdicts if v.owner == owner)

    @property
    def untracked_kin(self) -> tuple[str, ...]:
        """torch and its like, as far as they can be imported and no record tells of them."""
        there = (name for name in _KIN_MODULES if name not in self.absent)
        return tuple(name for name in there if name not in self.installed)

    def torch(self) -> str | None:
        """The version of the torch that is installed, its build included: `2.9.1+cu128`."""
        return self.installed.get("torch")

    def with_packages(self, added: Mapping[str, str], unmet: Sequence[Verdict]) -> Judgement:
        """As it is once the packages `added` (versions by name) are on ComfyUI's path; `unmet` is
        what was judged so with them, logins masked."""
        left = {(v.owner, v.text): v for v in unmet}
        verdicts = []
        for v in self.verdicts:
            met = replace(v, state=State.MET, version=added.get(v.name, v.version))
            verdicts.append(left.get((v.owner, masked(v.text)), met if v.unmet else v))
        return replace(self, verdicts=tuple(verdicts), installed={**self.installed, **added})


def judge(
    python: Path,
    env: Mapping[str, str],
    files: Sequence[RequirementFile],
    imports: Sequence[str] = (),
    *,
    needs: bool = False,
    before: Path | None = None,
    after: Path | None = None,
    timeout: float = JUDGE_SECONDS,
) -> Judgement:
    """Judge requirements in `python`; never raises. 0.2 s on local disk.

    `imports` are modules to look for, `needs` asks what each installed distribution requires.
    `before` and `after` are folders with packages ahead of and behind its own. `timeout` is in
    seconds.
    """
    asked = {
        "before": str(before) if before else None,
        "after": str(after) if after else None,
        "files": [{"lines": file.lines, "toml": file.toml} for file in files],
        "imports": [*imports, *_KIN_MODULES],
        "alike": ALIKE,
        "modules": MODULES,
        "needs": needs,
    }
    said = _ask(python, environment(env, (), python), json.dumps(asked), timeout)
    if isinstance(said, str):
        return Judgement(python, failure=said)
    try:
        return _understood(python, files, said)
    except (KeyError, TypeError, ValueError) as problem:
        return Judgement(python, failure=f"its answer is not understood ({problem!r})")


def _ask(
    python: Path, env: Mapping[str, str], text: str, timeout: float
) -> Mapping[str, Any] | str:
    try:
        child = subprocess.run(
            [str(python), "-I", "-B", str(_CHILD)],
            env=dict(env),
            input=text.encode("utf-8", "backslashreplace"),
            capture_output=True,
            timeout=timeout,
            check=False,
        )
    except OSError as problem:
        return problem.strerror or str(problem)
    except subprocess.TimeoutExpired:
        return f"no answer in {timeout:g} s"
    lines = child.stdout.decode("utf-8", "replace").splitlines()
    try:
        said = json.loads(lines[-1])
    except (IndexError, ValueError):
        words = child.stderr.decode("utf-8", "replace").split("\n")
        last = next((w.strip() for w in reversed(words) if w.strip()), "")
        return (last or f"exit code {child.returncode}")[:_MOST_REASON]
    return said if isinstance(said, dict) else "its answer is not understood"


def _understood(
    python: Path, files: Sequence[RequirementFile], said: Mapping[str, Any]
) -> Judgement:
    installed: dict[str, str | None] = {}
    for one in said["packages"]:
        installed.setdefault(one["name"], one["version"])
    return Judgement(
        python,
        judged_with=said["judged_with"],
        tag=str(said["tag"]),
        machine=str(said["markers"]["platform_machine"]),
        libc=str(said["libc"]),
        prefix=str(said["prefix"]),
        version=str(said["version"]),
        installed=installed,
        verdicts=tuple(
            Verdict(file.owner, one["text"], one["name"], State(one["state"]), one["version"])
            for file, found in zip(files, said["verdicts"], strict=True)
            for one in found
        ),
        absent=tuple(map(str, said["absent"])),
        needs={name: _needs(told) for name, told in said.get("needs", {}).items()},
    )


def _needs(told: Mapping[str, Any]) -> Needs:
    return Needs(
        tuple((str(n), str(s), State(state)) for n, s, state in told["requires"]),
        tuple(map(str, told["extras"])),
        tuple(map(str, told["extra_lines"])),
    )
