"""ComfyUI's process: its code and folders on local disk, its start, readiness and end."""

from bootstrap.comfyui.copy_code import Staged, copy_again
from bootstrap.comfyui.exits import Exit, StartFault, explain_exit, with_cause
from bootstrap.comfyui.launch import (
    Allocator,
    check_queued,
    choose_allocator,
    copy_user,
    folders_of,
    stage_again,
    stage_code,
)
from bootstrap.comfyui.process import ComfyUI, Launch, not_startable
from bootstrap.comfyui.readiness import is_answering, wait_until_ready
from bootstrap.comfyui.run_main import INSTANCES
from bootstrap.comfyui.workdir import WorkDir, WriteBack, make_workdir

__all__ = [
    "INSTANCES",
    "Allocator",
    "ComfyUI",
    "Exit",
    "Launch",
    "Staged",
    "StartFault",
    "WorkDir",
    "WriteBack",
    "check_queued",
    "choose_allocator",
    "copy_again",
    "copy_user",
    "exits",
    "explain_exit",
    "folders_of",
    "is_answering",
    "launch",
    "make_workdir",
    "not_startable",
    "prompt_hooks",
    "stage_again",
    "stage_code",
    "wait_until_ready",
    "with_cause",
]
