"""What ComfyUI's start needs, found out one by one: where its code runs, its Python, its flags."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from bootstrap.comfyui import command
from bootstrap.comfyui.stage import (
    CannotStage,
    Plan,
    Staged,
    copy_again,
    copy_user_folder,
    link_output,
    stage,
)
from bootstrap.comfyui.workdir import WorkDir
from bootstrap.config import Settings
from bootstrap.core.findings import Finding, info, warning
from bootstrap.core.text import counted, named, size_text
from bootstrap.volume import Layout
from bootstrap.volume.args_file import describe_local_models

CODES = {
    "comfyui.not_staged": "ComfyUI's code was not copied to local disk, and runs from the volume",
    "comfyui.user_not_copied": "People's settings and workflows were not copied from the volume",
    "nodes.installs_queued": "What ComfyUI-Manager has queued to install is not installed here",
    "comfyui.heavy_nodes": "Large files of custom nodes are linked, not copied, to local disk",
}
USER = "user"


def stage_code(
    settings: Settings, layout: Layout, work: WorkDir
) -> tuple[list[Staged], list[Finding]]:
    """ComfyUI's code on local disk, and after it the custom nodes that lie elsewhere; nothing where
    it runs where it lies, with the reason if that is not what was asked for."""
    assert layout.comfyui is not None
    if not (settings.stage_comfyui and (layout.comfyui_on_volume or layout.nodes is not None)):
        return [], []
    source = Path(os.path.realpath(layout.comfyui))
    plan = Plan(
        source,
        work.stage,
        int(settings.stage_pack_mb * 1e6),
        settings.stage_timeout,
        models=layout.models,
        is_volume=source == Path(os.path.realpath(layout.root)),
        nodes=None if layout.nodes is None else Path(os.path.realpath(layout.nodes)),
    )
    try:
        staged = stage(plan)
    except CannotStage as problem:
        return [], [_not_staged(problem, settings)]
    link_output(staged[0].place, work.output)
    return staged, [_heavy(copy, settings) for copy in staged if copy.linked]


def stage_again(staged: Sequence[Staged], work: WorkDir, other: WorkDir) -> list[Staged]:
    """The code once more, for another ComfyUI of the same worker: many nodes write beside it, and
    must not mix up their files. Raises OSError."""
    copies = copy_again(staged, work.stage, other.stage)
    link_output(copies[0].place, other.output)
    return copies


def check_queued(copies: Sequence[Staged]) -> list[Finding]:
    """What ComfyUI-Manager has queued and a worker does not run."""
    queued = [path for copy in copies for path in copy.queued]
    if not queued:
        return []
    return [
        info(
            "nodes.installs_queued",
            f"ComfyUI-Manager has queued what to do at the next start ({named(queued)}). A worker "
            "does not do it: many start at once, and each would change the shared volume.",
            "Start ComfyUI once on a Pod with this volume, which does it.",
            paths=queued,
        )
    ]


def copy_user(
    settings: Settings, layout: Layout, work: WorkDir
) -> tuple[Staged | None, list[Finding]]:
    """People's workflows and nodes' settings, into this worker's own user folder."""
    user = Path(os.path.realpath(layout.home)) / USER
    if not (layout.comfyui_on_volume or user.is_dir()):
        return None, []
    try:
        return copy_user_folder(user, work.user, settings.stage_timeout), []
    except CannotStage as problem:
        finding = warning(
            "comfyui.user_not_copied",
            f"{user} was not copied: {problem}.",
            "Nodes run with default settings; make that folder readable, or smaller.",
        )
        return None, [finding]


def folders_of(work: WorkDir, comfyui: Path, nodes: Path | None = None) -> command.Folders:
    """Where ComfyUI writes, and further models that it is told of, and custom nodes at `nodes`."""
    return command.Folders(
        input=work.input,
        output=work.output,
        user=work.user,
        temp_parent=work.temp_parent,
        front_end=work.front_end,
        database=work.database,
        model_paths=describe_local_models(comfyui, work.models, work.model_paths, nodes),
    )


def _not_staged(problem: CannotStage, settings: Settings) -> Finding:
    return warning(
        "comfyui.not_staged",
        f"ComfyUI was not copied to local disk: {problem}. It runs from the volume, which makes "
        "its start slow.",
        "Give the endpoint a larger container disk (Edit Endpoint → Container Disk), move what is "
        f"large out of ComfyUI's folder, or raise STAGE_TIMEOUT ({settings.stage_timeout:g} s); "
        "STAGE_COMFYUI=false runs it from the volume without a try.",
    )


def _heavy(staged: Staged, settings: Settings) -> Finding:
    return info(
        "comfyui.heavy_nodes",
        f"{counted(len(staged.linked), 'large file')} in ComfyUI's folder "
        f"({named(staged.linked, 3)}) stay on the volume; {size_text(staged.bytes)} of code were "
        "copied.",
        f"Nothing to do; STAGE_PACK_MB ({settings.stage_pack_mb:g}) is the most that is copied of "
        "one custom node.",
        files=list(staged.linked[:50]),
    )
