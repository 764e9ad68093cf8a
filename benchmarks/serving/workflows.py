"""Pure: the jobs. Each has a `seed` of its own, by which ComfyUI's history is read back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Workflow = dict[str, Any]


def work(seed: int, seconds: float) -> dict[str, Any]:
    """A job's input: `seconds` in ComfyUI, a plain picture of 64×64."""
    return _saved("BenchmarkWork", seed=seed, seconds=seconds, size=64)


def pictures(seed: int, size: int, count: int) -> dict[str, Any]:
    """A job's input: `count` pictures of `size`², which compress as generated ones do."""
    return _saved("BenchmarkPictures", seed=seed, size=size, count=count)


def seed_of(workflow: Mapping[str, Any]) -> int | None:
    """The seed a workflow was made with; None for somebody else's."""
    for node in workflow.values():
        if str(node.get("class_type", "")).startswith("Benchmark"):
            return int(node["inputs"]["seed"])
    return None


def _saved(kind: str, **inputs: Any) -> dict[str, Any]:
    saved = {"images": ["1", 0], "filename_prefix": "bench"}
    workflow: Workflow = {
        "1": {"class_type": kind, "inputs": inputs},
        "2": {"class_type": "SaveImage", "inputs": saved},
    }
    return {"workflow": workflow}
