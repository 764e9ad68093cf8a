"""Which model files a workflow names, held against the loaders of a real ComfyUI."""

from __future__ import annotations

import re
from typing import Any

import pytest

from bootstrap.volume.categories import CATEGORIES
from demo.volume import DemoVolume
from handler.request.references import NamedModel, named_models, names_a_model
from handler.request.workflow import read_workflow


def named(class_type: str, **inputs: Any) -> list[tuple[str, str, str | None]]:
    workflow = read_workflow({"7": {"class_type": class_type, "inputs": inputs}})
    return [(model.input, model.name, model.category) for model in named_models(workflow)]


def test_a_model_is_reported_with_its_node_and_its_likely_folders() -> None:
    workflow = read_workflow(
        {
            "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "a.safetensors"}},
            "5": {"class_type": "KSampler", "inputs": {"seed": 1, "model": ["4", 0]}},
            "6": {"class_type": "UNETLoader", "inputs": {"unet_name": "flux/dev.gguf"}},
        }
    )
    assert named_models(workflow) == (
        NamedModel("4", "CheckpointLoaderSimple", "ckpt_name", "a.safetensors", "checkpoints"),
        NamedModel("6", "UNETLoader", "unet_name", "flux/dev.gguf", "diffusion_models"),
    )
    assert [model.folders for model in named_models(workflow)] == [
        ("checkpoints",),
        ("diffusion_models", "unet"),
    ]


def test_numbered_inputs_are_the_same_kind_and_keep_their_order() -> None:
    found = named("TripleCLIPLoader", clip_name2="b.pt", clip_name1="a.PT", clip_name3="c.sft")
    assert found == [
        ("clip_name2", "b.pt", "text_encoders"),
        ("clip_name1", "a.PT", "text_encoders"),
        ("clip_name3", "c.sft", "text_encoders"),
    ]


def test_the_class_decides_where_the_input_name_is_ambiguous() -> None:
    assert named("CLIPVisionLoader", clip_name="v.safetensors")[0][2] == "clip_vision"
    assert named("CLIPLoader", clip_name="v.safetensors")[0][2] == "text_encoders"
    assert named("SomebodysLoader", model_name="v.safetensors")[0][2] is None
    assert named("SomebodysLoader", model_name="v.safetensors")[0][:2] == (
        "model_name",
        "v.safetensors",
    )


def test_models_inside_an_inputs_object_are_found_unless_switched_off() -> None:
    found = named(
        "Power Lora Loader",
        lora_1={"on": True, "lora": "ink.safetensors", "strength": 1},
        lora_2={"on": False, "lora": "off.safetensors", "strength": 1},
        stack=[["list.safetensors", 0.5, 0.5], ["1", 0]],
    )
    assert found == [
        ("lora_1.lora", "ink.safetensors", "loras"),
        ("stack", "list.safetensors", None),
    ]


@pytest.mark.parametrize(
    "value",
    [
        "a cat",
        "photo.png",
        "",
        ".safetensors",
        "https://example.com/a.safetensors",
        "/etc/a.safetensors",
        "../a.safetensors",
        "a/../b.safetensors",
        "C:\\models\\a.safetensors",
        "a\nb.safetensors",
        "a\x00.safetensors",
        "word " * 300 + ".bin",
        "a//b.pt",
    ],
)
def test_what_is_not_a_model_below_a_folder_is_not_named(value: str) -> None:
    assert not names_a_model(value)


@pytest.mark.parametrize("value", ["a.safetensors", "x/y z.CKPT", "x\\y.gguf", "ä.sft", "a.b.bin"])
def test_what_loaders_list_is_named(value: str) -> None:
    assert names_a_model(value)


def test_links_and_numbers_are_not_models() -> None:
    assert named("X", a=["7", 0], b=1, c=None, d=True, e=[1, 2], f={"g": 1.5}) == []


def test_deep_values_are_walked_without_recursion() -> None:
    deep: Any = "a.pt"
    for _ in range(5000):
        deep = {"x": deep}
    workflow = {"1": {"class_type": "X", "inputs": {"d": deep}}}
    assert [model.name for model in named_models(workflow)] == ["a.pt"]


_READS = re.compile(
    r"""["'](\w+)["']\s*(?::\s*\(|,\s*(?:tooltip="[^"]*",\s*)?options=)"""
    r"""\s*folder_paths\.get_filename_list\(["'](\w+)["']\)"""
)
_CLASS = re.compile(r"^class (\w+)", re.MULTILINE)


def test_hints_are_what_comfyuis_own_loaders_read(demo: DemoVolume) -> None:
    """Each `get_filename_list` in its source, by the class and the input around it."""
    seen = 0
    for source in (demo.comfyui / "nodes.py", *(demo.comfyui / "comfy_extras").glob("*.py")):
        text = source.read_text("utf-8")
        for match in _READS.finditer(text):
            name, category = match.groups()
            if category == "configs":  # not weights
                continue
            class_type = _CLASS.findall(text[: match.start()])[-1]
            found = named(class_type, **{name: "m.safetensors"})
            assert category in CATEGORIES
            assert found == [(name, "m.safetensors", category)], (source.name, class_type)
            seen += 1
    assert seen >= 25
