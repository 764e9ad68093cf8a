"""The contenders, and how each is started."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cold_start.contenders import (
    IMAGE_FIRST,
    PEERS,
    own_environment,
    peer_environment,
)
from benchmarks.serving.site import Site
from benchmarks.serving.timed import TIMES
from demo.environment import REPOSITORY
from tests.support.worker_process import WorkerProcess

_TIMED = "benchmarks.serving.timed"
_PEER = "benchmarks.cold_start.peers.image_first"
# For all: worker-comfyui leaves the SDK's log at DEBUG, which prints more for each job.
_QUIET = {"RUNPOD_LOG_LEVEL": "INFO"}

Env = Mapping[str, str]
# Site, environment and the file for the handler's times to a process that is not yet running.
Start = Callable[[Site, Env, Path | None], WorkerProcess]


@dataclass(frozen=True)
class Contender:
    """A way to process jobs."""

    key: str
    name: str
    start: Start


def ours(key: str, name: str, **settings: str) -> Contender:
    """This project's worker with these settings."""

    def start(site: Site, env: Env, times: Path | None) -> WorkerProcess:
        own = own_environment(site.volume, site.demo, site.work(key))
        every = {**env, **_QUIET, **own, **settings}
        if times is None:
            return WorkerProcess.module("handler", env=every, cwd=REPOSITORY)
        every[TIMES] = str(times)
        return WorkerProcess.module(_TIMED, "handler", env=every, cwd=REPOSITORY)

    return Contender(key, name, start)


def _start_peer(site: Site, env: Env, times: Path | None) -> WorkerProcess:
    results = ("--output-directory", str(site.peer_results))
    own = peer_environment(site.demo.python, site.comfyui, site.folder, *results)
    own["PEER_NO_CHECK"] = "yes"
    own["PEER_HANDLER"] = _PEER if times is None else f"{_TIMED} {_PEER}"
    every = {**env, **_QUIET, **own}
    if times is not None:
        every[TIMES] = str(times)
    return WorkerProcess(["sh", PEERS / "image_first.sh"], env=every, cwd=REPOSITORY)


OURS = ours("ours", "ours")
ONE_AT_A_TIME = ours("ours-one", "ours, `JOB_PREFETCH=0`", JOB_PREFETCH="0")
WORKER_COMFYUI = Contender("worker-comfyui", IMAGE_FIRST, _start_peer)
