"""Models on demand: those that a job needs, before it runs, and those of a download request."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from bootstrap.config import Settings
from bootstrap.core.text import shell_quote, size_text
from bootstrap.doctor import look_at_link
from bootstrap.models.by_address import IN_USE_SECONDS, FetchedModels
from bootstrap.models.download.progress import FileMeter, LogMeter
from bootstrap.models.manifest import Manifest
from bootstrap.models.manifest_entry import ModelSpec
from bootstrap.models.manifest_file import wanted_here
from bootstrap.models.provision import ProvisionContext, ProvisionResult
from bootstrap.models.provisioner import (
    Provisioner,
    models_folder,
    provision_context,
    show_to_comfyui,
)
from bootstrap.volume import Layout
from bootstrap.volume.find_comfyui import USUAL_ROOTS
from handler.common import reply
from handler.common.blocking import Calls, TimeUp
from handler.common.errors import Deadline, JobError, combined, timeout_error
from handler.models.named_models import (
    ModelAddresses,
    misses_a_model,
    specs_named,
    with_manifest_entries,
)
from handler.request.parse import DownloadRequest
from handler.request.references import NamedModel, named_models, replace_texts, used_nodes
from handler.request.workflow import Workflow
from handler.sdk.progress import Progress

_log = logging.getLogger("models")

T = TypeVar("T")
_STAGE = "fetching models"
_RESUMED = "send it again: downloads are resumed where possible"
_EXPLAIN_SECONDS = 5.0
_SHOW_SECONDS = 30.0
_RENEW_EVERY = IN_USE_SECONDS / 4
_REPORT_EVERY = 0.5  # seconds; Progress limits the rate itself


@dataclass(frozen=True)
class Supplied:
    """The models for a job: those `fetched` now, with their sizes, and in how many `seconds`;
    `hints` say why an address was left unchanged; `renamed`: addresses became file names."""

    fetched: tuple[str, ...] = ()
    seconds: float = 0.0
    hints: tuple[JobError, ...] = ()
    renamed: bool = False


class ModelSupply:
    """Provides models for one worker. `model_dirs` are ComfyUI's models folders, the last one this
    worker's own; empty without ComfyUI."""

    def __init__(
        self, settings: Settings, layout: Layout, model_dirs: Sequence[Path], calls: Calls
    ) -> None:
        self._settings = settings
        self._layout = layout
        self._model_dirs = tuple(model_dirs)
        self._calls = calls
        self._addresses = ModelAddresses(settings, calls)

    async def ensure_models(
        self, workflow: Workflow, deadline: Deadline, progress: Progress
    ) -> Supplied:
        """Provide every model that the workflow names and that is in the manifest or given by
        address. Raises JobError. Checked again for each job: the volume changes, and a worker may
        continue on a host whose cache has other models. In `workflow`, addresses become file names,
        and backslashes from Windows become slashes."""
        begun = deadline.elapsed
        addressed = await self._addresses.resolve(
            workflow, lambda: self._manifest().models, lambda: self._context(progress), deadline
        )
        named = named_models(workflow)
        if not named:
            return Supplied(hints=addressed.hints)
        await self._on_volume(lambda: self._mark_used(named), deadline)
        if any("\\" in model.name for model in named):
            foreign = await self._on_volume(lambda: self._with_slashes(named), deadline)
            replace_texts(workflow, foreign)
            named = named_models(workflow)
        lacking, specs = await self._on_volume(
            lambda: self._wanted(named, addressed.specs), deadline
        )
        results: tuple[ProvisionResult, ...] = ()
        if specs or addressed.ours:
            context = await self._on_volume(lambda: self._context(progress), deadline)
            await self._addresses.make_room(addressed, specs, context, deadline)
            results = await self._fetch(specs, context, deadline) if specs else ()
            _raise_if_missing(specs, results, deadline)
            if results:
                await self._on_volume(lambda: self._mark_used(named), deadline)
                await self._addresses.make_room(addressed, (), context, deadline)
        if results or any(model.folders for model in lacking):
            await self._on_volume(lambda: self._show(results), deadline)
        used = used_nodes(workflow)
        needed = [model for model in lacking if model.node_id in used]
        await self._on_volume(
            lambda: _check_links(needed, self._model_dirs, self._layout), deadline
        )
        fetched = tuple(_describe(result) for result in results if result.state == "fetched")
        seconds = deadline.elapsed - begun if fetched else 0.0
        return Supplied(fetched, seconds, addressed.hints, bool(addressed.specs))

    @asynccontextmanager
    async def in_use(self, workflow: Workflow) -> AsyncIterator[None]:
        """Until this ends, and for `IN_USE_SECONDS` more, no worker removes a model by address that
        `workflow` names."""
        renewing = asyncio.create_task(self._renew(workflow))
        try:
            yield
        finally:
            renewing.cancel()

    async def _renew(self, workflow: Workflow) -> None:
        while True:
            await asyncio.sleep(_RENEW_EVERY)
            named = named_models(workflow)
            with suppress(OSError, TimeUp):
                await self._calls.volume.call(partial(self._mark_used, named), _RENEW_EVERY)

    def _mark_used(self, named: Sequence[NamedModel]) -> None:
        names = {model.path.rpartition("/")[2] for model in named}
        FetchedModels(models_folder(self._layout)).mark_used(names)

    async def explained(self, error: JobError, workflow: Workflow) -> JobError:
        """A job's error, with the manifest entry to add if a model is missing."""
        if not misses_a_model(error):
            return error
        try:
            manifest = await self._calls.volume.call(self._manifest, _EXPLAIN_SECONDS)
        except (OSError, TimeUp):
            return error
        return with_manifest_entries(error, workflow, manifest)

    async def download(self, request: DownloadRequest, progress: Progress) -> dict[str, Any]:
        """Fetch a request's models onto the volume; returns the reply with receipts. Raises
        JobError."""
        deadline = Deadline(request.max_wait)
        try:
            context = await self._on_volume(lambda: self._context(progress), deadline)
        except TimeUp:
            raise timeout_error(deadline, "no model was fetched yet", _RESUMED) from None
        onto_the_volume = replace(context, cached=lambda _: None)
        results = await self._fetch(request.models, onto_the_volume, deadline)
        try:
            await self._calls.volume.call(lambda: self._show(results), _SHOW_SECONDS)
        except (OSError, TimeUp) as problem:
            why = str(problem) or "the volume takes too long"
            _log.warning("fetched models are linked by the next job that names them: %s", why)
        required = tuple(spec for spec in request.models if not spec.optional)
        _raise_if_missing(required, results, deadline)
        failed = [f"{finding.message} {finding.fix}" for r in results if (finding := r.finding())]
        models = [result.as_dict() for result in results]
        return reply.completed(
            [],
            [*request.warnings, *failed],
            models=models,
            timings={"total": round(deadline.elapsed, 3)},
        )

    async def _on_volume(self, work: Callable[[], T], deadline: Deadline) -> T:
        return await self._calls.volume.call_or_fail(work, deadline.remaining)

    async def _fetch(
        self, specs: Sequence[ModelSpec], context: ProvisionContext, deadline: Deadline
    ) -> tuple[ProvisionResult, ...]:
        """The result of each by the deadline; an unfinished download is stopped, and resumed next
        time."""
        fetching = Provisioner(specs, context)
        fetching.start()
        try:
            seconds = deadline.remaining
            await self._calls.network.run(lambda: fetching.wait_for_all(seconds), seconds)
        except TimeUp:
            pass
        finally:
            fetching.stop(0)
        return fetching.results()

    def _wanted(
        self, named: Sequence[NamedModel], addressed: Sequence[ModelSpec]
    ) -> tuple[list[NamedModel], tuple[ModelSpec, ...]]:
        """The models that ComfyUI lacks, and those of them that are `addressed` or in the
        manifest."""
        lacking = self._lacking(named)
        return lacking, self._known(lacking, addressed) if lacking else ()

    def _with_slashes(self, named: Sequence[NamedModel]) -> dict[str, str]:
        """Names with backslashes and their meaning, unless a file has exactly that name."""
        return {
            model.name: model.path
            for model in named
            if "\\" in model.name
            and not self._exists(f"{folder}/{model.name}" for folder in model.folders)
        }

    def _lacking(self, named: Sequence[NamedModel]) -> list[NamedModel]:
        """Those that ComfyUI does not find in their category's folders, or of unknown category."""
        return [
            model
            for model in named
            if not self._exists(f"{folder}/{model.path}" for folder in model.folders)
        ]

    def _manifest(self) -> Manifest:
        return wanted_here(self._settings, self._layout)

    def _known(
        self, lacking: Sequence[NamedModel], addressed: Sequence[ModelSpec]
    ) -> tuple[ModelSpec, ...]:
        """Those of `addressed` and of the manifest, unless ComfyUI finds them where they belong."""
        listed = self._manifest().models
        known = (*addressed, *(spec for spec in listed if spec not in addressed))
        specs = specs_named(lacking, known)
        rest = [model for model in lacking if not specs_named([model], specs)]
        specs += specs_named(rest, known, any_folder=True)
        return tuple(spec for spec in specs if not self._exists([str(spec.relative_path)]))

    def _exists(self, places: Iterable[str]) -> bool:
        return any(
            os.path.isfile(folder / place) for place in places for folder in self._model_dirs
        )

    def _show(self, results: Sequence[ProvisionResult]) -> None:
        """Make new models visible to ComfyUI, whichever worker fetched them."""
        local = self._model_dirs[-1] if self._model_dirs else None
        self._layout, findings = show_to_comfyui(self._settings, results, local)
        for finding in findings:
            _log.info("%s", finding.message)

    def _context(self, progress: Progress) -> ProvisionContext:
        def meter(what: str, tell: Callable[[int, int], None] | None) -> FileMeter:
            return _ReportingMeter(what, tell, progress)

        return provision_context(self._settings, self._layout, meter)


class _ReportingMeter(LogMeter):
    """Also reports to the caller, more often than to the log."""

    def __init__(
        self, what: str, tell: Callable[[int, int], None] | None, progress: Progress
    ) -> None:
        super().__init__(what, tell)
        self._progress = progress
        self._reported_at = 0.0

    def show(self, force: bool = False) -> None:
        """Report to log and caller."""
        super().show(force)
        now = time.monotonic()
        if not force and now - self._reported_at < _REPORT_EVERY:
            return
        self._reported_at = now
        percent = 100 * self.done / self.total if self.total else None
        self._progress.update(_STAGE, percent, model=self.what, detail=self.line())


def _raise_if_missing(
    specs: Sequence[ModelSpec], results: Sequence[ProvisionResult], deadline: Deadline
) -> None:
    """Raise JobError if one of `specs` is not there."""
    good = {id(result.spec) for result in results if result.good}
    missing = [spec for spec in specs if id(spec) not in good]
    if not missing:
        return
    models = [result.as_dict() for result in results]
    failed = [r for r in results if r.spec in missing and r.problem and r.state == "failed"]
    if not failed:
        names = ", ".join(str(spec.relative_path) for spec in missing[:5])
        state = f"{names} {'was' if len(missing) == 1 else 'were'} not fetched yet"
        raise timeout_error(deadline, state, _RESUMED, models=models)
    first = failed[0].problem
    assert first is not None
    said = " ".join(f.message for r in failed if (f := r.finding()))
    raise JobError(first.code, f"Models could not be fetched: {said}", first.fix, models=models)


def _describe(result: ProvisionResult) -> str:
    size = f" ({size_text(result.receipt.size)})" if result.receipt else ""
    return f"{result.spec.relative_path}{size}"


def _check_links(models: Iterable[NamedModel], model_dirs: Sequence[Path], layout: Layout) -> None:
    """Raise JobError for missing models that are broken links in their category's folders below
    `model_dirs`. Blocks on the volume."""
    problems = []
    for model in models:
        names = [f"{folder}/{model.path}" for folder in model.folders]
        places = [folder / name for name in names for folder in model_dirs]
        broken = next(filter(os.path.islink, places), None)
        if broken is not None and not any(map(os.path.exists, places)):
            problems.append(_broken_link(model, broken, layout))
    if problems:
        raise combined(problems)


def _broken_link(model: NamedModel, link: Path, layout: Layout) -> JobError:
    root = os.path.realpath(layout.root)
    path = os.path.join(os.path.realpath(link.parent), link.name)
    homes = dict.fromkeys((str(layout.root), root, *map(str, USUAL_ROOTS)))
    fact = look_at_link(path, root, root, list(homes))
    text = "?" if fact is None else fact.text
    if fact is not None and fact.relative is not None:
        there = os.path.normpath(os.path.join(os.path.dirname(path), fact.relative))
        fix = (
            f"The file is on the volume, at {there}; a relative link leads there under any mount: "
            f"ln -sfn {shell_quote(fact.relative)} {shell_quote(path)}"
        )
    else:
        remove = f"rm {shell_quote(path)}"
        fix = f"Put the file where the link leads, or in the link's place (first: {remove})."
    return JobError(
        "workflow.missing_model",
        f"{model.where} names {model.name!r}, which is a broken link: {path} leads to {text}, "
        "which is not there.",
        fix,
        **model.details,
        model=model.name,
        link=path,
        leads_to=text,
        relative=None if fact is None else fact.relative,
    )
