"""The worker itself, but for a handler that blocks the loop for as many seconds as a job says, and
for a loop that may stand still for three seconds instead of ten."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import handler.__main__
from bootstrap.boot import health
from handler.jobs.worker import Worker

ALLOWED = 3.0


async def block(self: Worker, job: Mapping[str, Any]) -> dict[str, Any]:
    """What no handler should do."""
    time.sleep(job["input"]["seconds"])  # noqa: ASYNC251
    return {"blocked": job["input"]["seconds"]}


if __name__ == "__main__":
    health._ALLOWED = ALLOWED
    Worker.handle = block  # type: ignore[method-assign]
    handler.__main__.main()
