"""Why ComfyUI refused a workflow, from bodies as its versions of 2023 to 2026 send them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler.common.errors import CODES, JobError, nearest
from handler.execution import refusal

MODELS = Path("/runpod-volume/ComfyUI/models")
WORKFLOW: dict[str, Any] = {
    "1": {"class_type": "NoSuchNode", "inputs": {}},
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd15.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 4}},
    "9": {"class_type": "SaveImage", "inputs": {}},
}


def body(kind: str, message: str, details: str = "", **more: Any) -> dict[str, Any]:
    error = {"type": kind, "message": message, "details": details, "extra_info": {}}
    return {"error": error, "node_errors": {}, **more}


def node_body(*errors: dict[str, Any], node: str = "4", class_type: str = "") -> dict[str, Any]:
    report = {
        "errors": list(errors),
        "dependent_outputs": ["9"],
        "class_type": class_type or WORKFLOW[node]["class_type"],
    }
    return body(
        "prompt_outputs_failed_validation",
        "Prompt outputs failed validation",
        node_errors={node: report},
    )


def not_in_list(name: str, value: Any, config: Any, listed: str = "[]") -> dict[str, Any]:
    return {
        "type": "value_not_in_list",
        "message": "Value not in list",
        "details": f"{name}: '{value}' not in {listed}",
        "extra_info": {"input_name": name, "input_config": config, "received_value": value},
    }


def explain(given: Any, known: tuple[str, ...] = ()) -> JobError:
    error = refusal.explain(given, WORKFLOW, known, MODELS, ())
    assert error.code in CODES and error.fix
    return error


def test_more_nodes_in_a_row_than_comfyui_can_check() -> None:
    """As 0.33 answers a chain of 1000, of which each half runs."""
    error = explain(
        node_body(
            {
                "type": "exception_during_inner_validation",
                "message": "Exception when validating inner node",
                "details": "maximum recursion depth exceeded while calling a Python object",
                "extra_info": {"input_name": "image"},
            },
            class_type="ImageInvert",
        )
    )
    assert error.code == "workflow.too_deep" and "Split" in error.fix


UNKNOWN_NODE = {
    "2023 and 0.3.75": body(
        "invalid_prompt", "Cannot execute because node NoSuchNode does not exist.", "Node ID '#1'"
    ),
    "2026": body("missing_node_type", "Node 'NoSuchNode' not found. Is the custom node installed?"),
    "2026, by extra_info": {
        "error": {
            "type": "missing_node_type",
            "message": "A node is missing",
            "details": "",
            "extra_info": {"node_id": "1", "class_type": "NoSuchNode"},
        }
    },
}


@pytest.mark.parametrize("version", UNKNOWN_NODE)
def test_an_unknown_node_is_named_with_the_nearest_that_is_known(version: str) -> None:
    given = UNKNOWN_NODE[version]
    assert refusal.unknown_class(given) == "NoSuchNode"
    known = ("NoSuchNodes", "CheckpointLoaderSimple", "EmptyLatentImage", "SaveImage")
    error = explain(given, known)
    assert error.code == "workflow.unknown_node"
    assert "NoSuchNode (node 1)" in error.message
    assert "Did you mean NoSuchNodes? If not, install the custom node " in error.fix
    assert error.details["node_ids"] == ["1"]


def test_a_node_of_a_pack_that_is_not_there_is_not_taken_for_a_misspelt_one() -> None:
    known = ("VAEDecodeTiled", "VAEEncodeTiled", "Flux2Scheduler", "EmptyImage")
    error = refusal.unknown_nodes(
        {"1": {"class_type": "FaceDetailer", "inputs": {}}}, known, "FaceDetailer"
    )
    assert error.fix.startswith("Install the custom node")
    assert error.details["nearest"] == {"FaceDetailer": []}


class Counted(str):
    """Counts comparisons."""

    compared = 0
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return str.__eq__(self, other)


def test_of_many_unknown_nodes_all_are_named_and_the_nearest_looked_up_for_twenty() -> None:
    """Each takes milliseconds, in which the worker does nothing else; nor are all compared with
    all."""
    workflow = {str(n): {"class_type": Counted(f"Unknown{n}"), "inputs": {}} for n in range(400)}
    error = refusal.unknown_nodes(workflow, ["Known"], "Unknown0")
    assert len(error.details["classes"]) == 400 and len(error.details["nearest"]) == 20
    assert Counted.compared < 4000


@pytest.mark.parametrize(
    "name",
    ["KSampler Adv. (Efficient)", "Any Switch (rgthree)", "CR 🔥 Node", "A&B", "x", "a>b, c"],
)
def test_any_class_name_is_read_from_the_message(name: str) -> None:
    message = f"Cannot execute because node {name} does not exist."
    assert refusal.unknown_class(body("invalid_prompt", message)) == name


def test_all_unknown_classes_are_named_though_comfyui_names_one() -> None:
    error = explain(UNKNOWN_NODE["2026"], ("SaveImage", "EmptyLatentImage"))
    assert error.details["classes"] == ["NoSuchNode", "CheckpointLoaderSimple"]


def test_an_unknown_node_without_a_list_of_known_ones_is_still_named() -> None:
    assert "NoSuchNode" in explain(UNKNOWN_NODE["2026"]).message


def test_no_output_names_nodes_that_would_make_one() -> None:
    error = explain(body("prompt_no_outputs", "Prompt has no outputs"))
    assert error.code == "workflow.no_output" and "SaveImage" in error.fix


CHOICES = ["sdxl.safetensors", "sd15_v2.safetensors"]


@pytest.mark.parametrize(
    "config", [[CHOICES], [CHOICES, {"tooltip": ""}], ["COMBO", {"options": CHOICES}]]
)
def test_a_missing_model_is_reported_with_the_nearest_and_the_folder(config: Any) -> None:
    error = explain(node_body(not_in_list("ckpt_name", "sd15.safetensors", config)))
    assert error.code == "workflow.missing_model"
    assert "'sd15.safetensors'" in error.message and str(MODELS) in error.message
    assert error.details["nearest"][0] == "sd15_v2.safetensors"
    assert error.details["node_id"] == "4"


def test_for_a_long_list_comfyui_reports_only_the_length() -> None:
    listed = "(list of length 25)"
    error = explain(node_body(not_in_list("ckpt_name", "a.safetensors", None, listed)))
    assert error.code == "workflow.missing_model"
    assert "there are 25" in error.message and "none" not in error.message


def test_where_there_are_no_models_at_all_that_is_said() -> None:
    assert "there are none" in explain(node_body(not_in_list("x", "a.gguf", [[]]))).message


@pytest.mark.parametrize("name", ["a.gguf", "sub/A.SAFETENSORS", "b.pth"])
def test_any_model_file_counts_as_a_model(name: str) -> None:
    assert explain(node_body(not_in_list("x", name, [[]]))).code == "workflow.missing_model"


def test_another_value_that_is_not_in_its_list_is_reported_with_the_list() -> None:
    problem = not_in_list("sampler_name", "eulerr", [["euler", "heun"]])
    error = explain(node_body(problem))
    assert error.code == "workflow.value_not_allowed"
    assert "nearest: euler" in error.message


def test_a_list_that_comfyui_leaves_out_is_looked_up() -> None:
    given = node_body(not_in_list("sampler_name", "eulr", None, "(list of length 42)"))
    ((class_type, extra),) = refusal.without_choices(given)
    assert (class_type, extra["input_name"]) == ("CheckpointLoaderSimple", "sampler_name")
    extra["input_config"] = [["euler", *(f"other{n}" for n in range(41))], {}]
    error = explain(given)
    assert "nearest: euler" in error.message and error.fix == "Send 'euler' if you mean that."
    extra["received_value"] = "???"
    assert "other8 and 32 more" in explain(given).message
    assert list(refusal.without_choices(given)) == []


def test_a_wrong_type_is_stated_once() -> None:
    wrong = {
        "type": "invalid_input_type",
        "message": "Failed to convert an input value to a INT value",
        "details": "width, abc, invalid literal",
        "extra_info": {"input_name": "width", "input_config": ["INT"], "received_value": "abc"},
    }
    said = 'width of node 5 (EmptyLatentImage) is the string "abc". Send a whole number.'
    assert str(explain(node_body(wrong, node="5"))) == said


def test_a_number_out_of_range_is_reported_with_the_limit() -> None:
    error = explain(
        node_body(
            {
                "type": "value_smaller_than_min",
                "message": "Value 4 smaller than min of 16",
                "details": "width",
                "extra_info": {"input_name": "width", "received_value": 4},
            },
            node="5",
        )
    )
    assert error.code == "workflow.value_out_of_range"
    assert "width of node 5 (EmptyLatentImage)" in error.message and "16" in error.message


def test_a_missing_input_is_named() -> None:
    problem = {
        "type": "required_input_missing",
        "message": "Required input is missing",
        "details": "images",
        "extra_info": {"input_name": "images"},
    }
    error = explain(node_body(problem, node="9"))
    assert error.code == "workflow.input_missing"
    assert "Node 9 (SaveImage) lacks its required input images" in error.message


def test_what_a_node_itself_refuses_is_passed_on() -> None:
    problem = {
        "type": "custom_validation_failed",
        "message": "Custom validation failed for node",
        "details": "image - Invalid image file: photo.png",
        "extra_info": {"input_name": "image"},
    }
    error = explain(node_body(problem, class_type="LoadImage"))
    assert error.code == "workflow.invalid"
    assert "Invalid image file: photo.png" in error.message


def test_several_problems_are_reported_at_once_the_first_giving_the_code() -> None:
    problems = [not_in_list("ckpt_name", f"{n}.pt", [[]]) for n in range(7)]
    error = explain(node_body(*problems))
    assert error.code == "workflow.missing_model"
    assert "7 problems" in error.message and "and 2 more" in error.message
    assert error.message.count("Put the file into") == 5, "each with its fix"
    assert [p["model"] for p in error.details["problems"]] == [f"{n}.pt" for n in range(7)]


def test_branches_that_were_left_out_become_warnings() -> None:
    errors = node_body(not_in_list("ckpt_name", "a.pt", [[]]))["node_errors"]
    (warning,) = refusal.left_out_warnings(errors, WORKFLOW, MODELS, ())
    assert warning.startswith("left out of this run: ckpt_name of node 4")
    assert refusal.left_out_warnings({}, WORKFLOW, MODELS, ()) == []


@pytest.mark.parametrize(
    "given", ["500 Internal Server Error", "", None, {}, {"error": "no prompt"}, [1], {"error": []}]
)
def test_any_other_body_is_passed_on_in_short(given: Any) -> None:
    error = explain(given)
    assert error.code == "workflow.invalid" and len(error.message) < 1200


def test_the_nearest_do_not_care_for_case() -> None:
    assert nearest("saveimage", ["SaveImage", "LoadImage", "X"])[0] == "SaveImage"
    assert nearest("anything", []) == []


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["error", "node_errors", "errors", "type", "message", "extra_info",
                         "input_config", "options", "4"]), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@given(_json, st.sampled_from(["value_not_in_list", "value_smaller_than_min", "other"]), _json)
def test_whatever_comfyui_sends_is_explained(given: Any, kind: str, extra: Any) -> None:
    explain(given)
    explain(node_body({"type": kind, "extra_info": extra}))
    explain({"node_errors": {"4": {"errors": given}}})
    list(refusal.without_choices({"node_errors": {"4": {"errors": given}}}))
    list(refusal.without_choices(given))
    json.dumps(refusal.left_out_warnings({"4": given}, WORKFLOW, MODELS, ()))
