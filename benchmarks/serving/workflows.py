"""The jobs (pure). Each has its own `seed`, by which ComfyUI's history identifies it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Workflow = dict[str, Any]


def work(seed: int, seconds: float, burn: bool = False) -> dict[str, Any]:
    """A job's input: `seconds` in ComfyUI, asleep or, with `burn`, using one core; then 1, 2, 4 or
    8 plain pictures of 64×64, depending on the seed, from up to two SaveImage nodes."""
    job = _saved("BenchmarkWork", seed=seed, seconds=seconds, size=64, burn=burn)
    count = (1, 2, 4, 8)[seed % 4]
    if count > 1:
        nodes = job["workflow"]
        nodes["2"]["inputs"]["images"] = ["3", 0]
        batch = {"image": ["1", 0], "amount": count - 1}
        nodes["3"] = {"class_type": "RepeatImageBatch", "inputs": batch}
        other = {"images": ["1", 0], "filename_prefix": "bench/other"}
        nodes["4"] = {"class_type": "SaveImage", "inputs": other}
    return job


def pictures(seed: int, size: int, count: int) -> dict[str, Any]:
    """A job's input: `count` pictures of `size`², which compress like generated ones."""
    return _saved("BenchmarkPictures", seed=seed, size=size, count=count)


def seed_of(workflow: Mapping[str, Any]) -> int | None:
    """The seed a workflow was made with; None for any other workflow."""
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
