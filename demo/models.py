"""`make demo-models`: a manifest with a model of each kind, provisioned from local servers."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bootstrap.core.redact import Secret
from bootstrap.core.text import size_text
from bootstrap.models.cli import main as models
from bootstrap.models.sources import Sources
from bootstrap.models.sources.civitai import Civitai
from bootstrap.models.sources.https import Https
from bootstrap.models.sources.huggingface import HuggingFace
from demo.console import DemoError, say
from demo.model_servers import COMMIT, ModelServers
from demo.taesd import write_whole_vae

_TOKEN = "demo-token"
_THERE = "already_there.safetensors"


def run_models_demo() -> None:
    """Plan, pull, pull again without any server, verify. Raises DemoError."""
    volume = Path(tempfile.mkdtemp(prefix="demo-models-"))
    try:
        with ModelServers(_TOKEN) as servers:
            sources = _prepare(volume, servers)
            _run("What the manifest lists, and what would be fetched", "plan", sources)
            _run("Fetch it", "pull", sources)
            asked = servers.requests
        say(f"The servers are stopped now; they answered {asked} requests.")
        begun = time.monotonic()
        _run("Fetch again: everything is there, no server is needed", "pull", sources)
        say(f"  that took {1000 * (time.monotonic() - begun):.0f} ms")
        _run("Hash what is there", "verify", sources)
        for path in sorted(p for p in (volume / "models").rglob("*.safetensors")):
            say(f"  {path.relative_to(volume)}  {size_text(path.stat().st_size)}")
    finally:
        shutil.rmtree(volume, ignore_errors=True)


def _prepare(volume: Path, servers: ModelServers) -> Sources:
    """Set up the volume with its manifest and one model; the sources, which use `servers`."""
    os.environ |= {
        "VOLUME_PATH": str(volume),
        "HF_ENDPOINT": servers.url,
        "ALLOW_PRIVATE_DOWNLOAD_URLS": "true",
        "DOWNLOAD_CONNECTIONS": "4",
    }
    os.environ.pop("MODELS_MANIFEST", None)
    write_whole_vae(volume / "models" / "vae" / _THERE)
    entries: list[dict[str, Any]] = [
        {
            "url": servers.hub("demo/sky", "split_files/checkpoints/sky.safetensors", _model(24)),
            "directory": "checkpoints",
            "revision": COMMIT,
        },
        {
            "name": "ink.safetensors",
            "url": servers.civitai(4711, "ink.safetensors", _model(9)),
            "directory": "loras/style",
        },
        {"url": servers.plain("/cat.safetensors", _model(6)), "directory": "text_encoders"},
        {
            "url": servers.plain("/edges.safetensors", _model(3)),
            "directory": "controlnet",
            "optional": True,
        },
        {"name": _THERE, "url": f"{servers.url}/never-asked", "directory": "vae"},
    ]
    manifest = {"version": 1, "models": entries}
    (volume / "models.json").write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
    say(f"the manifest, {volume / 'models.json'}:\n{json.dumps(manifest, indent=2)}")
    return Sources((HuggingFace(None, servers.url), Civitai(Secret(_TOKEN), servers.url), Https()))


def _run(what: str, command: str, sources: Sources) -> None:
    print(file=sys.stderr)
    say(f"{what}\n$ comfyui-worker models {command}")
    code = models([command], sys.stderr, sources)
    if code != 0:
        raise DemoError(
            f"`models {command}` exited with {code}", "read its output above; please report it"
        )


def _model(megabytes: int) -> bytes:
    """A safetensors file of random bytes."""
    size = megabytes * 1_000_000
    tensor = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
    header = json.dumps({"weight": tensor}).encode()
    return struct.pack("<Q", len(header)) + header + random.Random(megabytes).randbytes(size)
