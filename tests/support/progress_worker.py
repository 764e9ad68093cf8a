"""A worker that reports each step of a job once the one before is on its way, and then replies. Run
as a script."""

from __future__ import annotations

from typing import Any

import runpod

from handler.sdk.progress import Progress
from tests.support.waiting import until


async def handler(job: dict[str, Any]) -> dict[str, Any]:
    progress = Progress(job)
    for stage, percent in job["input"]["steps"]:
        progress.update(stage, percent, model="m.safetensors")
        await until(lambda: progress._news is None)
    await progress.drain()
    progress.update("too late")
    return {"ok": True}


if __name__ == "__main__":
    runpod.serverless.start({"handler": handler})
