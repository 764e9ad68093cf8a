"""A worker that tells its progress as each job asks, and replies at once. Run as a script."""

from __future__ import annotations

import asyncio
from typing import Any

import runpod

from handler.sdk.progress import Progress


async def handler(job: dict[str, Any]) -> dict[str, Any]:
    progress = Progress(job)
    for stage, percent, seconds in job["input"]["steps"]:
        progress.update(stage, percent, model="m.safetensors")
        await asyncio.sleep(seconds)
    await progress.drain()
    progress.update("too late")
    return {"ok": True}


if __name__ == "__main__":
    runpod.serverless.start({"handler": handler})
