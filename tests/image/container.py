"""A container of the image as a runtime starts it: its own processes and mounts, tini as PID 1.

buildah's chroot isolation has no PID namespace, and so no PID 1; `unshare` makes one. Everything
else, from the command to the environment, comes from the image.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil

from tests.support.waiting import wait_until
from tests.support.worker_process import WorkerProcess

WORKER = "/worker/.venv/bin/python"
# The network is the host's, where another ComfyUI may have 8188.
CPU = {"COMFYUI_ARGS": "--cpu", "COMFYUI_PORT": "0", "PACKAGES": "report"}
_SHARED = ("/dev", "/sys")


@dataclass(frozen=True)
class Container:
    """`root`: its files. `binds`: host folder → path in it, besides what the image has."""

    root: Path
    config: Mapping[str, Any]
    binds: Mapping[Path, str]

    def command(self, env: Mapping[str, str], *words: str) -> list[str]:
        """The command that starts it: the image's entry point with its command, or with `words`."""
        inside = ["chroot", str(self.root), *self._environment(env)]
        inside += [*self.config["Entrypoint"], *(words or self.config["Cmd"])]
        script = "\n".join(["set -e", *self._mounts(), f"exec {shlex.join(inside)}"])
        namespaces = ("--mount", "--pid", "--fork", "--kill-child")
        return ["unshare", *namespaces, "sh", "-c", script]

    def output(self, *words: str, env: Mapping[str, str] = MappingProxyType({})) -> str:
        """What the command `words` prints in it; AssertionError unless it exits with 0."""
        done = subprocess.run(
            self.command(env, *words), capture_output=True, text=True, timeout=180, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def health(self, worker: WorkerProcess, env: Mapping[str, str]) -> tuple[int, str]:
        """Exit code and output of the image's HEALTHCHECK, run in the running container as a
        runtime does."""
        kind, *words = self.config["Healthcheck"]["Test"]
        assert kind == "CMD"  # no shell
        enter = ["nsenter", f"--target={first_process(worker).pid}", "--mount", "--pid"]
        done = subprocess.run(
            [*enter, "chroot", str(self.root), *self._environment(env), *words],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, (done.stdout + done.stderr).strip()

    def _environment(self, env: Mapping[str, str]) -> list[str]:
        image = dict(pair.split("=", 1) for pair in self.config["Env"])
        home = {"HOME": "/root"}  # as runtimes add it
        merged = [f"{name}={value}" for name, value in {**home, **image, **env}.items()]
        return ["env", "-i", "-C", self.config["WorkingDir"], *merged]

    def _mounts(self) -> list[str]:
        for place in self.binds.values():
            (self.root / place.lstrip("/")).mkdir(parents=True, exist_ok=True)
        pairs = [(name, name) for name in _SHARED] + [(str(a), b) for a, b in self.binds.items()]
        bound = [("mount", "--rbind", source, f"{self.root}{place}") for source, place in pairs]
        return [
            shlex.join(words)
            for words in [("mount", "-t", "proc", "proc", f"{self.root}/proc"), *bound]
        ]


def first_process(worker: WorkerProcess) -> psutil.Process:
    """The container's PID 1, as this machine sees it, once it is tini."""
    outside = psutil.Process(worker.pid)
    wait_until(lambda: any(c.name() == "tini" for c in outside.children()))
    (first,) = outside.children()
    return first


def stop(worker: WorkerProcess) -> None:
    """SIGTERM to PID 1, as `docker stop` and Runpod send it."""
    os.kill(first_process(worker).pid, signal.SIGTERM)


def number_inside(process: psutil.Process) -> int:
    """The process's PID in its own namespace."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("NSpid:")]
    return int(line.split()[-1])


def words_of(processes: Sequence[psutil.Process]) -> list[str]:
    """Their command lines, for messages."""
    return [" ".join(process.cmdline()) for process in processes]
