"""Which build of torch to install: the demo runs on the CPU, and the CUDA build is over 2 GB.

On x86-64 Linux PyPI's torch is the CUDA build; everywhere else it is the CPU build already.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo.cache import require_space
from demo.console import DemoError, mb, say, step
from demo.packages import pip, would_install

DEFAULT_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
CPU_BYTES = 190_000_000
CPU_SPACE = 2_000_000_000
CUDA_BYTES = 2_500_000_000
CUDA_SPACE = 10_000_000_000
# Asking an index that cannot be reached must cost seconds, not pip's minutes of retries.
_ASK_QUICKLY = ("--timeout", "10", "--retries", "1")


@dataclass(frozen=True)
class Choice:
    """pip options for this build, and the bytes to fetch and to have free for it."""

    options: tuple[str, ...]
    described: str
    fetched: int
    space: int


def install_torch(python: Path, requirement: str, env: Mapping[str, str]) -> None:
    """Install the pinned torch (`torch==…`) without its dependencies, as a CPU build if possible.

    Raises DemoError when the disk is too small or pip fails.
    """
    choice = choose(python, requirement, env)
    require_space(python.parent, choice.space, f"{requirement} and what belongs to it")
    with step(f"installing {requirement}: {choice.described}, {mb(choice.fetched)} to fetch"):
        pip(python, "install", "--no-deps", *choice.options, requirement)


def choose(python: Path, requirement: str, env: Mapping[str, str]) -> Choice:
    """The build to install. Raises DemoError when a `TORCH_INDEX_URL` does not have it."""
    named_index = env.get("TORCH_INDEX_URL", "").strip()
    if named_index:
        chosen = _from_index(python, requirement, named_index)
        if chosen is None:
            raise DemoError(
                f"TORCH_INDEX_URL={named_index} has no {requirement} for this Python, or cannot "
                "be reached",
                "correct TORCH_INDEX_URL, or unset it to let the demo look elsewhere",
            )
        return chosen
    if not _pypi_has_cuda_build():
        return Choice((), "the CPU build", CPU_BYTES, CPU_SPACE)
    configured = would_install(python, requirement, *_ASK_QUICKLY)
    if configured is not None and is_cpu_build(configured):
        return Choice((), "a CPU build from pip's own sources", CPU_BYTES, CPU_SPACE)
    chosen = _from_index(python, requirement, DEFAULT_CPU_INDEX)
    if chosen is not None:
        return chosen
    say(f"PyTorch's CPU index cannot be used; continuing with the CUDA build, {mb(CUDA_BYTES)}.")
    say("  Smaller: set TORCH_INDEX_URL to an index that has CPU builds, or PIP_FIND_LINKS to a")
    say(f"  folder with a {requirement}+cpu wheel, and start again.")
    return Choice((), "the CUDA build", CUDA_BYTES, CUDA_SPACE)


def is_cpu_build(found: Mapping[str, Any]) -> bool:
    """Whether a distribution in pip's report is a CPU build, or a local wheel."""
    version = str(found["metadata"]["version"])
    url = str(found["download_info"]["url"])
    return version.endswith("+cpu") or url.startswith("file:")


def _from_index(python: Path, requirement: str, index: str) -> Choice | None:
    options = ("--index-url", index)
    with step(f"asking {index} for {requirement}"):
        if would_install(python, requirement, *options, *_ASK_QUICKLY) is None:
            return None
    return Choice(options, f"the build at {index}", CPU_BYTES, CPU_SPACE)


def _pypi_has_cuda_build() -> bool:
    return sys.platform == "linux" and platform.machine() in {"x86_64", "AMD64"}
