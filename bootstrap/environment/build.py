"""Builds a package set: resolved, installed into two folders, and tested. Packages that cannot be
built or do not work with this torch are left out with a reason.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from bootstrap.environment.package_store import AFTER, BEFORE
from bootstrap.environment.requirements import Judgement
from bootstrap.environment.resolve import Resolution, Resolver, Unit
from bootstrap.environment.uv import Uv, UvFailed

_MOST_TRIES = 12
# Built for one torch. The index may have it for another torch, or for CUDA where torch is not; a
# module that fails to load is worse than a missing one, since many packages try it first.
_TRIED_OUT = {"torchvision": "torchvision", "torchaudio": "torchaudio", "xformers": "xformers"}
_TRY = """
import importlib, json, sys
broken = {}
try:
    import torch
except Exception:
    pass
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except Exception as problem:
        broken[name] = f"{type(problem).__name__}: {problem}"[:300]
print()
print(json.dumps(broken))
"""


class Builder:
    """Fills the folder `folder`. `hook` creates the PYTHONPATH entry for it; `modules`, by
    distribution, are imported as a test."""

    def __init__(
        self,
        uv: Uv,
        judgement: Judgement,
        folder: Path,
        scratch: Path,
        hook: Callable[[], Path],
        modules: Mapping[str, str],
    ) -> None:
        self._uv = uv
        self._folder = folder
        self._scratch = scratch
        self._hook = hook
        self._modules = {**_TRIED_OUT, **modules}
        self._resolver = Resolver(uv, judgement, scratch)
        self._torch = judgement.torch()
        self._there: dict[str, Mapping[str, str]] = {}
        self._works: set[str] = set()

    def build(self, units: Sequence[Unit]) -> Resolution:
        """Install what is possible; the rest is in the plan, with reasons. Raises UvFailed if the
        packages themselves are not the problem, and OSError.
        """
        for _ in range(_MOST_TRIES):
            plan = self._resolver.plan(units)
            if self._installed(plan) and self._all_work(plan):
                return plan
        raise UvFailed("each try left out another package that does not work", False)

    def _installed(self, plan: Resolution) -> bool:
        """Install everything; False if a package cannot be built, which is then left out."""
        wanted = {BEFORE: plan.replaces, AFTER: plan.adds}
        try:
            if self._less_is_wanted(wanted):
                self._take_out(wanted)
            else:
                shutil.rmtree(self._folder, ignore_errors=True)
                for part, requirements in wanted.items():
                    self._put(part, requirements.values())
            self._there = wanted
            return True
        except UvFailed as problem:
            self._there = {}
            if problem.package is None or problem.passing:
                raise
            self._resolver.cannot_build(problem.package, str(problem))
            return False

    def _less_is_wanted(self, wanted: Mapping[str, Mapping[str, str]]) -> bool:
        return bool(self._there) and all(
            requirements.items() <= self._there[part].items()
            for part, requirements in wanted.items()
        )

    def _take_out(self, wanted: Mapping[str, Mapping[str, str]]) -> None:
        for part, there in self._there.items():
            if names := there.keys() - wanted[part].keys():
                self._uv.run(
                    *("uninstall", "--target", str(self._folder / part), *sorted(names)),
                    "--quiet",
                )

    def _put(self, part: str, requirements: Iterable[str]) -> None:
        """Bytecode must not depend on modification times, which unpacking changes."""
        folder = self._folder / part
        folder.mkdir(parents=True)
        exact = self._scratch / f"{part}.txt"
        exact.write_text("".join(f"{line}\n" for line in requirements), encoding="utf-8")
        if not exact.stat().st_size:
            return
        self._uv.run(
            *("install", "--no-deps", "--target", str(folder), "--requirements", str(exact)),
            *("--compile-bytecode", "--quiet", *self._resolver.builds()),
        )

    def _all_work(self, plan: Resolution) -> bool:
        """Can packages that depend on torch be imported? Those that cannot are forbidden from now
        on."""
        found = {**plan.adds, **plan.replaces}
        tried = {n: m for n, m in self._modules.items() if n in found and n not in self._works}
        broken = self._broken(tried.values()) if tried else {}
        for name, module in tried.items():
            if module not in broken:
                self._works.add(name)
            else:
                what = found[name].replace("==", " ")
                why = f"{what} does not load with torch {self._torch}: {broken[module]}"
                self._resolver.forbid(name, why)
        return not broken

    def _broken(self, modules: Iterable[str]) -> dict[str, str]:
        """Packages that cannot be imported, and why. This needs no GPU."""
        env = {"PYTHONPATH": str(self._hook()), "CUDA_VISIBLE_DEVICES": ""}
        said = self._uv.python("-B", "-c", _TRY, *modules, env=env)
        try:
            return dict(json.loads(said.splitlines()[-1]))
        except (ValueError, IndexError) as problem:
            raise UvFailed(f"trying out the packages: {problem}", False) from problem
