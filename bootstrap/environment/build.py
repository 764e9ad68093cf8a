"""Packages that are missing, put into a folder of their own by the pip of ComfyUI's Python.

First it is only asked what it would do (`--dry-run --report`), with everything that is installed as
a constraint: what would need another version of something is refused before anything is fetched.
Then exactly that is installed, into an empty folder, and compared with what was announced.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bootstrap.core.redact import masked
from bootstrap.environment.archive import Record
from bootstrap.environment.pip import Pip, PipFailed
from bootstrap.environment.requirements import normalised


@dataclass(frozen=True)
class Announced:
    """One distribution that pip would install; `text` is what to ask it for."""

    name: str
    version: str
    text: str


class Builder:
    """Makes the folder `folder` with `pip`; `scratch` is for files that tell pip what to do."""

    def __init__(self, pip: Pip, constraints: Sequence[str], folder: Path, scratch: Path) -> None:
        self._pip = pip
        self._folder = folder
        self._scratch = scratch
        self._constraints = self._written("constraints.txt", constraints)
        self._wheels = scratch / "wheels"
        self._installed = {line.partition("==")[0] for line in constraints}

    def build(self, requirements: Sequence[str]) -> Record:
        """Install what can be installed; what cannot is in the record, with the reason.

        Raises PipFailed when nothing can be said of the packages themselves, and OSError.
        """
        announced, refused = self._sorted_out(requirements)
        self._folder.mkdir(parents=True)
        if announced:
            announced, not_built = self._install(announced)
            refused |= not_built
            self._verify(announced)
        return Record(
            tuple(map(masked, requirements)),
            {each.name: each.version for each in announced},
            {masked(text): reason for text, reason in refused.items()},
        )

    def _sorted_out(self, requirements: Sequence[str]) -> tuple[list[Announced], dict[str, str]]:
        """All of them, where they go together; else one by one, first come first served."""
        try:
            return self._announced(requirements), {}
        except PipFailed as problem:
            if problem.passing:
                raise
            if len(requirements) == 1:
                return [], {requirements[0]: str(problem)}
        accepted: list[str] = []
        announced: list[Announced] = []
        refused: dict[str, str] = {}
        for requirement in requirements:
            try:
                announced = self._announced([*accepted, requirement])
                accepted.append(requirement)
            except PipFailed as problem:
                if problem.passing:
                    raise
                refused[requirement] = str(problem)
        return announced, refused

    def _announced(self, requirements: Sequence[str]) -> list[Announced]:
        """What pip would install for these."""
        wanted = self._written("requirements.txt", requirements)
        report = self._scratch / "report.json"
        report.unlink(missing_ok=True)
        constraint = ("--constraint", str(self._constraints))
        self._pip.run(
            *("install", "--dry-run", "--report", str(report)),
            *("--requirement", str(wanted), *constraint),
        )
        announced = _read(report.read_text("utf-8"))
        replaced = [each.name for each in announced if each.name in self._installed]
        if replaced:  # a pip that does not take constraints as seriously as we do
            raise PipFailed(f"it would replace {', '.join(replaced)}", False)
        return announced

    def _install(self, announced: Sequence[Announced]) -> tuple[list[Announced], dict[str, str]]:
        """All of them; where one cannot be built from its source, the others."""
        try:
            self._put(each.text for each in announced)
            return list(announced), {}
        except PipFailed as problem:
            if problem.passing:
                raise
        built, refused = self._built(announced)
        shutil.rmtree(self._folder)
        self._folder.mkdir()
        if built:
            self._put(wheel.as_uri() for wheel in sorted(self._wheels.glob("*.whl")))
        return built, refused

    def _built(self, announced: Sequence[Announced]) -> tuple[list[Announced], dict[str, str]]:
        """A wheel of each that there can be one of."""
        built: list[Announced] = []
        refused: dict[str, str] = {}
        for each in announced:
            try:
                self._pip.run("wheel", "--no-deps", "--wheel-dir", str(self._wheels), each.text)
                built.append(each)
            except PipFailed as problem:
                if problem.passing:
                    raise
                refused[each.text] = str(problem)
        return built, refused

    def _put(self, texts: Iterable[str]) -> None:
        """Bytecode is tied to no time of change, since unpacking gives files another."""
        exact = self._written("exact.txt", texts)
        self._pip.run(
            *("install", "--no-deps", "--no-compile", "--target", str(self._folder)),
            *("--requirement", str(exact)),
        )
        try:
            compiling = ("-q", "--invalidation-mode", "unchecked-hash", str(self._folder))
            self._pip.run(*compiling, module="compileall")
        except PipFailed as problem:
            if problem.passing:
                raise
            # Some packages hold files that are templates, or Python 2.

    def _verify(self, announced: Sequence[Announced]) -> None:
        """Everything announced is there, with all files that it says it has."""
        found = {
            normalised(each.metadata["Name"] or ""): each
            for each in importlib.metadata.distributions(path=[str(self._folder)])
        }
        for each in announced:
            one = found.get(each.name)
            if one is None or one.version != each.version:
                raise PipFailed(f"{each.name} {each.version} is not there after installing", True)
            for file in one.files or ():
                path = os.path.join(self._folder, file)
                if ".." in file.parts or file.suffix == ".pyc":
                    continue  # programs lie elsewhere with --target
                size = os.path.getsize(path) if os.path.isfile(path) else None
                if size is None or file.size not in (None, size):
                    raise PipFailed(f"{file} of {each.name} is not whole after installing", True)

    def _written(self, name: str, lines: Iterable[str]) -> Path:
        path = self._scratch / name
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return path


def _read(report: str) -> list[Announced]:
    """pip's installation report (https://pip.pypa.io/en/stable/reference/installation-report/)."""
    try:
        return [_announced(item) for item in json.loads(report)["install"]]
    except (ValueError, KeyError, TypeError) as problem:
        raise PipFailed(f"pip's report is not understood ({problem!r})", True) from problem


def _announced(item: Any) -> Announced:
    name, version = str(item["metadata"]["name"]), str(item["metadata"]["version"])
    text = f"{name}=={version}"
    if item.get("is_direct"):
        origin = item["download_info"]
        vcs = origin.get("vcs_info")
        prefix, commit = (f"{vcs['vcs']}+", f"@{vcs['commit_id']}") if vcs else ("", "")
        text = f"{name} @ {prefix}{origin['url']}{commit}"
    return Announced(normalised(name), version, text)
