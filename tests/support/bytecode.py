"""Bytecode for copies of the demo's ComfyUI, as on any volume where it has run before. Without it
each start compiles 370 modules, which takes two seconds of processor time."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from demo.cache import digest, entry
from demo.volume import DemoVolume

_COMPILE = """
import importlib.util, os, py_compile, sys
source, place = sys.argv[1:]
for folder, _, names in os.walk(source):
    for name in names:
        path = os.path.join(folder, name)
        if name.endswith(".py") and "tests" not in path[len(source):]:
            made = os.path.join(place, os.path.relpath(path, source))
            py_compile.compile(path, importlib.util.cache_from_source(made), path)
"""


def add_bytecode(demo: DemoVolume, comfyui: Path) -> None:
    """Add it to a copy whose files have their original times."""
    key = digest(_COMPILE, str(demo.path), str(demo.python))

    def build(place: Path) -> None:
        command = [str(demo.python), "-c", _COMPILE, str(demo.comfyui), str(place)]
        subprocess.run(command, check=True, timeout=120)

    compiled = entry(demo.path.with_name(f"bytecode-{key}"), build)
    shutil.copytree(compiled, comfyui, dirs_exist_ok=True)
