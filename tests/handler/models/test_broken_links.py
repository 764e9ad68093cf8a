"""Models that are broken links, as templates and other mounts leave them on a volume."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from bootstrap.config import Settings
from bootstrap.volume import Layout
from handler.common.blocking import Calls
from handler.common.errors import Deadline, JobError
from handler.models.named_models import misses_a_model
from handler.models.on_demand import ModelSupply
from handler.sdk.progress import Progress

ELSEWHERE = "/workspace/storage/ckpt/c1.safetensors"


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    (tmp_path / "ComfyUI/models/checkpoints").mkdir(parents=True)
    (tmp_path / "ComfyUI/models/loras/flux").mkdir(parents=True)
    (tmp_path / "ComfyUI/models/loras/flux/style.safetensors").write_bytes(b"weights")
    return tmp_path


def bring(volume: Path, workflow: dict[str, Any]) -> None:
    layout = Layout(volume, True, volume / "ComfyUI")
    folders = (volume / "ComfyUI/models",)
    supply = ModelSupply(Settings(volume_path=volume), layout, folders, Calls.on(volume))

    async def brought() -> None:
        await supply.ensure_models(workflow, Deadline(30), Progress({}))

    asyncio.run(brought())


def loading(*names: str) -> dict[str, Any]:
    loaders = {
        str(n): {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": name}}
        for n, name in enumerate(names)
    }
    links = {f"i{n}": [n, 0] for n in loaders}
    return {**loaders, "9": {"class_type": "PreviewAny", "inputs": links}}


def broken(volume: Path, *names: str, leads: str = ELSEWHERE) -> JobError:
    for name in names:
        (volume / "ComfyUI/models/checkpoints" / name).symlink_to(leads)
    with pytest.raises(JobError) as caught:
        bring(volume, loading(*names))
    assert caught.value.code == "workflow.missing_model"
    return caught.value


def test_a_link_to_nowhere_is_reported_with_where_it_leads(volume: Path) -> None:
    error = broken(volume, "c1.safetensors", leads="../gone.safetensors")
    path = str(volume / "ComfyUI/models/checkpoints/c1.safetensors")
    assert path in error.message and "../gone.safetensors" in error.message
    assert f"rm {path}" in error.fix
    assert error.details["link"] == path and error.details["node_id"] == "0"


def test_a_link_by_another_mount_is_reported_with_the_one_that_holds(volume: Path) -> None:
    (volume / "storage/ckpt").mkdir(parents=True)
    (volume / "storage/ckpt/c1.safetensors").write_bytes(b"weights")
    error = broken(volume, "c1.safetensors")
    assert "ln -sfn ../../../storage/ckpt/c1.safetensors " in error.fix
    assert ELSEWHERE in error.message
    assert not misses_a_model(error), "the manifest need not bring what is there"


def test_all_of_them_are_reported_at_once(volume: Path) -> None:
    error = broken(volume, "c1.safetensors", "c2.safetensors")
    assert "c1.safetensors" in error.message and "c2.safetensors" in error.message
    assert [p["model"] for p in error.details["problems"]] == ["c1.safetensors", "c2.safetensors"]


def test_a_loader_that_nothing_uses_and_a_model_elsewhere_are_fine(volume: Path) -> None:
    (volume / "ComfyUI/models/checkpoints/c1.safetensors").symlink_to("nowhere")
    workflow = loading("c1.safetensors")
    del workflow["9"]
    bring(volume, workflow)
    bring(volume, loading("missing.safetensors"))


def test_backslashes_in_the_name_of_a_model_are_slashes(volume: Path) -> None:
    lora = {"class_type": "LoraLoaderModelOnly", "inputs": {"lora_name": "flux\\style.safetensors"}}
    stack = {
        "class_type": "X",
        "inputs": {"lora_1": {"on": True, "lora": "flux\\style.safetensors"}},
    }
    text = {"class_type": "Y", "inputs": {"text": "flux\\style of old"}}
    workflow: dict[str, Any] = {"1": lora, "2": stack, "3": text}
    bring(volume, workflow)
    assert workflow["1"]["inputs"] == {"lora_name": "flux/style.safetensors"}
    assert workflow["2"]["inputs"]["lora_1"]["lora"] == "flux/style.safetensors"
    assert workflow["3"]["inputs"] == {"text": "flux\\style of old"}


def test_a_file_that_has_a_backslash_in_its_name_keeps_it(volume: Path) -> None:
    (volume / "ComfyUI/models/loras/flux\\style.safetensors").write_bytes(b"weights")
    workflow = {"1": {"class_type": "X", "inputs": {"lora_name": "flux\\style.safetensors"}}}
    bring(volume, workflow)
    assert workflow["1"]["inputs"] == {"lora_name": "flux\\style.safetensors"}
