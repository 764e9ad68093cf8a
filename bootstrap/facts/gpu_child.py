"""Runs `gpu_probe.py` as a child process that cannot hang its parent."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

# How long a killed child gets to disappear; one in an uninterruptible call does not.
KILL_PATIENCE = 0.5
_PROBE = Path(__file__).with_name("gpu_probe.py")
# The child needs to find libraries and see the same devices; no secret reaches it.
_PASSED = ("PATH", "LD_LIBRARY_PATH", "HOME", "LANG", "TMPDIR")
_PASSED_PREFIXES = ("CUDA_", "NVIDIA_")


@dataclass(frozen=True)
class ProbeRun:
    """The lines the child wrote, whether it had to be killed, its exit status, seconds taken."""

    lines: tuple[dict[str, Any], ...]
    silent: bool
    status: int | None
    seconds: float


def run_probe(env: Mapping[str, str], touch: bool, timeout: float) -> ProbeRun:
    """Ask, for at most `timeout` seconds. Raises OSError when no process can be started."""
    passed = {k: v for k, v in env.items() if k in _PASSED or k.startswith(_PASSED_PREFIXES)}
    command = [sys.executable, "-I", "-S", str(_PROBE), *(["--touch"] if touch else [])]
    started = time.monotonic()
    with _answer_file() as answer:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=answer,
            stderr=subprocess.DEVNULL,
            env=passed,
            start_new_session=True,
        )
        silent = _wait_or_kill(child, timeout)
        seconds = time.monotonic() - started
        answer.seek(0)
        return ProbeRun(_lines(answer.read(1 << 20)), silent, child.returncode, round(seconds, 3))


def _answer_file() -> IO[bytes]:
    """Where the child writes. A pipe could fill up, and reading one could hang with the child."""
    try:
        return os.fdopen(os.memfd_create("gpu-probe"), "w+b")
    except OSError:
        return tempfile.TemporaryFile()


def _wait_or_kill(child: subprocess.Popen[bytes], timeout: float) -> bool:
    """Whether the child had to be killed. One that survives that is left to the kernel."""
    try:
        child.wait(timeout)
        return False
    except subprocess.TimeoutExpired:
        child.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(KILL_PATIENCE)
    return True


def _lines(answer: bytes) -> tuple[dict[str, Any], ...]:
    found = []
    for line in answer.decode("utf-8", "replace").splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue  # the last line of a child that was killed in mid-sentence
        if isinstance(value, dict):
            found.append(value)
    return tuple(found)
