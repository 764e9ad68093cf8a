"""The inventory: every file once, in its category, with its type by its beginning."""

from __future__ import annotations

import json
import os
import struct
import threading
import tracemalloc
from pathlib import Path

import pytest

from bootstrap.core.concurrency import ByteSemaphore
from bootstrap.doctor.checks.models import check_models
from bootstrap.doctor.facts.inventory import gather_models, holdings_of
from bootstrap.doctor.facts.volume_places import further_folders
from bootstrap.models.weights_file import Examined, WeightsState, examine, sample_hash
from bootstrap.volume.categories import ALIASES, CATEGORIES, category_of, extension_of
from tests.support.model_folders import (
    HTML,
    REFUSAL,
    healthy,
    link,
    pickle,
    safetensors,
    write,
)

POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:31e35c80fc4829d14f90153f4c74cd59c90b779f6afe05a74cd6120b893f7e5b\n"
    b"size 6938078334\n"
)


def look(path: Path) -> Examined:
    return examine(str(path), path.stat().st_size, ByteSemaphore(1 << 20))


def raw_safetensors(path: Path, header: bytes, data: bytes = b"") -> Path:
    return write(path, struct.pack("<Q", len(header)) + header + data)


def test_categories_know_their_other_names() -> None:
    assert ALIASES["clip"] == ("text_encoders",) and ALIASES["text_encoders"] == ("clip",)
    assert ALIASES["unet"] == ("diffusion_models",) and "vae" not in ALIASES
    assert category_of("t2i_adapter") is CATEGORIES["controlnet"]
    assert category_of("Loras") is None
    assert CATEGORIES["loras"].accepts("X.SafeTensors") and not CATEGORIES["loras"].accepts("x.zip")
    assert CATEGORIES["diffusion_models"].accepts("x.gguf")
    assert not CATEGORIES["vae"].accepts("x.gguf")


@pytest.mark.parametrize("name", ["..x", ".x", "a.B", "a", "", "a.", "...", "a..b", " .b"])
def test_extension_is_that_of_splitext(name: str) -> None:
    assert extension_of(name) == os.path.splitext(name)[1].lower()


def test_complete_files_are_good(tmp_path: Path) -> None:
    found = look(safetensors(tmp_path / "x.safetensors", 640, "BF16"))
    assert found.state is WeightsState.GOOD and found.dtypes == (("BF16", 640),)
    assert look(pickle(tmp_path / "x.pth")).state is WeightsState.GOOD
    assert look(write(tmp_path / "old.ckpt", b"\x80\x02}q\x00.")).state is WeightsState.GOOD
    assert look(raw_safetensors(tmp_path / "none.sft", b"{}")).state is WeightsState.GOOD


@pytest.mark.parametrize(
    ("data", "state"),
    [
        (b"", WeightsState.EMPTY),
        (HTML, WeightsState.PAGE),
        (b"\xef\xbb\xbf\n <html>", WeightsState.PAGE),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", WeightsState.PAGE),
        (REFUSAL, WeightsState.JSON),
        (b"Entry not found", WeightsState.TEXT),
        (POINTER, WeightsState.POINTER),
        (bytes(200_000), WeightsState.DAMAGED),
        (b"\xff" * 64, WeightsState.DAMAGED),
        (b"\x01\x02\x03", WeightsState.TRUNCATED),
        (b"PK\x03\x04" + b"\1" * 60, WeightsState.MISLABELLED),
        (b"GGUF" + b"\1" * 60, WeightsState.MISLABELLED),
    ],
)
def test_what_is_not_safetensors(tmp_path: Path, data: bytes, state: WeightsState) -> None:
    assert look(write(tmp_path / "x.safetensors", data)).state is state


def test_truncated_in_header_and_in_data(tmp_path: Path) -> None:
    whole = safetensors(tmp_path / "x.safetensors", 1000)
    size = whole.stat().st_size
    for cut in (20, size - 1):
        os.truncate(whole, cut)
        found = look(whole)
        assert found.state is WeightsState.TRUNCATED
        assert found.expected is not None and found.expected > cut
        safetensors(whole, 1000)
    with open(whole, "ab") as file:
        file.write(b"more")
    assert (look(whole).state, look(whole).expected) == (WeightsState.TOO_LONG, size)


@pytest.mark.parametrize(
    "header",
    [
        b'{"a":',
        b"[1, 2]",
        b'{"a": {"dtype": "F16", "data_offsets": [0]}}',
        b'{"a": {"dtype": "F16", "data_offsets": [9, 3]}}',
        b'{"a": {"dtype": "F16", "data_offsets": ["0", "3"]}}',
        b'{"a":' * 5000,
    ],
)
def test_headers_that_make_no_sense(tmp_path: Path, header: bytes) -> None:
    assert look(raw_safetensors(tmp_path / "x.safetensors", header)).state is WeightsState.DAMAGED


def test_offsets_inside_metadata_are_text(tmp_path: Path) -> None:
    note = json.dumps({"fake": {"data_offsets": [0, 10**12]}})
    assert look(safetensors(tmp_path / "x.safetensors", note=note)).state is WeightsState.GOOD


def test_formats_under_each_others_names(tmp_path: Path) -> None:
    called_ckpt = safetensors(tmp_path / "x.ckpt")
    assert (look(called_ckpt).state, look(called_ckpt).detail) == (
        WeightsState.MISLABELLED,
        ".safetensors",
    )
    called_gguf = look(write(tmp_path / "x.gguf", b"\1\2\3\4" * 9))
    assert called_gguf.state is WeightsState.DAMAGED


def test_a_pickle_without_its_end_is_truncated(tmp_path: Path) -> None:
    path = pickle(tmp_path / "x.pth")
    os.truncate(path, path.stat().st_size - 30)
    assert look(path).state is WeightsState.TRUNCATED


def test_a_pointer_has_the_real_size(tmp_path: Path) -> None:
    assert look(write(tmp_path / "x.ckpt", POINTER)).expected == 6938078334


def test_a_file_that_is_gone_is_unreadable(tmp_path: Path) -> None:
    found = examine(str(tmp_path / "gone.safetensors"), 100, ByteSemaphore(100))
    assert found.state is WeightsState.UNREADABLE and found.detail == os.strerror(2)


def test_headers_of_one_gigabyte_need_bounded_memory(tmp_path: Path) -> None:
    """A sparse file whose header is said to have 100 MiB, and eight with real headers of 3 MiB."""
    huge = tmp_path / "checkpoints" / "huge.safetensors"
    write(huge, struct.pack("<Q", 99_000_000) + b'{"a')
    os.truncate(huge, 1 << 30)
    tensor = '"{:0200d}":{{"dtype":"F16","shape":[1],"data_offsets":[0,0]}}'
    header = ("{" + ",".join(tensor.format(i) for i in range(12_000)) + "}").encode()
    for i in range(8):
        raw_safetensors(tmp_path / "loras" / f"{i}.safetensors", header)
    tracemalloc.start()
    try:
        inventory = gather_models([tmp_path])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    states = {f.name: f.state for f in inventory.files}
    assert states.pop("huge.safetensors") is WeightsState.UNREAD
    assert set(states.values()) == {WeightsState.GOOD}
    assert peak < 160 << 20


def test_inventory_of_a_healthy_volume(tmp_path: Path) -> None:
    inventory = gather_models([healthy(tmp_path / "models")])
    assert inventory.complete and not inventory.problem_count
    holdings = {h.name: h for h in holdings_of(inventory)}
    assert {name: h.count for name, h in holdings.items()} == {
        "checkpoints": 1,
        "controlnet": 0,
        "insightface": 1,
        "loras": 1,
        "diffusion_models": 1,
        "upscale_models": 1,
        "vae": 1,
    }
    assert holdings["loras"].other_count == 1
    assert not holdings["insightface"].known
    assert {f.state for f in inventory.models} == {WeightsState.GOOD}


def test_bytes_are_counted_once_however_many_names_a_file_has(tmp_path: Path) -> None:
    real = safetensors(tmp_path / "models" / "unet" / "flux.safetensors", 5000)
    os.link(real, real.with_name("hard.safetensors"))
    link(tmp_path / "models" / "diffusion_models", "unet")
    link(tmp_path / "models" / "checkpoints" / "x.safetensors", "../unet/flux.safetensors")
    inventory = gather_models([tmp_path / "models"])
    assert inventory.size == real.stat().st_size
    assert len(inventory.models) == 5 and not inventory.same


def test_the_same_model_twice(tmp_path: Path) -> None:
    size = 2 << 20
    safetensors(tmp_path / "loras" / "a.safetensors", size)
    safetensors(tmp_path / "loras" / "copy of a.safetensors", size)
    safetensors(tmp_path / "loras" / "another of its kind.safetensors", size, fill=b"\2")
    safetensors(tmp_path / "loras" / "small1.safetensors", 10)
    safetensors(tmp_path / "loras" / "small2.safetensors", 10)
    (group,) = gather_models([tmp_path]).same
    assert [f.name for f in group] == ["a.safetensors", "copy of a.safetensors"]


def test_samples_reach_the_end(tmp_path: Path) -> None:
    data = bytearray(100_000)
    first = sample_hash(str(write(tmp_path / "a", bytes(data))), len(data))
    data[-1] = 1
    assert sample_hash(str(write(tmp_path / "b", bytes(data))), len(data)) != first
    assert sample_hash(str(write(tmp_path / "c", b"xy")), 2)


def test_links_that_lead_nowhere_are_listed(tmp_path: Path) -> None:
    link(tmp_path / "loras" / "gone.safetensors", "/nowhere/x.safetensors")
    link(tmp_path / "loras" / "round", ".")
    states = {f.name: f.state for f in gather_models([tmp_path]).files}
    assert states == {
        "gone.safetensors": WeightsState.BROKEN_LINK,
        "round": WeightsState.LOOPING_LINK,
    }


def test_without_headers_nothing_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    healthy(tmp_path)
    monkeypatch.setattr(os, "open", None)
    inventory = gather_models([tmp_path], most_headers=0)
    assert {f.state for f in inventory.models} == {WeightsState.UNREAD}


def test_a_light_look_opens_so_many_and_says_so(tmp_path: Path) -> None:
    inventory = gather_models([healthy(tmp_path)], most_headers=1)
    opened = [f for f in inventory.files if f.state is not WeightsState.UNREAD and f.is_weights]
    assert len(opened) == 1
    assert "models.unopened" in {f.code for f in check_models(inventory)}
    assert "models.unopened" not in {f.code for f in check_models(gather_models([tmp_path]))}


def test_a_volume_that_falls_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = healthy(tmp_path / "models")
    released = threading.Event()
    real = os.scandir

    def scandir(path: str) -> object:
        released.wait(30)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    inventory = gather_models([root], timeout=0.1)
    released.set()
    assert not inventory.complete and not inventory.files


def test_as_dict_is_bounded_json(tmp_path: Path) -> None:
    """Names as long and as strange as they can be, in more folders than are reported."""
    for i in range(90):
        folder = f"{i:03d}" + "漢" * 80
        for j in range(7):
            safetensors(tmp_path / folder / ("漢" * 75 + f"{j}.safetensors"), 1)
    text = json.dumps(gather_models([tmp_path]).as_dict())
    assert len(text) < 500_000
    assert json.loads(text)["categories_left_out"] == 30


def test_progress_counts_names(tmp_path: Path) -> None:
    seen: list[int] = []
    inventory = gather_models([healthy(tmp_path / "models")], progress=seen.append)
    assert seen[-1] == len(inventory.files) + len(inventory.folders)
    assert seen == sorted(seen)


def test_models_of_extra_model_paths_are_counted_in_their_category(tmp_path: Path) -> None:
    comfyui = tmp_path / "volume/ComfyUI"
    own = comfyui / "models"
    safetensors(own / "loras/a.safetensors", 640)
    a1111 = tmp_path / "volume/stable-diffusion-webui/models"
    safetensors(a1111 / "Lora/b.safetensors", 64)
    safetensors(a1111 / "Stable-diffusion/deep/c.safetensors", 128)
    text = (
        "a111:\n  base_path: ../stable-diffusion-webui\n  loras: models/Lora\n"
        "  checkpoints: models/Stable-diffusion\n  vae: models/VAE\n  custom_nodes: nodes\n"
        "own:\n  base_path: models\n  loras: loras\n"
    )
    write(comfyui / "extra_model_paths.yaml", text.encode())
    named = further_folders(comfyui)
    assert set(named.values()) == {"loras", "checkpoints"}
    found = gather_models([own], extra_roots=named)
    counts = {h.name: h.count for h in holdings_of(found) if h.count}
    assert counts == {"loras": 2, "checkpoints": 1}
    (finding,) = check_models(found)
    assert finding.code == "models.found" and finding.details["count"] == 3


def test_the_newer_file_is_read_by_a_comfyui_that_knows_it(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    write(tmp_path / "extra_model_paths.yaml", b"a:\n  loras: old\n")
    write(tmp_path / "extra_paths.yaml", b"a:\n  vae: new\n")
    write(tmp_path / "main.py", b"# reads extra_model_paths.yaml")
    assert further_folders(tmp_path) == {tmp_path / "old": "loras"}
    write(tmp_path / "main.py", b"for name in ('extra_paths.yaml', 'extra_model_paths.yaml'): ...")
    assert further_folders(tmp_path) == {tmp_path / "new": "vae"}


def test_a_linked_model_is_counted_once(tmp_path: Path) -> None:
    real = safetensors(tmp_path / "models/loras/a.safetensors", 640)
    (tmp_path / "ComfyUI/models/loras").mkdir(parents=True)
    (tmp_path / "ComfyUI/models/loras/a.safetensors").symlink_to(real)
    (tmp_path / "ComfyUI/models/more").symlink_to("loras")
    found = gather_models([tmp_path / "models", tmp_path / "ComfyUI/models"])
    assert found.as_dict()["models"] == 1
    assert [h.count for h in holdings_of(found) if h.name == "loras"] == [1]
    (finding,) = [f for f in check_models(found) if f.code == "models.found"]
    assert finding.details["count"] == 1 and finding.message.startswith("1 model,")
