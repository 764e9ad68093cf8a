"""Which build of torch to install: a CPU build wherever one is to be had.

PyPI's torch for x86-64 Linux is the CUDA build, over 2 GB with what it needs; the CPU build is a
tenth of that.
"""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

from demo.console import say
from demo.packages import pip, would_install

CPU_INDEX = os.environ.get("TORCH_INDEX_URL", "https://download.pytorch.org/whl/cpu")
# An index that cannot be reached must not cost minutes.
_QUICK = ("--retries", "0", "--timeout", "10")


def install_torch(python: Path, requirement: str) -> None:
    """Install `requirement` (torch==…) into `python`'s environment."""
    if _is_cpu_build(python, requirement):
        pip(python, "install", requirement)
        return
    only_this = (*_QUICK, "--index-url", CPU_INDEX)
    if would_install(python, requirement, *only_this) is not None:
        pip(python, "install", requirement, *only_this, "--extra-index-url", CPU_INDEX)
        return
    say(f"{CPU_INDEX} cannot be reached: fetching PyPI's CUDA build of torch, over 2 GB")
    pip(python, "install", requirement)


def _is_cpu_build(python: Path, requirement: str) -> bool:
    """Would pip, as its user configured it, take a CPU build? So it is off x86-64 Linux."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return True
    found = would_install(python, requirement, *_QUICK)
    if found is None:
        return False
    version = str(found.get("metadata", {}).get("version", ""))
    address = str(found.get("download_info", {}).get("url", ""))
    return "+cpu" in version or "cpu" in address.rpartition("/")[2]
