"""Pure: which models of the manifest a workflow names, and what to add for those it lacks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from bootstrap.core.findings import errors_in
from bootstrap.models.manifest import Manifest
from bootstrap.models.manifest_entry import ModelSpec
from bootstrap.volume.categories import PICKLES, category_of, extension_of
from handler.common.errors import JobError
from handler.request.references import NamedModel, named_models
from handler.request.workflow import Workflow

_MISSING = "workflow.missing_model"
_LISTED = 3


def specs_named(
    named: Iterable[NamedModel], specs: Sequence[ModelSpec], any_folder: bool = False
) -> tuple[ModelSpec, ...]:
    """The manifest's models that a workflow names, in the manifest's order.

    A loader reads from the folder of its kind, where its input shows the kind; with `any_folder`
    the name alone counts, since an input's name may mislead.
    """
    kinds: dict[str, set[str | None]] = {}
    for model in named:
        kind = None if any_folder else model.category
        kinds.setdefault(with_slashes(model.name), set()).add(kind)
    return tuple(
        spec
        for spec, (kind, name) in ((spec, _read_as(spec)) for spec in specs)
        if kinds.get(name, set()) & {kind, None}
    )


def with_slashes(name: str) -> str:
    """A model's name with slashes, as Linux has it."""
    return name.replace("\\", "/")


def misses_a_model(error: JobError) -> bool:
    """Did a job fail because a model is missing?"""
    return next(_missing_in(error), None) is not None


def with_manifest_entries(error: JobError, workflow: Workflow, manifest: Manifest) -> JobError:
    """`error` with manifest entries for the models it misses, complete but for their URLs;
    unchanged when it misses none."""
    missing = set(_missing_in(error))
    models = [m for m in named_models(workflow) if (m.node_id, m.name) in missing]
    entries: list[dict[str, Any]] = []
    for entry in map(_entry_for, models):
        entries += [] if entry in entries else [entry]
    if not entries:
        return error
    lines = ", ".join(json.dumps(entry, ensure_ascii=False) for entry in entries[:_LISTED])
    more = f" and {len(entries) - _LISTED} more (in details)" if len(entries) > _LISTED else ""
    return JobError(
        error.code,
        error.message,
        f"{error.fix} {_known(models, manifest)} With this in `models` of models.json at the "
        f"volume's root it is fetched when a job needs it: {lines}{more}",
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
    """(node, model) of every missing model in an error, but for those that are on the volume behind
    a broken link: a `relative` one finds them."""
    details: Mapping[str, Any] = error.details
    for problem in details.get("problems") or [{"error_code": error.code, **details}]:
        if problem.get("error_code") == _MISSING and not problem.get("relative"):
            yield str(problem.get("node_id")), str(problem.get("model"))


def _entry_for(model: NamedModel) -> dict[str, Any]:
    path = PurePosixPath(with_slashes(model.name))
    folder = model.folders[0] if model.folders else "FOLDER"
    directory = str(PurePosixPath(folder) / path.parent)
    entry: dict[str, Any] = {"name": path.name, "url": "https://…", "directory": directory}
    if extension_of(path.name) in PICKLES:
        entry |= {"hash": "SHA-256", "hash_type": "SHA256", "allow_pickle": True}
    return entry


def _read_as(spec: ModelSpec) -> tuple[str, str]:
    """(category, name) as a loader has them; a folder of no category stands for itself."""
    folder, *rest = spec.place.parts
    category = category_of(folder)
    return (category.name if category else folder), "/".join(rest)
