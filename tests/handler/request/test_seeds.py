"""Seeds drawn for a workflow."""

from __future__ import annotations

import json
import secrets

import pytest

from handler.request.references import draw_seeds
from tests.conftest import BootedWorker
from tests.end_to_end.test_worker import plain

NODES = {
    "3": {"class_type": "KSampler", "inputs": {"seed": "random", "sampler_name": "random"}},
    "4": {"class_type": "RandomNoise", "inputs": {"noise_seed": "random", "x": ["3", 0]}},
    "5": {"class_type": "KSampler", "inputs": {"seed": 7}},
    "6": {"class_type": "Text", "inputs": {"text": "random", "seedling": "random"}},
}


def test_only_seeds_that_are_the_word_are_drawn_and_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(secrets, "randbits", lambda bits: bits)
    before = json.dumps(NODES)
    changed, drawn = draw_seeds(NODES)
    assert drawn == {"3.seed": 32, "4.noise_seed": 32}
    assert changed["3"]["inputs"] == {"seed": 32, "sampler_name": "random"}
    assert changed["4"]["inputs"] == {"noise_seed": 32, "x": ["3", 0]}
    assert (changed["5"], changed["6"]) == (NODES["5"], NODES["6"])
    assert json.dumps(NODES) == before


def test_each_draw_is_another() -> None:
    assert len({draw_seeds(NODES)[1]["3.seed"] for _ in range(20)}) > 15


def test_the_reply_tells_what_was_drawn(worker: BootedWorker) -> None:
    """ComfyUI refuses a word where a node expects a number."""
    nodes = {
        "1": {
            "class_type": "KSampler",
            "inputs": {
                "seed": "random", "steps": 1, "cfg": 1.0, "sampler_name": "euler",
                "scheduler": "normal", "denoise": 1.0,
            },
        },
        **plain_from("9"),
    }  # fmt: skip
    reply = worker.ask({"workflow": nodes})
    assert 0 <= reply["seeds"]["1.seed"] < 2**32
    assert reply["status"] == "completed", "the sampler leads nowhere, so it does not run"
    assert "seeds" not in worker.ask({"workflow": plain(color=3)})


def plain_from(prefix: str) -> dict[str, dict[str, object]]:
    """EmptyImage → SaveImage under other ids."""
    nodes = plain()
    nodes["2"]["inputs"]["images"] = [f"{prefix}1", 0]
    return {f"{prefix}{node_id}": node for node_id, node in nodes.items()}
