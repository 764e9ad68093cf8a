"""Models that are links to nowhere. ComfyUI lists them like any other, and its loader fails."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from bootstrap.core.text import typed
from bootstrap.doctor import look_at_link
from bootstrap.volume import Layout
from bootstrap.volume.search import USUAL_ROOTS
from handler.common.errors import JobError
from handler.models.missing import with_slashes
from handler.request.references import NamedModel

_LISTED = 5


def check_links(models: Iterable[NamedModel], model_dirs: Sequence[Path], layout: Layout) -> None:
    """Of models that are not there, raise JobError for those that have a link in one of the folders
    of their kind below `model_dirs`. Blocks on the volume."""
    problems = []
    for model in models:
        names = [f"{folder}/{with_slashes(model.name)}" for folder in model.folders]
        places = [folder / name for name in names for folder in model_dirs]
        broken = next(filter(os.path.islink, places), None)
        if broken is not None and not any(map(os.path.exists, places)):
            problems.append(_problem(model, broken, layout))
    if len(problems) == 1:
        raise problems[0]
    if problems:
        said = " ".join(f"({n}) {p.message}" for n, p in enumerate(problems[:_LISTED], 1))
        raise JobError(
            problems[0].code,
            f"{len(problems)} models are broken links: {said}",
            problems[0].fix,
            problems=[{"error_code": p.code, "error": str(p), **p.details} for p in problems],
        )


def _problem(model: NamedModel, link: Path, layout: Layout) -> JobError:
    root = os.path.realpath(layout.root)
    path = os.path.join(os.path.realpath(link.parent), link.name)
    homes = dict.fromkeys((str(layout.root), root, *map(str, USUAL_ROOTS)))
    fact = look_at_link(path, root, root, list(homes))
    text = "?" if fact is None else fact.text
    if fact is not None and fact.relative is not None:
        there = os.path.normpath(os.path.join(os.path.dirname(path), fact.relative))
        fix = (
            f"The file is on the volume, at {there}; a relative link leads there under any mount: "
            f"ln -sfn {typed(fact.relative)} {typed(path)}"
        )
    else:
        fix = (
            f"Put the file where the link leads, or in the link's place (first: rm {typed(path)})."
        )
    return JobError(
        "workflow.missing_model",
        f"{model.input} of node {model.node_id} ({model.class_type}) names {model.name!r}, which "
        f"is a broken link: {path} leads to {text}, which is not there.",
        fix,
        node_id=model.node_id,
        class_type=model.class_type,
        input=model.input,
        model=model.name,
        link=path,
        leads_to=text,
        relative=None if fact is None else fact.relative,
    )
