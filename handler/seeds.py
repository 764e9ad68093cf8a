"""Pure: `"seed": "random"` in a workflow -> a number that the reply tells, so that a picture one
likes can be made again."""

from __future__ import annotations

import secrets
from collections.abc import Callable

from handler.workflow import Workflow

WORD = "random"
# What every node takes: many count seeds in 32 bits, and JavaScript counts exactly up to 53.
_BITS = 32


def draw_seeds(
    workflow: Workflow, draw: Callable[[int], int] = secrets.randbits
) -> tuple[Workflow, dict[str, int]]:
    """The workflow with a number for each input `seed` or `…_seed` that is the word; the numbers
    by `NODE.INPUT`. `draw` gives a number of so many bits."""
    drawn: dict[str, int] = {}
    changed = dict(workflow)
    for node_id, node in workflow.items():
        inputs = node["inputs"]
        numbers = {n: draw(_BITS) for n in inputs if _is_seed(n) and inputs[n] == WORD}
        if numbers:
            changed[node_id] = {**node, "inputs": {**inputs, **numbers}}
            drawn |= {f"{node_id}.{name}": number for name, number in numbers.items()}
    return changed, drawn


def _is_seed(name: str) -> bool:
    return name == "seed" or name.endswith("_seed")
