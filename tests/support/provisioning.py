"""Small models, and provisioning contexts that fetch them from local servers."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

from bootstrap.models.download.progress import FileMeter
from bootstrap.models.download.remote import DownloadOptions
from bootstrap.models.manifest_entry import ModelSpec, read_entry
from bootstrap.models.provision import ProvisionContext, ProvisionResult, provision
from bootstrap.models.sources import Source, Sources
from bootstrap.models.sources.https import Https
from bootstrap.net.addresses import AddressPolicy
from tests.support.vicious_server import ViciousServer

MARKER = "tok3n-marker-Zq9"  # appears in no log, report or answer


def tensors(size: int, seed: int = 0) -> bytes:
    """A valid safetensors file with `size` bytes of tensor."""
    entry = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
    header = json.dumps({"weight": entry, "__metadata__": {"seed": str(seed)}}).encode()
    return len(header).to_bytes(8, "little") + header + random.Random(seed).randbytes(size)


def sha256(data: bytes) -> str:
    """Hex digits."""
    return hashlib.sha256(data).hexdigest()


def spec(url: str, name: str = "m.safetensors", directory: str = "loras", **more: Any) -> ModelSpec:
    """A parsed manifest entry."""
    entry = {"name": name, "url": url, "directory": directory, **more}
    wanted, complaints = read_entry(entry, "models[0]", allow_http=True)
    assert wanted is not None, complaints
    return wanted


def options(**more: Any) -> DownloadOptions:
    """For local servers, with short timeouts."""
    defaults: dict[str, Any] = {
        "policy": AddressPolicy(allow_private=True),
        "backoff": 0.01,
        "stall": 2.0,
        "attempts": 3,
    }
    return DownloadOptions(**{**defaults, **more})


def context(models: Path, *sources: Source, **more: Any) -> ProvisionContext:
    """A quiet context with short intervals."""
    defaults: dict[str, Any] = {
        "options": options(),
        "make_meter": FileMeter,
        "beat": 0.05,
        "stale": 0.5,
        "look_every": 0.02,
    }
    return ProvisionContext(models, Sources((*sources, Https())), **{**defaults, **more})


def bring(models: Path, wanted: ModelSpec, **more: Any) -> ProvisionResult:
    """Provision one model."""
    (result,) = provision([wanted], context(models, **more))
    return result


def bytes_asked(server: ViciousServer) -> int:
    """How many different bytes of its only file `server` was asked for."""
    asked, beyond = 0, 0
    ranges = [headers["range"][6:].split("-") for _, headers in server.seen if "range" in headers]
    for first, last in sorted((int(first), int(last)) for first, last in ranges):
        asked += max(last + 1 - max(first, beyond), 0)
        beyond = max(beyond, last + 1)
    return asked


def visible(models: Path) -> list[str]:
    """All files under `models` except receipts, relative."""
    return sorted(
        str(path.relative_to(models))
        for path in models.rglob("*")
        if path.is_file() and ".receipts" not in path.parts
    )
