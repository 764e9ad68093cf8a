"""What a reader of safetensors touches first: found in a file's header, read before the rest."""

from __future__ import annotations

import ast
import json
import mmap
import os
import re
import subprocess
from pathlib import Path

import pytest

from bootstrap.core.page_cache import BLOCK, read_pages
from bootstrap.models import prefetch
from bootstrap.models.weights_file import LoadOrder, load_order
from demo.volume import DemoVolume
from tests.bootstrap.models.test_prefetch import PLENTY, forget, missing_in

PAGE = mmap.PAGESIZE
COUNT, EACH = 12, 16 * 1024 * 1024  # farther apart than any kernel reads ahead
# Opens a file as ComfyUI does (`load_torch_file`), and tells how often it waited for a page of it;
# done with another file first, so that only the file's own pages can be missing.
OPENING = """
import resource, sys
from safetensors import safe_open
for path in sys.argv[1:]:
    with safe_open(path, framework="pt", device="cpu") as file:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        waited = resource.getrusage(resource.RUSAGE_SELF).ru_majflt - before
print(waited)
"""


def safetensors_of(header: bytes, size: int) -> bytes:
    return len(header).to_bytes(8, "little") + header + bytes(size)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """12 tensors, all of them holes, not in the page cache; the header takes a page."""
    tensors = {
        f"t{i}": {"dtype": "U8", "shape": [EACH], "data_offsets": [i * EACH, (i + 1) * EACH]}
        for i in range(COUNT)
    }
    header = json.dumps(tensors | {"__metadata__": {"format": "pt"}}).encode().ljust(PAGE - 8)
    for name in ("model", "other"):
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(safetensors_of(header, 0))
        os.truncate(path, PAGE + COUNT * EACH)
    path = tmp_path / "model.safetensors"
    forget(path)
    if not missing_in(path):
        pytest.skip("this file system keeps its files in memory")
    return path


def order_of(path: Path) -> LoadOrder:
    with open(path, "rb") as file:
        return load_order(file.fileno(), path.stat().st_size)


def starts_of(path: Path) -> list[int]:
    return order_of(path).starts


def test_each_tensor_begins_where_the_header_says(model: Path) -> None:
    assert starts_of(model) == [PAGE + i * EACH for i in range(COUNT)]


def test_a_page_in_which_several_begin_is_one(tmp_path: Path) -> None:
    header = b'{"a":{"data_offsets":[0,8]},"b":{"data_offsets":[8,16]}}'
    (tmp_path / "small").write_bytes(safetensors_of(header, 16))
    assert starts_of(tmp_path / "small") == [0]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        b"\xff" * 100,
        safetensors_of(b"not json", 10),
        safetensors_of(b"[1, 2, 3]", 10),
        safetensors_of(b'{"a": 5}', 10),
        safetensors_of(b'{"a": {"data_offsets": []}}', 10),
        safetensors_of(b'{"a": {"data_offsets": ["x", 1]}}', 10),
        safetensors_of(b'{"a": {"data_offsets": [1e999, 1]}}', 10),
        safetensors_of(b'{"a": {"data_offsets": [99999999, 99999999]}}', 10),
        safetensors_of(b'{"a": {"data_offsets": [-99999, 1]}}', 10),
        safetensors_of(b"[" * 100_000, 10),
    ],
)
def test_what_is_not_safetensors_has_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "odd").write_bytes(content)
    assert order_of(tmp_path / "odd") == LoadOrder([], 0)


def waits_to_open(model: Path, demo: DemoVolume) -> int:
    files = (model.with_name("other.safetensors"), model)
    command = [str(demo.python), "-c", OPENING, *map(str, files)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_the_library_waits_for_nothing_once_they_are_read(model: Path, demo: DemoVolume) -> None:
    """ComfyUI's own safetensors; without them it waits, how often depends on the read-ahead."""
    assert waits_to_open(model, demo) > 0
    forget(model)
    with open(model, "rb") as file:
        read_pages(file.fileno(), starts_of(model))
    assert missing_in(model), "all was read, not the starts alone"
    assert waits_to_open(model, demo) == 0


def test_they_are_read_before_the_blocks(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[object] = []
    monkeypatch.setattr(prefetch, "read_pages", lambda _, offsets: read.extend(offsets))
    monkeypatch.setattr(prefetch, "read_block", lambda _, offset, size: read.append("block"))
    request = prefetch.Request([model], lambda: PLENTY, 1, in_turn=True)
    request.start()
    assert request.wait(10)
    assert read == starts_of(model) + ["block"] * (COUNT * EACH // BLOCK + 1)


def test_only_those_that_are_not_cached(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starts: list[int] = []
    with open(model, "rb") as file:
        os.pread(file.fileno(), BLOCK, 0)
    monkeypatch.setattr(prefetch, "read_pages", lambda _, offsets: starts.extend(offsets))
    request = prefetch.Request([model], lambda: PLENTY, 2, in_turn=True)
    request.start()
    assert request.wait(10)
    assert sorted(starts) == [s for s in starts_of(model) if s >= BLOCK]


def test_a_boot_which_has_time_reads_blocks_alone(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unwanted(_: int, offsets: list[int]) -> None:
        assert not offsets

    monkeypatch.setattr(prefetch, "read_pages", unwanted)
    request = prefetch.Request([model], lambda: PLENTY, 2)
    request.start()
    assert request.wait(10) and request.reading.read == model.stat().st_size


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Text encoder, VAE and diffusion model, in the order of most files; none of it cached."""
    names = ("cond_stage_model.a", "first_stage_model.a", "model.diffusion_model.a")
    tensors = {name: {"data_offsets": [i * EACH, (i + 1) * EACH]} for i, name in enumerate(names)}
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(safetensors_of(json.dumps(tensors).encode().ljust(PAGE - 8), 0))
    os.truncate(path, PAGE + len(names) * EACH)
    forget(path)
    return path


@pytest.mark.parametrize("in_turn", [True, False])
def test_the_diffusion_model_is_read_first(
    checkpoint: Path, in_turn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    size, read = checkpoint.stat().st_size, []
    monkeypatch.setattr(prefetch, "read_pages", lambda *_: None)
    monkeypatch.setattr(prefetch, "read_block", lambda _, offset, size: read.append(offset))
    request = prefetch.Request([checkpoint], lambda: PLENTY, 1, in_turn=in_turn)
    request.start()
    assert request.wait(10)
    model = 2 * EACH // BLOCK * BLOCK
    assert order_of(checkpoint).first == PAGE + 2 * EACH
    assert read == [*range(model, size, BLOCK), *range(0, model, BLOCK)]


def test_comfyui_loads_the_diffusion_model_first(demo: DemoVolume) -> None:
    tree = ast.parse((demo.comfyui / "comfy" / "sd.py").read_text(encoding="utf-8"))
    loader = next(
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name == "load_state_dict_guess_config"
    )
    steps = (r"\.load_model_weights\(", r"\bVAE\(sd=vae_sd", r"\.load_sd\(clip_sd")
    places = [re.search(step, ast.unparse(loader)) for step in steps]
    assert None not in places
    assert places == sorted(places, key=lambda place: place.start() if place else 0)


def test_the_library_writes_tensors_in_order_of_their_names(
    tmp_path: Path, demo: DemoVolume
) -> None:
    """So that the diffusion model lies last in a checkpoint."""
    writing = """
import sys, torch
from safetensors.torch import save_file
names = ("model.diffusion_model.out", "first_stage_model.a", "cond_stage_model.a")
save_file({name: torch.zeros(4096, dtype=torch.float16) for name in names}, sys.argv[1])
"""
    path = tmp_path / "written.safetensors"
    subprocess.run([str(demo.python), "-c", writing, str(path)], check=True)
    order = order_of(path)
    assert len(order.starts) > 1 and order.first // PAGE * PAGE == order.starts[-1]
