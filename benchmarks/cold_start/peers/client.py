"""ComfyUI's HTTP API as simple handlers use it, with a new connection for each call."""

from __future__ import annotations

import base64
import os
import time
from typing import Any

import requests


class Client:
    """ComfyUI at `PEER_URL`."""

    def __init__(self) -> None:
        self.url = os.environ["PEER_URL"]

    def wait(self, pause: float) -> None:
        """Poll every `pause` seconds until it answers; the timeout is the benchmark's."""
        while True:
            try:
                if requests.get(f"{self.url}/", timeout=5).status_code == 200:
                    return
            except requests.RequestException:
                pass
            time.sleep(pause)

    def submit(self, workflow: Any, client_id: str) -> str:
        """The prompt's id. Raises requests.HTTPError if ComfyUI rejects it."""
        body = {"prompt": workflow, "client_id": client_id}
        answer = requests.post(f"{self.url}/prompt", json=body, timeout=30)
        answer.raise_for_status()
        return str(answer.json()["prompt_id"])

    def history(self, prompt_id: str) -> dict[str, Any]:
        """The prompt's record, empty while it is not done."""
        answer = requests.get(f"{self.url}/history/{prompt_id}", timeout=30)
        answer.raise_for_status()
        found: dict[str, Any] = answer.json().get(prompt_id, {})
        return found

    def images(self, record: dict[str, Any]) -> dict[str, Any]:
        """All images of a record, fetched from /view, as base64."""
        found = []
        for output in record["outputs"].values():
            for image in output.get("images", ()):
                where = {key: image[key] for key in ("filename", "subfolder", "type")}
                answer = requests.get(f"{self.url}/view", params=where, timeout=60)
                answer.raise_for_status()
                data = base64.b64encode(answer.content).decode()
                found.append({"filename": image["filename"], "type": "base64", "data": data})
        return {"images": found}
