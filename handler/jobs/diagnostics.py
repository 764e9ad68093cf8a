"""The diagnostics reply: why a worker is, or is not, healthy – asked afresh each time."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

import bootstrap
from bootstrap.boot import Runtime, boot_json
from bootstrap.comfyui import ComfyUI, Exit, explain_exit, is_answering
from bootstrap.doctor import Facts, Scope, bounded, examine, report_json
from bootstrap.models.installed import cached_models
from handler.common import reply
from handler.request.parse import DiagnosticsRequest, ModelsRequest

_LOG_LINES = 60
_ANSWER_SECONDS = 1.0
_NO_COMFYUI = {"running": False, "answers": False, "starts": 0, "exits": [], "log": []}
# What Runpod sets for each worker; none of it is secret.
_RUNPOD_NAMES = (
    "RUNPOD_POD_ID RUNPOD_ENDPOINT_ID RUNPOD_DC_ID RUNPOD_GPU_COUNT RUNPOD_VOLUME_ID "
    "RUNPOD_CPU_COUNT RUNPOD_MEM_GB RUNPOD_GPU_NAME RUNPOD_IMAGE_NAME"
).split()


class Diagnostics:
    """Answers for one worker, whatever its state. Calls block; use them in a thread."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._comfyuis = [serving.comfyui for serving in runtime.instances]

    def examine(self, request: DiagnosticsRequest) -> dict[str, Any]:
        """Findings and facts as of now, the boot, ComfyUI's state, versions, settings."""
        runtime = self._runtime
        scope = Scope(
            sections=request.sections,
            deep=request.deep,
            comfyui_running=any(comfyui.ended() is None for comfyui in self._comfyuis),
            python=runtime.python,
        )
        report = examine(runtime.settings, runtime.env, scope, runtime.node_log)
        diagnostics = {
            **report_json(report),
            "health": vars(runtime.health.now()),
            "boot": boot_json(runtime.report),
            "comfyui": _state(self._comfyuis[0]) if self._comfyuis else _NO_COMFYUI,
            "further_comfyuis": [_state(comfyui) for comfyui in self._comfyuis[1:]],
            "versions": _versions(report.facts),
            "settings": runtime.settings.masked(),
            "runpod": {n: os.environ[n] for n in _RUNPOD_NAMES if n in os.environ},
        }
        return reply.completed([], list(request.warnings), diagnostics=bounded(diagnostics))

    def models(self, request: ModelsRequest) -> dict[str, Any]:
        """The models by category, as they are now; `cached` are those that ComfyUI sees in the
        platform's cache on this machine."""
        scope = Scope(sections=frozenset({"models"}))
        facts = examine(self._runtime.settings, self._runtime.env, scope).facts.as_dict()
        serving = self._runtime.serving
        cached = cached_models(serving.work.models) if serving else []
        models = {**facts.get("models", {}), "cached": cached}
        return reply.completed([], list(request.warnings), models=bounded(models))


def _state(comfyui: ComfyUI) -> dict[str, Any]:
    running = comfyui.ended() is None
    return {
        "running": running,
        "answers": running and is_answering(comfyui, _ANSWER_SECONDS),
        "port": comfyui.port,
        "starts": comfyui.starts,
        "exits": [_exit(exit) for exit in comfyui.exits[-5:]],
        "log": comfyui.log_tail(_LOG_LINES),
    }


def _exit(exit: Exit) -> dict[str, Any]:
    reason = explain_exit(exit).as_dict()
    return {"code": exit.code, "seconds": round(exit.seconds, 1), "reason": reason}


def _versions(facts: Facts) -> dict[str, str | None]:
    torch = facts.machine.torch if facts.machine else None
    return {
        "worker": bootstrap.__version__,
        "sdk": _version_of("runpod"),
        "python": platform.python_version(),
        "comfyui": facts.comfyui.version if facts.comfyui else None,
        "comfyui_python": facts.packages.version if facts.packages else None,
        "torch": torch.version if torch else None,
    }


def _version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
