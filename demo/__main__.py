"""`python -m demo venv|volume|env|run|clean-cache`: what the Makefile's targets call.

Runs with any Python from 3.10 on and the standard library alone.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys

from demo.cache import cache_folder
from demo.console import DemoError, say
from demo.environment import ensure_worker_venv
from demo.run import run
from demo.volume import DemoVolume, ensure

USAGE = "usage: python -m demo venv worker|dev | volume | env | run | clean-cache"


def exports(volume: DemoVolume) -> dict[str, str]:
    """The environment that makes a worker run on the demo volume."""
    return {
        "VOLUME_PATH": str(volume.path),
        "COMFYUI_PYTHON": str(volume.python),
        "COMFYUI_ARGS": "--cpu",
    }


def main(argv: list[str]) -> int:
    """Do one thing; 0 done, 1 failed and said why, 2 wrong use."""
    try:
        if argv in (["venv", "worker"], ["venv", "dev"]):
            ensure_worker_venv(with_dev_tools=argv[1] == "dev")
        elif argv == ["volume"]:
            print(ensure().path)
        elif argv == ["env"]:
            ensure_worker_venv(with_dev_tools=False)
            for name, value in exports(ensure()).items():
                print(f"export {name}={shlex.quote(value)}")
        elif argv == ["run"]:
            python = ensure_worker_venv(with_dev_tools=False)
            return run(python, exports(ensure()))
        elif argv == ["clean-cache"]:
            shutil.rmtree(cache_folder(os.environ), ignore_errors=True)
        else:
            print(USAGE, file=sys.stderr)
            return 2
    except DemoError as problem:
        say(f"FAILED: {problem}")
        return 1
    except KeyboardInterrupt:
        say("stopped")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
