"""The models on the volume: are there any, are they complete, will ComfyUI list and load them?

None of these findings is an error: a worker with one broken LoRA must still run jobs that do not
use it, and one without models may download them later.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType

from bootstrap.core.findings import Finding, info, ok, warning
from bootstrap.core.text import pluralize, printable, shell_quote, size_text, summarize_list
from bootstrap.doctor.checks import model_contents, model_places
from bootstrap.doctor.checks.model_contents import (
    command,
    place,
)
from bootstrap.doctor.facts.inventory import Inventory, ModelFile, count_of, holdings_of, size_of
from bootstrap.models.weights_file import WeightsState

CODES = {
    "models.found": "How many models there are, by category",
    "models.none": "There are no models at all",
    "models.unopened": "Some model files were found but not opened",
    "models.incomplete": "The model folders were not read to the end",
    "models.unreadable": "Some files or folders could not be read",
    "models.larger_than_gpu": "The largest model does not fit into the GPU's memory",
    "models.larger_than_memory": "The largest model exceeds the container's memory limit",
    **model_places.CODES,
    **model_contents.CODES,
}
# ComfyUI computes in 16 bits if a model has more (comfy/model_management.py, unet_dtype).
_ON_GPU = {"F64": 0.25, "F32": 0.5}


def check_models(
    inventory: Inventory,
    gpu_memory: int | None = None,
    memory_limit: int | None = None,
    reported: Collection[str] = (),
    loose: Mapping[str, str] = MappingProxyType({}),
) -> list[Finding]:
    """All findings about models, at most one for each code.

    `gpu_memory` and `memory_limit` (bytes) are the largest GPU's and the container's, None where
    unknown or unlimited; `reported` are folders that another check reports, and `loose` the folder
    that a single model belongs in by its contents.
    """
    return [
        *overview(inventory),
        *incomplete(inventory),
        *unopened(inventory),
        *unreadable(inventory),
        *model_contents.check_contents(inventory),
        *model_places.check_places(inventory, loose, reported),
        *model_places.check_names(inventory),
        *larger_than_gpu(inventory, gpu_memory),
        *larger_than_memory(inventory, memory_limit),
    ]


def overview(inventory: Inventory) -> list[Finding]:
    """What models there are, if any."""
    models = inventory.present
    if not models:
        return [] if not inventory.complete else [_none(inventory)]
    holdings = sorted(holdings_of(inventory), key=lambda h: (-h.size, h.name))
    count = count_of(models)
    parts = [f"{h.name} {h.count:,} ({size_text(h.size)})" for h in holdings if h.count and h.name]
    return [
        ok(
            "models.found",
            f"{pluralize(count, 'model')}, {size_text(size_of(models))}: "
            f"{summarize_list(parts, 12)}.",
            count=count,
            size=size_of(models),
        )
    ]


def incomplete(inventory: Inventory) -> Iterator[Finding]:
    """A limit in number or time ended the scan; what was not seen is not judged."""
    if inventory.complete:
        return
    yield info(
        "models.incomplete",
        f"The model folders were not looked at to the end: "
        f"{pluralize(len(inventory.files), 'file')} in "
        f"{inventory.seconds:.1f} s.",
        "A deep check on a Pod takes its time: `python3 check_volume.py --deep`.",
    )


def unopened(inventory: Inventory) -> Iterator[Finding]:
    """A light scan opens a limited number of files."""
    weights = [f for f in inventory.files if f.is_weights]
    unread = [f for f in weights if f.state is WeightsState.UNREAD and not f.examined.detail]
    if not inventory.complete or not unread:
        return
    yield info(
        "models.unopened",
        f"{len(unread):,} of {pluralize(len(weights), 'model file')} were not opened, so "
        "whether they are whole is not known.",
        "A deep check opens them all: `python3 check_volume.py --deep`.",
    )


def unreadable(inventory: Inventory) -> Iterator[Finding]:
    """Permissions, or a failing volume."""
    failed = [f for f in inventory.files if f.state is WeightsState.UNREADABLE]
    count = inventory.problem_count + len(failed)
    if not count:
        return
    places = [f"{p.path} ({p.reason})" for p in inventory.problems]
    places += [f"{place(f)} ({f.examined.detail})" for f in failed]
    first = inventory.problems[0].path if inventory.problems else failed[0].full_path
    denied = any(os.strerror(errno.EACCES) in text for text in places)
    allow = f"On a Pod: {command(shell_quote('chmod', '-R', 'a+rX', first))}."
    retry = "Look again; if it stays, the volume or the path is gone: check that it is attached."
    yield warning(
        "models.unreadable",
        f"{pluralize(count, 'file or folder', 'files or folders')} could not be read: "
        f"{summarize_list(places)}.",
        allow if denied else retry,
        paths=places[:50],
    )


def larger_than_gpu(inventory: Inventory, gpu_memory: int | None) -> Iterator[Finding]:
    """ComfyUI then loads it piece by piece: slow, but it works."""
    largest = max(inventory.models, key=_size_on_gpu, default=None)
    if gpu_memory is None or largest is None or _size_on_gpu(largest) <= gpu_memory:
        return
    yield info(
        "models.larger_than_gpu",
        f"{printable(place(largest))} takes {size_text(_size_on_gpu(largest))} on a GPU, this one "
        f"has {size_text(gpu_memory)}: ComfyUI will move it in and out in parts, which is "
        "several times slower.",
        "Choose a GPU type with more memory for jobs that use it, or an fp8 or GGUF version.",
        path=largest.full_path,
        size=_size_on_gpu(largest),
        gpu_memory=gpu_memory,
    )


def larger_than_memory(inventory: Inventory, memory_limit: int | None) -> Iterator[Finding]:
    """The kernel kills ComfyUI with signal 9 if the container exceeds its limit."""
    largest = max(inventory.models, key=lambda f: f.size, default=None)
    if memory_limit is None or largest is None or largest.size <= memory_limit:
        return
    yield warning(
        "models.larger_than_memory",
        f"{printable(place(largest))} has {size_text(largest.size)}, this container may use "
        f"{size_text(memory_limit)}: the kernel can kill ComfyUI (exit code 137) while it "
        "loads it.",
        "Choose a GPU type with more memory beside it (Edit Endpoint → GPU), or a smaller "
        "version of the model.",
        path=largest.full_path,
        size=largest.size,
        memory_limit=memory_limit,
    )


def _none(inventory: Inventory) -> Finding:
    roots = [str(root) for root in inventory.roots]
    if not roots:
        return warning(
            "models.none",
            "There is no model folder: neither models/ on the volume nor one in ComfyUI.",
            "Create models/checkpoints/ on the volume and put a model there.",
        )
    folder = f"{roots[0]}/checkpoints"
    return warning(
        "models.none",
        f"There is no model under {summarize_list(roots)}.",
        f"`{shell_quote('mkdir', '-p', folder)} && "
        f"{shell_quote('curl', '-fL', '-o', folder + '/NAME')} URL`",
        roots=roots,
    )


def _size_on_gpu(file: ModelFile) -> int:
    if not file.examined.dtypes:
        return file.size
    return int(sum(size * _ON_GPU.get(dtype, 1.0) for dtype, size in file.examined.dtypes))
