"""Runs prompts on ComfyUI: one prompt, their queue, and a ComfyUI kept ready for the next."""

from handler.execution.comfy_client import KnownClasses
from handler.execution.executor import PromptExecutor
from handler.execution.history import with_withheld
from handler.execution.node_progress import ProgressUpdate
from handler.execution.prompt_run import run_prompt
from handler.execution.queue import Prompt, PromptQueue, PromptResult
from handler.execution.refusal import UnknownNode, hint_for, with_origins
from handler.execution.restarts import ComfyRecovery, MemoryRelief, memory_gauge

__all__ = [
    "ComfyRecovery",
    "KnownClasses",
    "MemoryRelief",
    "ProgressUpdate",
    "Prompt",
    "PromptExecutor",
    "PromptQueue",
    "PromptResult",
    "UnknownNode",
    "hint_for",
    "memory_gauge",
    "run_prompt",
    "with_origins",
    "with_withheld",
]
