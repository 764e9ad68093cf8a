"""`python -m benchmarks.serving.timed MODULE`: run a worker's module with its handler timed.

The handler that the module passes to the SDK is timed from call to return, the same way for every
contender; each job adds a line `job seconds` to the file `BENCHMARK_TIMES`.
"""

from __future__ import annotations

import inspect
import os
import runpy
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

TIMES = "BENCHMARK_TIMES"
Job = dict[str, Any]


def main(module: str) -> None:
    """Run `module` as `python -m` does."""
    import runpod

    start, times = runpod.serverless.start, Path(os.environ[TIMES])

    def start_timed(config: Mapping[str, Any]) -> None:
        start({**config, "handler": timed(config["handler"], times)})

    runpod.serverless.start = start_timed
    sys.argv = [module]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def timed(handler: Callable[[Job], Any], times: Path) -> Callable[[Job], Awaitable[Any]]:
    """`handler`, sync or async, with its seconds written to `times`."""

    async def handle(job: Job) -> Any:
        begun = time.monotonic()
        try:
            answer = handler(job)
            return await answer if inspect.isawaitable(answer) else answer
        finally:
            seconds = time.monotonic() - begun
            with times.open("a", encoding="utf-8") as file:
                file.write(f"{job['id']} {seconds:.6f}\n")

    return handle


def read_times(times: Path) -> dict[str, float]:
    """Seconds in the handler by job id."""
    lines = (line.split() for line in times.read_text(encoding="utf-8").splitlines())
    return {job: float(seconds) for job, seconds in lines}


if __name__ == "__main__":
    main(sys.argv[1])
