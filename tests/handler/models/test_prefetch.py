"""A job's model files: found below ComfyUI's models folder, read ahead, remembered."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bootstrap.models.prefetch import ReadAhead, UsageRecord
from handler.models.prefetch import JobPrefetch, ModelPrefetcher
from tests.bootstrap.models.test_prefetch import PLENTY, forget


def loading(**names: str) -> dict[str, Any]:
    """A workflow with one loader for each `class=file`."""
    inputs = {"CheckpointLoaderSimple": "ckpt_name", "VAELoader": "vae_name", "MyNode": "thing"}
    return {
        str(number): {"class_type": cls, "inputs": {inputs[cls]: name}}
        for number, (cls, name) in enumerate(names.items())
    }


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A models folder with a few files."""
    folder = tmp_path / "volume/models"
    for name in ("checkpoints/sub/a.safetensors", "vae/v.safetensors", "odd/x.pth"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(os.urandom(100_000))
        forget(folder / name)
    return folder


def begun(
    models: Path, workflow: dict[str, Any], keep: bool = False
) -> tuple[ModelPrefetcher, JobPrefetch]:
    """A job's weights, all read."""
    recent = UsageRecord(models.parent, "ep")
    weights = ModelPrefetcher(ReadAhead(lambda: PLENTY), recent, models, keep)
    job = weights.begin(workflow)
    assert job.wait(30)
    return weights, job


def test_named_files_are_found_read_and_reported(models: Path) -> None:
    workflow = loading(
        CheckpointLoaderSimple="sub/a.safetensors", VAELoader="v.safetensors", MyNode="x.pth"
    )
    _, job = begun(models, workflow)
    found = [str(path.relative_to(models)) for path in job.files]
    assert found == ["checkpoints/sub/a.safetensors", "vae/v.safetensors", "odd/x.pth"]
    assert job.timings()["read_ahead"]["read"] == 300_000


def test_a_windows_path_is_found(models: Path) -> None:
    _, job = begun(models, loading(CheckpointLoaderSimple="sub\\a.safetensors"))
    assert len(job.files) == 1


def test_what_is_in_memory_is_not_worth_a_word(models: Path) -> None:
    (models / "vae/v.safetensors").read_bytes()
    _, job = begun(models, loading(VAELoader="v.safetensors"))
    assert job.timings() == {}


def test_what_a_job_interrupted_is_read_on_when_it_ends(models: Path) -> None:
    looked = threading.Semaphore(0)

    def likely() -> Iterator[Path]:
        looked.release()
        go_on.wait(30)
        yield from ()

    class Again:
        def __iter__(self) -> Iterator[Path]:
            return likely()

    go_on, ahead = threading.Event(), ReadAhead(lambda: PLENTY)
    ahead.start(Again())
    assert looked.acquire(timeout=10)
    weights = ModelPrefetcher(ahead, UsageRecord(models.parent, "ep"), models, keep_workflow=False)
    job = weights.begin(loading(VAELoader="v.safetensors"))
    assert job.wait(30)
    go_on.set()
    job.end()
    assert looked.acquire(timeout=10), "the boot's files are gone through again"


def test_a_file_is_read_where_comfyui_finds_it_first(models: Path) -> None:
    workflow = {"1": {"class_type": "UNETLoader", "inputs": {"unet_name": "u.safetensors"}}}
    later, first = (models / folder / "u.safetensors" for folder in ("unet", "diffusion_models"))
    for place in (later, first):
        place.parent.mkdir()
    later.write_bytes(b"weights")
    weights, job = begun(models, workflow)
    assert job.files == [later]
    first.write_bytes(b"weights")
    job = weights.begin(workflow)
    assert job.wait(30) and job.files == [first]


def test_a_missing_file_is_left_to_comfyui(models: Path) -> None:
    _, job = begun(models, loading(VAELoader="none.safetensors"))
    assert job.files == []


def test_a_workflow_without_models_asks_for_nothing(models: Path) -> None:
    weights = ModelPrefetcher(
        ReadAhead(lambda: PLENTY), UsageRecord(models.parent, None), models, False
    )
    job = weights.begin(loading())
    assert job.wait(0) and job.files == [] and job.timings() == {}


@pytest.mark.parametrize("keep", [True, False])
def test_a_good_job_is_remembered_its_workflow_only_on_demand(models: Path, keep: bool) -> None:
    workflow = loading(VAELoader="v.safetensors")
    weights, job = begun(models, workflow, keep)
    weights.record_use(job, workflow)
    recent = UsageRecord(models.parent, "ep")
    assert recent.models() == ["vae/v.safetensors"]
    assert recent.workflow() == (workflow if keep else None)


def test_a_model_that_moved_is_found_again(models: Path) -> None:
    weights, _ = begun(models, loading(MyNode="x.pth"))
    (models / "other").mkdir()
    os.rename(models / "odd/x.pth", models / "other/x.pth")
    job = weights.begin(loading(MyNode="x.pth"))
    assert job.wait(30)
    assert job.files == [models / "other/x.pth"]
