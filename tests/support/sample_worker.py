"""A worker that does what each job says, to see how the SDK handles it. Run as a script.

CONCURRENCY: jobs at a time. TROUBLE: "unfit" fails a fitness check while a child process runs,
"slow-check" makes it slow, "own-sigterm" installs a SIGTERM handler before the SDK starts.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import threading
import time
from typing import Any

import runpod

TROUBLE = os.environ.get("TROUBLE", "")
# The loops themselves: the id of a closed one may be reused.
_loops: dict[str, asyncio.AbstractEventLoop] = {}


async def handler(job: dict[str, Any]) -> Any:
    order = job["input"] or {}
    do = order.get("do", "show")
    if do == "return":
        return order["value"]
    if do == "raise":
        raise ValueError("no such model")
    if do in ("sleep", "sleep in a thread"):
        return await _sleep(do, job)
    if do == "progress":
        for step in order["steps"]:
            runpod.serverless.progress_update(job, step)
        await asyncio.sleep(order["seconds"])
        return {"ok": True}
    unspeakable: dict[str, Any] = {
        "bytes": b"\x89PNG",
        "surrogate": "\ud800",
        "nan": float("nan"),
        "large": "x" * order.get("size", 0),
    }
    return {"value": unspeakable[do]} if do in unspeakable else _show(job)


async def _sleep(do: str, job: dict[str, Any]) -> dict[str, float]:
    seconds = job["input"]["seconds"]
    cancelled = threading.Event()
    print(f"{job['id']} sleeps", flush=True)
    try:
        if do == "sleep":
            await asyncio.sleep(seconds)
        else:
            await asyncio.to_thread(_thread_sleep, job["id"], cancelled, seconds)
    except asyncio.CancelledError:
        print(f"{job['id']} was cancelled", flush=True)
        cancelled.set()
        raise
    return {"slept": seconds}


def _thread_sleep(job_id: str, cancelled: threading.Event, seconds: float) -> None:
    """Until its job is cancelled, or that long."""
    cancelled.wait(seconds)
    print(f"{job_id} thread went on", flush=True)


def _show(job: dict[str, Any]) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    return {
        "job": job,
        "main thread": threading.current_thread() is threading.main_thread(),
        "loop of the fitness check": _loops["fitness"] is loop,
        "loop of the first job": _loops.setdefault("job", loop) is loop,
    }


def check_fitness() -> None:
    _loops["fitness"] = asyncio.get_running_loop()
    if TROUBLE == "slow-check":
        print("checking", flush=True)
        time.sleep(60)
    if TROUBLE == "unfit":
        # stands in for ComfyUI: started before the check, in its own session
        subprocess.Popen(["sleep", "600"], start_new_session=True)
        raise RuntimeError("the GPU fell off the bus " + "!" * 300)


def main() -> None:
    if TROUBLE == "own-sigterm":
        signal.signal(signal.SIGTERM, lambda *_: print(f"own SIGTERM in {os.getpid()}", flush=True))
    runpod.serverless.register_fitness_check(check_fitness)
    concurrency = int(os.environ.get("CONCURRENCY", "1"))
    runpod.serverless.start(
        {"handler": handler, "concurrency_modifier": lambda current: concurrency}
    )
    print("start() returned", flush=True)


if __name__ == "__main__":
    main()
