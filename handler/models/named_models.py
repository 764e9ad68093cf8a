"""Models by address: links in a workflow become file names; and manifest entries for missing
models."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any, TypeVar

from bootstrap.config import Settings
from bootstrap.core.findings import errors_in
from bootstrap.core.text import joined, size_text
from bootstrap.models.by_address import FOLDER, FetchedModels, has_model_name, name_for
from bootstrap.models.manifest import Manifest
from bootstrap.models.manifest_entry import ModelSpec, PickleRefused, read_entry
from bootstrap.models.provision import ProvisionContext
from bootstrap.models.sources import BadLink, Description, HubFile, Link, parse_link
from bootstrap.net import DownloadError
from bootstrap.net.addresses import shown
from bootstrap.volume.categories import PICKLES, category_of, extension_of
from handler.common.blocking import Calls, TimeUp
from handler.common.errors import Deadline, JobError, timeout_error
from handler.request.fields import check_model_host
from handler.request.references import NamedModel, model_addresses, named_models, replace_in_node
from handler.request.workflow import Workflow

T = TypeVar("T")
_log = logging.getLogger("models")
CODES = {
    "model.larger_than_cache": "A model given by its URL is larger than `MODEL_CACHE_GB`",
}
_ATTEMPTS = 2
_HOW = (
    "Give https://…, hf://org/repo/path/to/file, the address of a Civitai model's page or "
    "download, or urn:air:…:civitai:<model>@<version>."
)
_PICKLE_FIX = (
    "Prefer a .safetensors of the same model; or, if you trust the source, name this address "
    "in models.json with `allow_pickle` and `hash`: it is then taken as it says there."
)
_MISSING = "workflow.missing_model"
_LISTED = 3


@dataclass(frozen=True)
class _Wanted:
    """An address, what it points at, and its loader's folder."""

    address: NamedModel
    link: Link

    @property
    def folder(self) -> str:
        return self.address.folders[0]

    @property
    def key(self) -> tuple[str, Link]:
        return self.folder, self.link


@dataclass(frozen=True)
class Addressed:
    """The result for a workflow's addresses: the models that it names now, those that are ours to
    keep or remove, and why others were left unchanged."""

    specs: tuple[ModelSpec, ...] = ()
    ours: tuple[ModelSpec, ...] = ()
    hints: tuple[JobError, ...] = ()


class ModelAddresses:
    """Turns addresses into models for one worker's jobs."""

    def __init__(self, settings: Settings, calls: Calls) -> None:
        self._settings = settings
        self._calls = calls

    async def resolve(
        self,
        workflow: Workflow,
        known: Callable[[], Sequence[ModelSpec]],
        make_context: Callable[[], ProvisionContext],
        deadline: Deadline,
    ) -> Addressed:
        """Replace addresses in `workflow` by file names; returns their models. `known` are the
        manifest's models: an equal address means that model. An address that is not allowed stays,
        with a hint. Raises JobError.
        """
        allowed = self._settings.allow_download_requests
        wanted: list[_Wanted] = []
        hints: list[JobError] = []
        for found in model_addresses(workflow):
            try:
                wanted.append(_Wanted(found, parse_link(found.name)))
            except BadLink as problem:
                if allowed:
                    raise _error(
                        found, "download.no_source", f"the address {problem}.", _HOW
                    ) from None
                hints.append(_not_allowed(found))
        if not wanted:
            return Addressed(hints=tuple(hints))
        listed = await self._on_volume(known, deadline)
        specs = {w.key: spec for w in wanted if (spec := _of_manifest(w, listed)) is not None}
        others = [one for one in wanted if one.key not in specs]
        ours: dict[tuple[str, Link], ModelSpec] = {}
        if not allowed:
            hints += [_not_allowed(one.address) for one in others]
        elif others:
            ours = await self._find(others, make_context, deadline)
        _name_files(workflow, wanted, {**specs, **ours})
        return Addressed((*specs.values(), *ours.values()), tuple(ours.values()), tuple(hints))

    async def make_room(
        self,
        addressed: Addressed,
        lacking: Sequence[ModelSpec],
        context: ProvisionContext,
        limit: Deadline,
    ) -> None:
        """Remove the least recently used models, if there is a limit. Raises JobError."""
        gigabytes = self._settings.model_cache_gb
        if not addressed.ours or gigabytes is None:
            return
        most = gigabytes * 1e9
        coming = [spec for spec in lacking if spec in addressed.ours]
        size = sum(spec.size or 0 for spec in coming)
        _refuse_too_large(coming, most)
        models = FetchedModels(context.models)
        removed = await self._on_volume(lambda: models.make_room(size, most), limit)
        if removed:
            _log.info("removed to make room: %s", ", ".join(map(str, removed)))

    async def _find(
        self,
        wanted: Sequence[_Wanted],
        make_context: Callable[[], ProvisionContext],
        deadline: Deadline,
    ) -> dict[tuple[str, Link], ModelSpec]:
        """The models of the addresses: kept, cached by the platform, or described by their
        source."""
        for one in wanted:
            check_model_host(one.address.name, self._settings)
        context = await self._on_volume(make_context, deadline)
        keys = {one.key: one for one in wanted}

        def here() -> dict[tuple[str, Link], ModelSpec]:
            found = {key: _without_source(one, context) for key, one in keys.items()}
            return {key: spec for key, spec in found.items() if spec is not None}

        specs = await self._on_volume(here, deadline)
        for key, one in keys.items():
            if key not in specs:
                described = await self._describe(one, context, deadline)
                specs[key] = self._spec(one, described)
        return specs

    async def _describe(
        self, wanted: _Wanted, context: ProvisionContext, deadline: Deadline
    ) -> Description:
        for left in reversed(range(_ATTEMPTS)):
            try:
                return await self._ask_source(wanted, context, deadline)
            except DownloadError as problem:
                if not (problem.transient and left) or deadline.expired:
                    raise _error(
                        wanted.address, problem.code, problem.message, problem.fix
                    ) from None
        raise AssertionError("the last attempt returns or raises")

    async def _ask_source(
        self, wanted: _Wanted, context: ProvisionContext, deadline: Deadline
    ) -> Description:
        channel = context.options.channel()

        def work() -> Description:
            try:
                source, link = context.sources.source_of(wanted.address.name)
                return source.describe(link, channel)
            finally:
                channel.close()

        try:
            return await self._calls.network.run(work, deadline.remaining, channel.abort)
        except TimeUp:
            what = f"what is behind {shown(wanted.address.name)} was not known yet"
            raise timeout_error(deadline, what) from None

    def _spec(self, wanted: _Wanted, described: Description) -> ModelSpec:
        entry = {
            "name": name_for(wanted.link, described.name),
            "url": described.url,
            "directory": f"{wanted.folder}/{FOLDER}",
            "hash": described.sha256,
            "size": described.size,
            "revision": described.revision,
        }
        address = wanted.address
        spec, faults = read_entry(entry, address.where, self._settings.allow_private_download_urls)
        fatal = next((fault for fault in faults if fault.fatal), None)
        if spec is not None and fatal is None:
            return spec
        assert fatal is not None
        fix = _PICKLE_FIX if isinstance(fatal, PickleRefused) else fatal.fix
        raise _error(address, fatal.code, fatal.message, fix)

    async def _on_volume(self, work: Callable[[], T], deadline: Deadline) -> T:
        return await self._calls.volume.call_or_fail(work, deadline.remaining)


def _of_manifest(wanted: _Wanted, known: Sequence[ModelSpec]) -> ModelSpec | None:
    """The manifest's model with this address, in a folder that the loader reads."""
    for spec in known:
        if not specs_named([replace(wanted.address, name=_name_of(spec))], [spec]):
            continue
        try:
            if parse_link(spec.url) == wanted.link:
                return spec
        except BadLink:
            continue
    return None


def _without_source(wanted: _Wanted, context: ProvisionContext) -> ModelSpec | None:
    """The model, if no source need be asked: kept from before, or in the platform's cache."""
    name = FetchedModels(context.models).name_of(wanted.folder, wanted.link)
    directory, url = f"{wanted.folder}/{FOLDER}", wanted.address.name
    if name is not None:
        return ModelSpec(name, url, directory)
    if not isinstance(wanted.link, HubFile) or not has_model_name(wanted.link.path):
        return None
    given = wanted.link.path.rpartition("/")[2]
    spec = ModelSpec(name_for(wanted.link, given), url, directory)
    return None if context.cached(spec) is None else spec


def _not_allowed(address: NamedModel) -> JobError:
    return _error(
        address,
        "request.download_off",
        "models by address are off on this endpoint.",
        "Set ALLOW_DOWNLOAD_REQUESTS=true in its environment variables, or name the address in "
        "models.json at the volume's root.",
    )


def _name_files(
    workflow: Workflow, wanted: Sequence[_Wanted], specs: Mapping[tuple[str, Link], ModelSpec]
) -> None:
    """Replace the addresses by the models' names."""
    for one in wanted:
        if (spec := specs.get(one.key)) is not None:
            replace_in_node(workflow, one.address.node_id, {one.address.name: _name_of(spec)})


def _refuse_too_large(specs: Sequence[ModelSpec], most: float) -> None:
    for spec in specs:
        if (spec.size or 0) > most:
            raise JobError(
                "model.larger_than_cache",
                f"{spec.where}: {spec.name} has {size_text(spec.size or 0)}, and MODEL_CACHE_GB "
                f"allows {size_text(int(most))} for all models by address.",
                "Raise MODEL_CACHE_GB in the endpoint's environment, or put the model into "
                "models.json, where it does not count.",
                size=spec.size,
            )


def _error(address: NamedModel, code: str, message: str, fix: str) -> JobError:
    return JobError(
        code,
        f"{address.where} has the address {shown(address.name)}: {message}",
        fix,
        **address.details,
    )


def specs_named(
    named: Iterable[NamedModel], specs: Sequence[ModelSpec], any_folder: bool = False
) -> tuple[ModelSpec, ...]:
    """The manifest's models that a workflow names, in the manifest's order. The folder must match
    if the loader's input shows it; with `any_folder` only the name counts, since an input's name
    may mislead.
    """
    kinds: dict[str, set[str | None]] = {}
    for model in named:
        kind = None if any_folder else model.category
        kinds.setdefault(model.path, set()).add(kind)
    return tuple(
        spec for spec in specs if kinds.get(_name_of(spec), set()) & {_kind_of(spec), None}
    )


def misses_a_model(error: JobError) -> bool:
    """Did a job fail because a model is missing?"""
    return next(_missing_in(error), None) is not None


def with_manifest_entries(error: JobError, workflow: Workflow, manifest: Manifest) -> JobError:
    """`error` with manifest entries for the missing models, complete except for their URLs;
    unchanged if none are missing."""
    missing = set(_missing_in(error))
    models = [m for m in named_models(workflow) if (m.node_id, m.name) in missing]
    entries: list[dict[str, Any]] = []
    for entry in map(_entry_for, models):
        entries += [] if entry in entries else [entry]
    if not entries:
        return error
    lines = [json.dumps(entry, ensure_ascii=False) for entry in entries]
    return JobError(
        error.code,
        error.message,
        f"{error.fix} {_known(models, manifest)} With this in `models` of models.json at the "
        "volume's root it is fetched when a job needs it: "
        f"{joined(lines, _LISTED, what='more (in details)')}",
        **{**error.details, "manifest_entries": entries},
    )


def _known(models: Sequence[NamedModel], manifest: Manifest) -> str:
    """What the manifest says about it."""
    broken = errors_in(manifest.findings)
    if broken:
        return f"The manifest has an error ({broken[0].message}), so entries may be ignored."
    elsewhere = specs_named(models, manifest.models, any_folder=True)
    if elsewhere:
        return f"The manifest has it in another folder, {elsewhere[0].directory}."
    return "The manifest has no entry for it."


def _missing_in(error: JobError) -> Iterator[tuple[str, str]]:
    """(node, model) of every missing model in an error, except those behind a repairable broken
    link (with a `relative` text)."""
    details: Mapping[str, Any] = error.details
    for problem in details.get("problems") or [{"error_code": error.code, **details}]:
        if problem.get("error_code") == _MISSING and not problem.get("relative"):
            yield str(problem.get("node_id")), str(problem.get("model"))


def _entry_for(model: NamedModel) -> dict[str, Any]:
    path = PurePosixPath(model.path)
    folder = model.folders[0] if model.folders else "FOLDER"
    directory = str(PurePosixPath(folder) / path.parent)
    entry: dict[str, Any] = {"name": path.name, "url": "https://…", "directory": directory}
    if extension_of(path.name) in PICKLES:
        entry |= {"hash": "SHA-256", "hash_type": "SHA256", "allow_pickle": True}
    return entry


def _name_of(spec: ModelSpec) -> str:
    """Its name in a loader's list."""
    return "/".join(spec.relative_path.parts[1:])


def _kind_of(spec: ModelSpec) -> str:
    """Its folder's category; an unknown folder is its own."""
    category = category_of(spec.relative_path.parts[0])
    return category.name if category else spec.relative_path.parts[0]
