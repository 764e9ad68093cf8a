"""How worker-comfyui runs a job: poll, socket, history, /view, base64."""

from __future__ import annotations

import json
import uuid
from typing import Any

import runpod
from websockets.sync.client import connect

from benchmarks.cold_start.peers.client import Client

_POLL_SECONDS = 0.05


def handle(job: dict[str, Any]) -> dict[str, Any]:
    """The job's images, once the socket says that it has ended."""
    client = Client()
    client.wait(_POLL_SECONDS)
    client_id = str(uuid.uuid4())
    address = client.url.replace("http://", "ws://")
    with connect(f"{address}/ws?clientId={client_id}", proxy=None, max_size=None) as socket:
        prompt_id = client.submit(job["input"]["workflow"], client_id)
        while not _is_end(socket.recv(), prompt_id):
            pass
    return client.images(client.history(prompt_id))


def _is_end(message: str | bytes, prompt_id: str) -> bool:
    if isinstance(message, bytes):
        return False
    event = json.loads(message)
    data = event.get("data", {})
    ended = event.get("type") == "executing" and data.get("node") is None
    failed = event.get("type") == "execution_error"
    return bool(ended or failed) and data.get("prompt_id") == prompt_id


if __name__ == "__main__":
    runpod.serverless.start({"handler": handle})
