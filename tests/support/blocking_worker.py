"""The worker itself, except that its handler blocks the event loop until its job's FIFO is written,
and that the loop may stall for 3 seconds instead of 10."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from typing import Any

import handler.__main__
from bootstrap.boot import health
from handler.jobs.worker import Worker

ALLOWED = 3.0


async def block(self: Worker, job: Mapping[str, Any]) -> dict[str, Any]:
    """What no handler should do."""
    with open(job["input"]["fifo"]) as fifo:  # noqa: ASYNC230
        return {"blocked": fifo.read(), "collects_garbage": gc.isenabled()}


if __name__ == "__main__":
    health._ALLOWED = ALLOWED
    Worker.handle = block  # type: ignore[method-assign]
    handler.__main__.main()
