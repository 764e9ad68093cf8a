"""Makes a package set: resolved, installed into two folders, and tried out.

What cannot be built, or does not work with this torch, is left out with a reason.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from bootstrap.environment.judgement import Judgement
from bootstrap.environment.package_store import AFTER, BEFORE
from bootstrap.environment.resolve import Plan, Resolver, Unit
from bootstrap.environment.uv import Uv, UvFailed

_MOST_TRIES = 12
# Built for one torch. What an index has may be built for another, or for CUDA where torch is not;
# a module that fails to load is worse than one that is missing, since many look for it first.
_TRIED_OUT = {"torchvision": "torchvision", "torchaudio": "torchaudio", "xformers": "xformers"}


class Builder:
    """Fills the folder `folder`. `hook` makes what PYTHONPATH must be for it; `modules` are
    imported to see that they work, by the distribution that brings them."""

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

    def build(self, units: Sequence[Unit]) -> Plan:
        """Install what can be; what cannot is in the plan, with the reason.

        Raises UvFailed when nothing can be said of the packages themselves, and OSError.
        """
        for _ in range(_MOST_TRIES):
            plan = self._resolver.plan(units)
            if self._installed(plan) and self._all_work(plan):
                return plan
        raise UvFailed("each try left out another package that does not work", False)

    def _installed(self, plan: Plan) -> bool:
        """Install it all; False where a package cannot be built and is left out from now on."""
        shutil.rmtree(self._folder, ignore_errors=True)
        try:
            self._put(BEFORE, plan.replaces.values())
            self._put(AFTER, plan.adds.values())
            return True
        except UvFailed as problem:
            known = problem.package is None or problem.passing
            if known or not self._resolver.only_wheels(problem.package or "", str(problem)):
                raise
            return False

    def _put(self, part: str, requirements: Iterable[str]) -> None:
        """Bytecode is tied to no time of change, since unpacking gives files another."""
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

    def _all_work(self, plan: Plan) -> bool:
        """Can what depends on torch be imported? What cannot is never installed from now on."""
        found = {**plan.adds, **plan.replaces}
        tried = [name for name in self._modules if name in found]
        if not tried or self._imports([self._modules[name] for name in tried]) is None:
            return True
        broken = {name: self._imports([self._modules[name]]) for name in tried}
        for name, reason in broken.items():
            if reason is not None:
                what = found[name].replace("==", " ")
                told = f"{what} does not load with torch {self._torch}: {reason}"
                self._resolver.forbid(name, told)
        return not any(broken.values())

    def _imports(self, modules: Sequence[str]) -> str | None:
        """Why they cannot be imported; None if they can. No GPU is needed for it."""
        env = {"PYTHONPATH": str(self._hook()), "CUDA_VISIBLE_DEVICES": ""}
        try:
            self._uv.python("-B", "-c", f"import {', '.join(['torch', *modules])}", env=env)
        except UvFailed as problem:
            if problem.passing:
                raise
            return str(problem)
        return None
