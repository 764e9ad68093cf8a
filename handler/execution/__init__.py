"""One prompt on one ComfyUI, the queue of them, and a ComfyUI that is fit for the next."""

from handler.execution.comfy_client import KnownClasses
from handler.execution.executor import Prompts
from handler.execution.node_progress import Step
from handler.execution.prompt_run import run_prompt
from handler.execution.queue import Line, Prompt, Ran
from handler.execution.recovery import MemoryRelief, Revival
from handler.execution.validation import of_node

__all__ = [
    "KnownClasses",
    "Line",
    "MemoryRelief",
    "Prompt",
    "Prompts",
    "Ran",
    "Revival",
    "Step",
    "of_node",
    "run_prompt",
]
