"""Runs ComfyUI's `main.py`, and ends the process when the thread that runs prompts ends.

Started as a script, `python run_main.py main.py ARGUMENTS…`, in ComfyUI's own Python. A node
that raises SystemExit, which ComfyUI does not catch, ends that thread: Python says nothing, the
server goes on to answer, and no prompt ever runs again. From outside that looks like a node that
takes long. Here the thread's end is told with its traceback and the process ends, so that job and
ComfyUI get what they get at any other death. Threads are named after their function since Python
3.10; in an older one nothing is changed, and the job ends at its `max_wait`.

Standard library only; knows nothing of the project. All else is as with `python main.py`.
"""

from __future__ import annotations

import os
import runpy
import sys
import threading
import time
import traceback

EXIT_CODE = 70  # EX_SOFTWARE of sysexits.h
# The server's thread still has to send what this one said last: which node runs, above all.
_LAST_WORDS_SECONDS = 0.5
_FUNCTION = "(prompt_worker)"  # its name in ComfyUI's main.py since 2023
SAID = "ComfyUI's prompt thread ended"  # bootstrap/comfyui/exits.py reads it


def main(script: str, arguments: list[str]) -> None:
    """Run `script` as `python script arguments…` does."""
    here = os.path.dirname(os.path.abspath(__file__))
    if sys.path and os.path.abspath(sys.path[0]) == here:  # not so with PYTHONSAFEPATH
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
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
