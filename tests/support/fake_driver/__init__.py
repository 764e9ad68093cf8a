"""A fake NVIDIA driver in C, whose answers come from variables: see the sources beside this file.

    env = fake_driver(DEVICES="2", FAIL="cuMemAlloc_v2:2")

is an environment in which `libcuda.so.1` and `libnvidia-ml.so.1` are the fake ones. Needs a C
compiler (`apt install gcc`).
"""

from __future__ import annotations

import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

_HERE = Path(__file__).parent
_LIBRARIES = {"cuda": "libcuda.so.1", "nvml": "libnvidia-ml.so.1"}


def fake_driver(*libraries: str, **answers: str) -> dict[str, str]:
    """An environment with the named fake libraries (both by default) and these answers."""
    chosen = tuple(sorted(libraries or _LIBRARIES))
    return {
        "PATH": "/usr/bin:/bin",
        "LD_LIBRARY_PATH": str(_built(chosen)),
        **{f"CUDA_FAKE_{name}": value for name, value in answers.items()},
    }


@functools.cache
def _built(libraries: tuple[str, ...]) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler, "these tests need a C compiler: apt install gcc"
    keep = _folder()
    folder = Path(tempfile.mkdtemp(dir=keep.name))
    for name in libraries:
        source, target = _HERE / f"{name}.c", folder / _LIBRARIES[name]
        command = [compiler, "-shared", "-fPIC", "-O1", "-w", "-o", str(target), str(source)]
        subprocess.run(command, check=True)
    return folder


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """Removed when the interpreter ends."""
    return tempfile.TemporaryDirectory(prefix="fake-driver-")
