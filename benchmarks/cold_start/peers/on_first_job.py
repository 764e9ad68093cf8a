"""A handler that starts ComfyUI in place, on the volume, when the first job comes."""

from __future__ import annotations

import os
import subprocess
import time
import uuid
from typing import Any

import runpod

from benchmarks.cold_start.peers.client import Client

_POLL_SECONDS = 0.1


class Handler:
    """Runs jobs one after another on a ComfyUI that it starts itself."""

    def __init__(self) -> None:
        self._client = Client()
        self._process: subprocess.Popen[bytes] | None = None

    def handle(self, job: dict[str, Any]) -> dict[str, Any]:
        """The job's images; starts ComfyUI first if it is not running."""
        if self._process is None:
            command = [os.environ["PEER_PYTHON"], "main.py", *os.environ["PEER_FLAGS"].split()]
            self._process = subprocess.Popen(command, cwd=os.environ["PEER_COMFYUI"])
        self._client.wait(_POLL_SECONDS)
        prompt_id = self._client.submit(job["input"]["workflow"], str(uuid.uuid4()))
        while not (record := self._client.history(prompt_id)):
            time.sleep(_POLL_SECONDS)
        return self._client.images(record)


if __name__ == "__main__":
    runpod.serverless.start({"handler": Handler().handle})
