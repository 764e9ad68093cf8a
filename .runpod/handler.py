"""The Hub looks for a file of this name. The container's command is `python -m handler`; this file
runs the same."""

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # else `handler` would be this file
    runpy.run_module("handler", run_name="__main__", alter_sys=True)
