"""What is wrong with a workflow before ComfyUI sees it: all missing input files at once, and with
them all node classes that this ComfyUI does not know."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from handler.comfy_client import ComfyClient, Refused, Unreachable
from handler.errors import JobError
from handler.loaders import wanted_files
from handler.rejection import combined, nearest, unknown_nodes
from handler.workflow import Workflow

_LISTED = 2000


class KnownClasses:
    """The node classes of a ComfyUI, asked for once in each of its lives: the answer is slow."""

    def __init__(self) -> None:
        self._life: int | None = None
        self._names: list[str] = []

    async def names(self, client: ComfyClient, life: int) -> list[str]:
        """All of them; empty when ComfyUI does not say. `life` changes with the process."""
        if self._life != life or not self._names:
            try:
                self._names = await client.node_classes()
                self._life = life
            except (Refused, Unreachable):
                return []
        return self._names


def missing_inputs(workflow: Workflow, folder: Path, volume_input: Path) -> list[JobError]:
    """An error for each file that a loader wants and that is not in ComfyUI's input folder."""
    there: list[str] | None = None
    problems: list[JobError] = []
    for node_id, name, path in wanted_files(workflow):
        if _is_there(folder, path):
            continue
        if there is None:
            there = _names_in(volume_input)
        class_type = workflow[node_id]["class_type"]
        close = nearest(path, there)
        hint = f" (nearest: {', '.join(close)})" if close else ""
        problems.append(
            JobError(
                "input.missing",
                f"{name} of node {node_id} ({class_type}) names {path[:100]!r}, which was not sent "
                f"and is not in {volume_input}{hint}.",
                'Send it in "images" or "files" under that name, or put it there on the volume.',
                node_id=node_id,
                class_type=class_type,
                input=name,
                nearest=close,
            )
        )
    return problems


def all_at_once(problems: Sequence[JobError], workflow: Workflow, known: Sequence[str]) -> JobError:
    """One error of all missing inputs and, where the known classes are known, unknown classes."""
    unknown = unknown_nodes(workflow, known) if known else None
    return combined([*([unknown] if unknown else []), *problems])


def _is_there(folder: Path, path: str) -> bool:
    """As ComfyUI looks; a name that no file can have is not there."""
    try:
        return os.path.isfile(folder / path)
    except ValueError:
        return False


def _names_in(folder: Path) -> list[str]:
    found: list[str] = []
    for parent, _, names in os.walk(folder):
        found += [os.path.relpath(os.path.join(parent, name), folder) for name in names]
        if len(found) >= _LISTED:
            break
    return [name for name in found if not any(unicodedata.category(c) == "Cs" for c in name)]
