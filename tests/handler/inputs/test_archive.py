"""Zip files of requests: their files by the names that a workflow uses, or why there are none."""

from __future__ import annotations

import base64
import copy
from pathlib import Path
from typing import Any

import pytest

from handler.common.errors import JobError
from handler.request.fields import read_files
from tests.bootstrap.core.test_archive import PNG, packed
from tests.handler.inputs.test_inputs import job_inputs, materialize


def test_a_workflow_names_what_is_in_it_by_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "input"
    folder.mkdir()
    data = base64.b64encode(packed(("1.png", PNG), ("2.png", PNG))).decode()
    files = list(read_files(None, [{"name": "frames.zip", "data": data, "unpack": True}]))
    nodes: dict[str, Any] = {
        "1": {"class_type": "VHS_LoadImages", "inputs": {"directory": "frames"}},
        "2": {"class_type": "LoadImage", "inputs": {"image": "frames/2.png"}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "frames"}},
        "4": {"class_type": "LoadImage", "inputs": {"image": "1.png"}},
    }
    inputs = job_inputs(folder)
    materialize(inputs, files, nodes)
    place = nodes["1"]["inputs"]["directory"]
    assert place != "frames" and (folder / place / "1.png").read_bytes() == PNG
    assert (folder / nodes["2"]["inputs"]["image"]).read_bytes() == PNG
    assert nodes["3"]["inputs"]["text"] == "frames", "a prompt is not a folder"
    assert nodes["4"]["inputs"]["image"] == f"{place}/1.png", "as cog's workflows name them"
    assert not list(folder.glob("*.zip"))
    inputs.remove()
    assert list(folder.rglob("*.png")) == []


def test_a_plain_name_counts_only_where_a_file_belongs(tmp_path: Path) -> None:
    folder = tmp_path / "input"
    folder.mkdir()
    names = ("a.png", "normal", "model.safetensors", "frames/deep.png")
    data = base64.b64encode(packed(*((name, PNG) for name in names))).decode()
    files = list(read_files(None, [{"name": "x.zip", "data": data, "unpack": True}]))
    others: dict[str, Any] = {
        "2": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "model.safetensors"}},
        "3": {"class_type": "KSampler", "inputs": {"scheduler": "normal"}},
        "4": {"class_type": "CLIPTextEncode", "inputs": {"text": "normal"}},
        "5": {"class_type": "Mine", "inputs": {"image": "a.png", "mode": "normal"}},
    }
    nodes = copy.deepcopy(others)
    nodes["1"] = {"class_type": "LoadImage", "inputs": {"image": "frames/deep.png [input]"}}
    nodes["6"] = {"class_type": "Mine", "inputs": {"latent": "x/model.safetensors"}}
    materialize(job_inputs(folder), files, nodes)
    place, end = nodes["5"]["inputs"].pop("image").rsplit("/", 1)
    assert end == "a.png" and others["5"]["inputs"].pop("image")
    assert {key: nodes[key] for key in others} == others
    assert nodes["1"]["inputs"]["image"] == f"{place}/frames/deep.png [input]"
    assert nodes["6"]["inputs"]["latent"] == f"{place}/model.safetensors"


def test_a_file_that_was_sent_goes_before_one_in_an_archive(tmp_path: Path) -> None:
    folder = tmp_path / "input"
    folder.mkdir()
    data = base64.b64encode(packed(("a.png", PNG))).decode()
    own = base64.b64encode(PNG + b"own").decode()
    given = [{"name": "f.zip", "data": data, "unpack": True}, {"name": "a.png", "data": own}]
    nodes: dict[str, Any] = {"1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}}}
    materialize(job_inputs(folder), list(read_files(None, given)), nodes)
    assert (folder / nodes["1"]["inputs"]["image"]).read_bytes() == PNG + b"own"


def test_a_bad_archive_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = tmp_path / "input"
    folder.mkdir()
    data = base64.b64encode(packed(("1.png", PNG), ("../2.png", PNG))).decode()
    files = list(read_files(None, [{"name": "f.zip", "data": data, "unpack": True}]))
    with pytest.raises(JobError) as caught:
        materialize(job_inputs(folder), files, {})
    assert caught.value.code == "input.bad_archive" and caught.value.fix
    assert list(folder.rglob("*")) == []


def test_one_that_unpacks_to_more_than_may_come_in_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "input"
    folder.mkdir()
    data = base64.b64encode(packed(("a", b"\0" * 3_000_000))).decode()
    files = list(read_files(None, [{"name": "f.zip", "data": data, "unpack": True}]))
    with pytest.raises(JobError) as caught:
        materialize(job_inputs(folder, max_input_mb=1.0), files, {})
    assert caught.value.code == "input.too_large" and "f.zip" in caught.value.message
    assert list(folder.rglob("*")) == []
