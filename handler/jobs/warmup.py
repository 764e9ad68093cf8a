"""Runs a workflow before jobs are taken, so that models are in GPU memory, and in what FlashBoot
keeps of this worker. Its results are discarded; its failure is only a finding."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from bootstrap.boot import Serving, Stage
from bootstrap.core.files import read_regular
from bootstrap.core.findings import Finding, ok, warning
from bootstrap.models.prefetch import UsageRecord
from bootstrap.volume import Layout
from handler.common.errors import Deadline, JobError, timeout_error
from handler.models.prefetch import find_model
from handler.request.references import named_models
from handler.request.workflow import Workflow, read_workflow

CODES = {
    "warmup.done": "The warm-up workflow ran",
    "warmup.failed": "The warm-up workflow failed",
    "warmup.none": "There is no earlier workflow to warm up with yet",
}
LAST = "last"
_MOST_BYTES = 32 * 1024 * 1024
_SMALL_SIDE = 64
_USER = "warm-up"
_FEWEST = {"steps": 1, "batch_size": 1, "length": 1}


class WarmUp:
    """The warm-up with `workflow`, a value of WARMUP_WORKFLOW."""

    def __init__(self, workflow: str) -> None:
        self._setting = workflow

    def models(self, layout: Layout, recent: UsageRecord) -> Sequence[Path]:
        """The model files that the workflow names."""
        try:
            workflow = self._workflow(layout, recent)
        except JobError:
            return ()  # reported when it runs
        named = named_models(workflow) if workflow is not None else ()
        found = (find_model(model, layout.models) for model in named)
        return [place for place in found if place is not None]

    def run(self, serving: Serving, row: Stage) -> Sequence[Finding]:
        """Run the workflow within WARMUP_TIMEOUT."""
        try:
            workflow = self._workflow(serving.layout, serving.recent)
            if workflow is None:
                row.note = "nothing to repeat yet"
                return [_none_yet()]
            _run(serving, workflow)
        except Exception as problem:  # noqa: BLE001  # jobs may run all the same
            row.outcome = "failed"
            return [_failed(problem)]
        finally:
            _discard_outputs(serving.work.output)
        return [ok("warmup.done", f"The warm-up ran ({len(workflow)} nodes).")]

    def _workflow(self, layout: Layout, recent: UsageRecord) -> Workflow | None:
        """The configured workflow; None if it is the last one and there is none yet. Raises
        JobError."""
        setting = self._setting
        if setting.lower() == LAST:
            last = recent.workflow()
            return None if last is None else made_small(read_workflow(last))
        if setting.lstrip().startswith("{"):
            return read_workflow(setting)
        return read_workflow(_text_of(layout.root / setting))


def made_small(workflow: Workflow) -> Workflow:
    """The same models with the least work: one step, one picture, 64 × 64."""
    small = copy.deepcopy(workflow)
    for node in small.values():
        for name, value in node["inputs"].items():
            if isinstance(value, bool) or not isinstance(value, int):
                continue
            if name in _FEWEST:
                node["inputs"][name] = min(value, _FEWEST[name])
            elif name in ("width", "height") and "Latent" in node["class_type"]:
                node["inputs"][name] = min(value, _SMALL_SIDE)
    return small


def _run(serving: Serving, workflow: Workflow) -> None:
    """Imports are here so that they do not delay ComfyUI's start."""
    import asyncio

    from handler.common.blocking import Calls, TimeUp
    from handler.execution import KnownClasses, Prompt, PromptQueue, PromptResult, run_prompt
    from handler.inputs import VolumeInputs

    comfyui, layout = serving.comfyui, serving.layout
    deadline = Deadline(serving.settings.warmup_timeout)
    calls = Calls.on(layout.root)
    inputs = VolumeInputs(layout, serving.work.input, calls.volume)

    async def run() -> PromptResult:
        await inputs.ensure_copies(workflow, _USER, deadline)
        async with PromptQueue().enter(deadline) as entry:
            return await run_prompt(
                *(comfyui, Prompt(workflow), entry, layout.models, KnownClasses(), calls),
                watch_volume=False,
            )

    try:
        result = asyncio.run(run())
    except TimeUp:
        raise timeout_error(deadline, "the warm-up was still running") from None
    finally:
        inputs.release(_USER)
    if result.history.failure is not None:
        raise result.history.failure


def _text_of(path: Path) -> str:
    try:
        return read_regular(path, _MOST_BYTES).decode("utf-8-sig")
    except (OSError, UnicodeError) as problem:
        why = getattr(problem, "strerror", None) or problem
        raise JobError("warmup.failed", f"{path} cannot be read: {why}.") from None


def _discard_outputs(output: Path) -> None:
    """The warm-up's files are not results."""
    with suppress(OSError):
        for left in output.iterdir():
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


def _failed(problem: Exception) -> Finding:
    if not isinstance(problem, JobError):
        problem = JobError("worker.internal", f"{type(problem).__name__}: {problem}")
    return warning(
        "warmup.failed",
        f"The warm-up did not run: {problem.message}",
        f"{problem.fix} Jobs still run; correct or remove WARMUP_WORKFLOW.".strip(),
        cause=problem.code,
    )


def _none_yet() -> Finding:
    return ok("warmup.none", "WARMUP_WORKFLOW=last has nothing to repeat before the first job.")
