"""Runs ComfyUI's `main.py`, and ends the process when the thread that runs prompts ends.

Started as a script, `python run_main.py main.py ARGUMENTS…`, in ComfyUI's own Python. A node that
raises SystemExit, which ComfyUI does not catch, ends that thread silently: the server still
answers, but no prompt ever runs again. From outside it looks like a slow node. Here the thread's
end is logged with its traceback and the process exits, which is handled like any other death.
Threads are named after their function since Python 3.10; with an older one nothing changes, and the
job ends at its `max_wait`.

psutil reports the machine's memory, of which a container may have a small part. ComfyUI uses up to
90 % of it for pinned weights and caches, and the kernel then kills it. Here psutil.virtual_memory
returns the container's, divided by the number of ComfyUIs in it, if psutil can be imported.

Hooks beyond ComfyUI's API, and when garbage is collected, are in `prompt_hooks.py`.

To find a node that hangs while it is imported, SIGUSR2 makes this process write the stacks of all
threads; faulthandler does that even while a node holds the GIL.

Standard library only, and two of the project's files that need no more. Everything else is as with
`python main.py`.
"""

from __future__ import annotations

import faulthandler
import importlib
import importlib.util
import os
import runpy
import signal
import sys
import threading
import time
import traceback
from typing import Any

EXIT_CODE = 70  # EX_SOFTWARE of sysexits.h
# The server's thread still has to send this one's last messages, above all which node runs.
_LAST_WORDS_SECONDS = 0.5
_FUNCTION = "(prompt_worker)"  # its name in ComfyUI's main.py since 2023
SAID = "ComfyUI's prompt thread ended"  # bootstrap/comfyui/exits.py reads it
ASK_STACKS = signal.SIGUSR2
INSTANCES = "COMFYUI_INSTANCES"  # how many ComfyUIs share the memory
_HERE = os.path.dirname(os.path.abspath(__file__))
_MEMORY = os.path.join(_HERE, "..", "core", "container_limits.py")
_HOOKS = os.path.join(_HERE, "prompt_hooks.py")


def main(script: str, arguments: list[str]) -> None:
    """Run `script` as `python script arguments…` does."""
    if sys.path and os.path.abspath(sys.path[0]) == _HERE:  # not so with PYTHONSAFEPATH
        sys.path[0] = os.path.dirname(os.path.abspath(script))
    sys.argv = [script, *arguments]
    others = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if args.thread is None or _FUNCTION not in args.thread.name:
            others(args)
            return
        traceback.print_exception(args.exc_type, args.exc_value, args.exc_traceback)
        print(f"{SAID}: {args.exc_type.__name__}: {args.exc_value}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        time.sleep(_LAST_WORDS_SECONDS)
        os._exit(EXIT_CODE)

    threading.excepthook = hook
    faulthandler.register(ASK_STACKS, file=2, all_threads=True)
    try:
        _tell_containers_memory()
    except Exception as problem:  # noqa: BLE001  # ComfyUI runs without as well
        what = f"psutil reports the machine's memory, not the container's: {problem}"
        print(what, file=sys.stderr, flush=True)
    _load(_HOOKS).install()
    runpy.run_path(script, run_name="__main__")


def _tell_containers_memory() -> None:
    """Make psutil.virtual_memory return this container's memory."""
    psutil: Any = importlib.import_module("psutil")  # of ComfyUI's Python, not the worker's
    gauge = _load(_MEMORY).MemoryGauge()
    share = int(os.environ.get(INSTANCES) or 1)
    if gauge.room() is None and share == 1:
        return
    of_machine = psutil.virtual_memory

    def virtual_memory() -> Any:
        machine, room = of_machine(), gauge.room()
        if room is None and share == 1:
            return machine
        total, available = room or (machine.total, machine.available)
        total, available = (
            min(machine.total, total) // share,
            min(machine.available, available) // share,
        )
        return machine._replace(
            total=total,
            available=available,
            used=total - available,
            free=min(machine.free, available),
            percent=round(100 * (total - available) / total, 1),
        )

    psutil.virtual_memory = virtual_memory


def _load(path: str) -> Any:
    """A module by its file: the project's folders are not on this Python's path."""
    name = f"_worker_{os.path.splitext(os.path.basename(path))[0]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
