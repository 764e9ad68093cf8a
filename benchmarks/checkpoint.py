"""Checkpoints with real shapes and random weights, made once and kept in the demo's cache.

    python -m benchmarks.checkpoint sd15|sdxl       # prints the path

ComfyUI's CheckpointLoaderSimple accepts them: `sd15` is 2.1 GB, `sdxl` 6.9 GB.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from demo.cache import cache_folder, digest, entry, require_space
from demo.console import DemoError, step
from demo.volume import DemoVolume, ensure

WRITER = Path(__file__).with_name("checkpoint_writer.py")
# Bytes, rounded up.
SIZES = {"sd15": 2_200_000_000, "sdxl": 7_000_000_000}


def checkpoint(kind: str, demo: DemoVolume, env: Mapping[str, str] = os.environ) -> Path:
    """The file, created first if it is not in the cache (half a minute for 7 GB). Raises DemoError
    if the disk has no space or ComfyUI's classes have changed.
    """
    cache = cache_folder(env)
    key = digest(kind, WRITER.read_text(encoding="utf-8"))
    name = f"{kind}.safetensors"

    def build(folder: Path) -> None:
        require_space(cache, SIZES[kind], f"a checkpoint with {kind}'s shapes")
        with step(f"writing a checkpoint with {kind}'s shapes"):
            _write(kind, folder / name, demo)

    return entry(cache / f"checkpoint-{kind}-{key}", build) / name


def _write(kind: str, path: Path, demo: DemoVolume) -> None:
    done = subprocess.run(
        [str(demo.python), str(WRITER), kind, str(path)],
        cwd=demo.comfyui,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise DemoError(
            f"the checkpoint could not be written: {done.stderr.strip()[-600:]}",
            "if ComfyUI's classes have changed, adapt benchmarks/checkpoint_writer.py to them",
        )


if __name__ == "__main__":
    print(checkpoint(sys.argv[1], ensure()))
