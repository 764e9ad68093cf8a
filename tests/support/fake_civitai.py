"""Civitai as measured: no HEAD, a redirect to storage on another port that answers 400 when it is
shown the Authorization header, signatures that expire, and the API's JSON."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from tests.support.vicious_server import Served, ViciousServer


class FakeCivitai:
    """`url` is the API's base. `token` opens what is `locked`. Use as a context manager."""

    def __init__(self, token: str = "") -> None:
        self.front = ViciousServer()
        self.storage = ViciousServer()
        self.token = token
        self._signatures = 0

    def __enter__(self) -> FakeCivitai:
        self.front.__enter__()
        self.storage.__enter__()
        return self

    def __exit__(self, *_: Any) -> None:
        self.front.__exit__(None, None, None)
        self.storage.__exit__(None, None, None)

    @property
    def url(self) -> str:
        """The base to give to `Civitai`."""
        return self.front.url

    def publish(
        self,
        version: int,
        data: bytes,
        name: str = "m.safetensors",
        model_type: str = "LORA",
        locked: bool = False,
        **file: Any,
    ) -> None:
        """A version with one file."""
        stored = f"/signed/{version}"
        self.storage.serve(
            stored,
            data,
            disposition=f'attachment; filename="{name}"',
            needs=lambda headers: 400 if "authorization" in headers else None,
        )
        download = Served(b"", redirect=f"{self.storage.url}{stored}?X-Signature=s3cret-signature")
        if locked:
            download.needs = self._login
            download.body = json.dumps({"error": "Unauthorized"}).encode()
            download.headers = {"Content-Type": "application/json"}
        self.front.files[f"/api/download/models/{version}"] = download
        description = {
            "id": version,
            "model": {"name": "A model", "type": model_type},
            "files": [
                {
                    "id": version * 10,
                    "name": name,
                    "sizeKB": len(data) / 1024,
                    "type": "Model",
                    "primary": True,
                    "hashes": {"SHA256": hashlib.sha256(data).hexdigest().upper()},
                    "metadata": {"format": "SafeTensor", "fp": "fp16", "size": "pruned"},
                    **file,
                }
            ],
        }
        self._json(f"/api/v1/model-versions/{version}", description)
        self._json(f"/api/v1/models/{version // 10}", {"modelVersions": [{"id": version}]})

    def refuse(self, version: int, status: int, body: dict[str, Any] | None = None) -> None:
        """Answer `status` to whoever asks for a version."""
        self.front.files[f"/api/download/models/{version}"] = Served(
            b"",
            status=status,
            body=json.dumps(body or {"error": "no"}).encode(),
            headers={"Content-Type": "application/json"},
        )

    def _json(self, path: str, data: Any) -> None:
        self.front.serve(path, json.dumps(data).encode(), content_type="application/json")

    def _login(self, headers: dict[str, str]) -> int | None:
        return None if headers.get("authorization") == f"Bearer {self.token}" else 401
