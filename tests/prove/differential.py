"""Generated workflows, through the worker and straight to the same ComfyUI: both must run the same
ones, with the same number of results from each node.

    python -m tests.prove.differential [--workflows 2000] [--first 0]

They have broken branches (links to nowhere, missing files), nodes that nothing needs, savers with
the same inputs, nodes that expand into others, and results from ComfyUI's cache.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import requests

from demo.volume import ensure
from tests.conftest import BootedWorker, environment, furnished, ready_worker

Workflow = dict[str, dict[str, Any]]
SEED = 1116
_MISSING = "not-there.png"


def generated(number: int) -> Workflow:
    """The workflow of that number; the same each time."""
    dice = random.Random(SEED * 100_003 + number)
    nodes: Workflow = {}
    pictures = [_source(dice, nodes, number) for _ in range(dice.randint(1, 3))]
    for _ in range(dice.randint(0, 3)):
        pictures.append(_step(dice, nodes, dice.choice(pictures)))
    for _ in range(dice.randint(1, 3)):
        _output(dice, nodes, dice.choice(pictures), number)
    if dice.random() < 0.3:
        _add(nodes, "ImageInvert", image=["nowhere", 0])  # nothing needs it
    if dice.random() < 0.2:
        _add(nodes, "LoadImage", image=_MISSING)
    return nodes


def _add(nodes: Workflow, class_type: str, **inputs: Any) -> str:
    name = str(len(nodes) + 1)
    nodes[name] = {"class_type": class_type, "inputs": inputs}
    return name


def _source(dice: random.Random, nodes: Workflow, number: int) -> str:
    kind = dice.choice(("new", "new", "new", "same", "missing file", "nowhere"))
    if kind == "missing file":
        return _add(nodes, "LoadImage", image=_MISSING)
    if kind == "nowhere":
        return _add(nodes, "ImageInvert", image=["nowhere", 0])
    colour = number % 0xFFFFFF if kind == "new" else 77
    inputs = {"width": 16, "height": 16, "batch_size": dice.randint(1, 3), "color": colour}
    return _add(nodes, "EmptyImage", **inputs)


def _step(dice: random.Random, nodes: Workflow, picture: str) -> str:
    if dice.random() < 0.5:
        return _add(nodes, "ImageInvert", image=[picture, 0])
    return _add(nodes, "RepeatImageBatch", image=[picture, 0], amount=dice.randint(1, 2))


def _output(dice: random.Random, nodes: Workflow, picture: str, number: int) -> None:
    kind = dice.choice(("save", "save", "twice", "preview", "text", "expand"))
    if kind == "preview":
        _add(nodes, "PreviewImage", images=[picture, 0])
    elif kind == "text":
        _add(nodes, "PreviewAny", source=[picture, 0])
    elif kind == "expand":
        _add(nodes, "TestExpand", image=[picture, 0], deep=dice.randint(0, 2))
    else:
        for _ in range(2 if kind == "twice" else 1):
            _add(nodes, "SaveImage", images=[picture, 0], filename_prefix=f"d{number % 50}")


def direct(url: str, workflow: Workflow) -> Counter[str] | None:
    """Results by node; None if ComfyUI rejects the workflow, or a node fails."""
    body = {"prompt": workflow, "client_id": "differential"}
    answer = requests.post(f"{url}/prompt", json=body, timeout=60)
    if answer.status_code != 200:
        return None
    prompt = answer.json()["prompt_id"]
    while True:
        entry = requests.get(f"{url}/history/{prompt}", timeout=60).json().get(prompt)
        if entry is not None:
            break
        time.sleep(0.02)
    if entry["status"]["status_str"] != "success":
        return None
    return _by_node(entry["outputs"])


def _by_node(outputs: dict[str, Any]) -> Counter[str]:
    """Kept files and texts, or previews if there is nothing else, as the worker replies."""
    files = [
        (node, item)
        for node, output in outputs.items()
        for items in output.values()
        for item in items
        if isinstance(item, dict) and "filename" in item
    ]
    texts = [node for node, output in outputs.items() for _ in output.get("text", ())]
    kept = [node for node, item in files if item["type"] == "output"]
    shown = kept + texts or [node for node, _ in files]
    return Counter(shown)


def through(worker: BootedWorker, workflow: Workflow) -> Counter[str] | None:
    """The same from the worker's reply."""
    reply = worker.ask({"workflow": workflow, "max_wait": 60})
    if reply["status"] != "completed":
        return None
    return Counter(entry["node_id"] for entry in reply["results"])


def differences(worker: BootedWorker, numbers: Sequence[int]) -> list[str]:
    """Where the worker does not do what ComfyUI does; every fifth workflow is sent twice."""
    found: list[str] = []
    for number in numbers:
        workflow = generated(number)
        for _ in range(2 if number % 5 == 0 else 1):
            ours, theirs = through(worker, workflow), direct(worker.serving.comfyui.url, workflow)
            if ours != theirs:
                found.append(f"{number}: worker {ours}, ComfyUI {theirs}: {workflow}")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """0 if there is no difference."""
    parser = argparse.ArgumentParser(prog="tests.prove.differential", description=__doc__)
    parser.add_argument("--workflows", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0, help="the number of the first one")
    given = parser.parse_args(argv)
    demo = ensure()
    with tempfile.TemporaryDirectory() as folder:
        volume = furnished(demo, Path(folder) / "volume")
        with ready_worker(environment(demo, volume, Path(folder) / "work")) as worker:
            found = differences(worker, range(given.first, given.first + given.workflows))
    for line in found[:20]:
        print(line)
    print(f"{given.workflows} workflows, {len(found)} differences")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
