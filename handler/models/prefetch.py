"""Reads a job's model files ahead from the moment it arrives, and records them when it succeeds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bootstrap.models.prefetch import ReadAhead, Request, UsageRecord
from handler.request.references import NamedModel, named_models
from handler.request.workflow import Workflow


class ModelPrefetcher:
    """Reads model files ahead for one worker's jobs. `models` is ComfyUI's models folder;
    `keep_workflow`: also record the last workflow, for WARMUP_WORKFLOW=last."""

    def __init__(
        self, read_ahead: ReadAhead, recent: UsageRecord, models: Path, keep_workflow: bool
    ) -> None:
        self._read_ahead = read_ahead
        self._recent = recent
        self._models = models
        self._keep_workflow = keep_workflow

    def begin(self, workflow: Workflow) -> JobPrefetch:
        """Start reading the files that `workflow` names and that are not in memory: at once, or
        after those of an earlier job that has not ended. Returns at once: the search for files is
        in the background too.
        """
        named = named_models(workflow)
        found: list[Path] = []
        if not named:
            return JobPrefetch(self._read_ahead, None, found)
        request = self._read_ahead.start(self._found(named, found), in_turn=True)
        return JobPrefetch(self._read_ahead, request, found)

    def record_use(self, job: JobPrefetch, workflow: Workflow | None) -> None:
        """Record which files a job used. Blocks on the volume; raises nothing."""
        used = [os.path.relpath(path, self._models) for path in job.files]
        kept = workflow if self._keep_workflow else None
        if used or kept:
            self._recent.note(used, kept)

    def _found(self, named: tuple[NamedModel, ...], found: list[Path]) -> Iterator[Path]:
        for model in dict.fromkeys(named):
            place = find_model(model, self._models)
            if place is not None and place not in found:
                found.append(place)
                yield place


class JobPrefetch:
    """The files being read for one job, `files` in the workflow's order."""

    def __init__(self, read_ahead: ReadAhead, request: Request | None, files: list[Path]) -> None:
        self._read_ahead = read_ahead
        self._request = request
        self.files = files

    def wait(self, seconds: float) -> bool:
        """Wait until everything is read; False if `seconds` were not enough."""
        return self._request is None or self._request.wait(seconds)

    def end(self) -> None:
        """The job has ended: read no more for it."""
        if self._request is not None:
            self._read_ahead.end(self._request)

    def timings(self) -> dict[str, Any]:
        """For the reply: what was read ahead, if anything."""
        if self._request is None or not self._request.reading.read:
            return {}
        return {"read_ahead": self._request.reading.as_dict()}


def find_model(model: NamedModel, models: Path) -> Path | None:
    """The path of a named model below `models`: in its category's folders, else in any."""
    try:
        folders = model.folders or sorted(os.listdir(models))
    except OSError:
        return None
    places = (models / folder / model.path for folder in folders)
    return next((place for place in places if os.path.isfile(place)), None)
