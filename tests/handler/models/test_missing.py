"""Which models of the manifest a workflow names, and the entry to add for one it lacks."""

from __future__ import annotations

from typing import Any

from bootstrap.core.findings import error
from bootstrap.models.manifest import Manifest
from bootstrap.models.manifest_entry import ModelSpec
from handler.common.errors import JobError
from handler.models.named_models import specs_named, with_manifest_entries
from handler.request.references import NamedModel


def named(name: str, category: str | None = "loras") -> NamedModel:
    return NamedModel("1", "LoraLoader", "lora_name", name, category)


def spec(name: str, directory: str = "loras") -> ModelSpec:
    return ModelSpec(name, f"https://example.com/{name}", directory)


def test_a_model_is_wanted_by_folder_and_name() -> None:
    specs = [spec("a.safetensors"), spec("b.safetensors"), spec("a.safetensors", "vae")]
    assert specs_named([named("a.safetensors")], specs) == (specs[0],)
    assert specs_named([named("a.safetensors", None)], specs) == (specs[0], specs[2])
    assert specs_named([named("b.safetensors", "vae")], specs) == ()
    assert specs_named([named("b.safetensors", "vae")], specs, any_folder=True) == (specs[1],)


def test_subfolders_count_and_backslashes_are_slashes() -> None:
    specs = [spec("a.safetensors", "loras/xl"), spec("a.safetensors")]
    assert specs_named([named("xl\\a.safetensors")], specs) == (specs[0],)
    assert specs_named([named("a.safetensors")], specs) == (specs[1],)


def test_both_names_of_a_folder_are_one_kind() -> None:
    specs = [spec("t5.safetensors", "clip"), spec("x.gguf", "unet")]
    assert specs_named([named("t5.safetensors", "text_encoders")], specs) == (specs[0],)
    assert specs_named([named("x.gguf", "diffusion_models")], specs) == (specs[1],)


def lora(name: str) -> dict[str, Any]:
    return {"class_type": "LoraLoader", "inputs": {"lora_name": name}}


def missing(node: str, name: str) -> dict[str, Any]:
    return {"error_code": "workflow.missing_model", "node_id": node, "model": name}


def test_the_offer_names_each_missing_model_once() -> None:
    names = [
        "a.safetensors",
        "xl\\b.safetensors",
        "a.safetensors",
        "c.safetensors",
        "d.safetensors",
    ]
    workflow = {str(i): lora(name) for i, name in enumerate(names)}
    problems = [missing(str(i), name) for i, name in enumerate(names)]
    problems.append({"error_code": "workflow.value_not_allowed", "node_id": "9", "model": "x"})
    reported = with_manifest_entries(
        JobError("workflow.missing_model", "5 problems.", "Fix.", problems=problems),
        workflow,
        Manifest(),
    )
    assert reported.code == "workflow.missing_model" and reported.details["problems"] == problems
    assert [(e["name"], e["directory"]) for e in reported.details["manifest_entries"]] == [
        ("a.safetensors", "loras"),
        ("b.safetensors", "loras/xl"),
        ("c.safetensors", "loras"),
        ("d.safetensors", "loras"),
    ]
    assert "and 1 more" in reported.fix and "has no entry for it" in reported.fix


def test_another_error_and_a_model_the_workflow_does_not_name_are_left_as_they_are() -> None:
    other = JobError("job.timeout", "Late.", "Wait.")
    assert with_manifest_entries(other, {"1": lora("a.safetensors")}, Manifest()) is other
    strange = JobError("workflow.missing_model", "?", "?", node_id="7", model="b.safetensors")
    assert with_manifest_entries(strange, {"1": lora("a.safetensors")}, Manifest()) is strange


def test_a_manifest_with_a_fault_is_reported() -> None:
    manifest = Manifest(
        findings=(error("manifest.shape", "models.json: it is not an object.", "Write one."),)
    )
    fault = JobError("workflow.missing_model", "No.", "Put.", node_id="1", model="a.safetensors")
    reported = with_manifest_entries(fault, {"1": lora("a.safetensors")}, manifest)
    assert "models.json: it is not an object" in reported.fix
