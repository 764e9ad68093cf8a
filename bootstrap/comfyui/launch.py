"""What ComfyUI's start needs, found out one by one: where its code runs, its Python, its flags."""

from __future__ import annotations

import os
from pathlib import Path

from bootstrap.comfyui import command
from bootstrap.comfyui.stage import CannotStage, Staged, copy_user_folder, link_output, stage
from bootstrap.comfyui.workdir import WorkDir
from bootstrap.config import Settings
from bootstrap.core.findings import Finding, info, warning
from bootstrap.core.text import counted, named, size_text
from bootstrap.volume import Layout
from bootstrap.volume.extra_model_paths import describe_local_models

CODES = {
    "comfyui.not_staged": "ComfyUI's code was not copied to local disk, and runs from the volume",
    "comfyui.user_not_copied": "People's settings and workflows were not copied from the volume",
    "comfyui.heavy_nodes": "Large files of custom nodes are linked, not copied, to local disk",
}
USER = "user"


def stage_code(
    settings: Settings, layout: Layout, work: WorkDir
) -> tuple[Staged | None, list[Finding]]:
    """ComfyUI's code on local disk; None where it runs where it lies, with the reason if that is
    not what was asked for."""
    assert layout.comfyui is not None
    if not (settings.stage_comfyui and layout.comfyui_on_volume):
        return None, []
    source = Path(os.path.realpath(layout.comfyui))
    limit = int(settings.stage_pack_mb * 1e6)
    try:
        staged = stage(source, work.stage, limit, settings.stage_timeout)
    except CannotStage as problem:
        return None, [_not_staged(problem, settings)]
    link_output(staged.place, work.output)
    return staged, [_heavy(staged, settings)] if staged.linked else []


def copy_user(
    settings: Settings, layout: Layout, work: WorkDir
) -> tuple[Staged | None, list[Finding]]:
    """People's workflows and nodes' settings, into this worker's own user folder."""
    assert layout.comfyui is not None
    if not layout.comfyui_on_volume:
        return None, []
    user = Path(os.path.realpath(layout.comfyui)) / USER
    try:
        return copy_user_folder(user, work.user, settings.stage_timeout), []
    except CannotStage as problem:
        finding = warning(
            "comfyui.user_not_copied",
            f"{user} was not copied: {problem}.",
            "Nodes run with default settings; make that folder readable, or smaller.",
        )
        return None, [finding]


def folders_of(work: WorkDir, comfyui: Path) -> command.Folders:
    """Where ComfyUI writes, and further models that it is told of."""
    return command.Folders(
        input=work.input,
        output=work.output,
        user=work.user,
        temp_parent=work.temp_parent,
        front_end=work.front_end,
        database=work.database,
        model_paths=describe_local_models(comfyui, work.models, work.model_paths),
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
