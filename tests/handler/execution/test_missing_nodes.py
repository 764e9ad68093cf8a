"""A missing node, with the pack that has it, from a map that is kept."""

from __future__ import annotations

from bootstrap.nodes.node_map import Origin
from handler.common.errors import JobError, combined
from handler.execution.refusal import UnknownNode, unknown_nodes, with_origins
from handler.request.workflow import Workflow

WORKFLOW: Workflow = {
    "1": {"class_type": "A", "inputs": {}},
    "2": {"class_type": "B", "inputs": {}},
    "3": {"class_type": "Known", "inputs": {}},
}


def missing(workflow: Workflow = WORKFLOW) -> UnknownNode:
    return unknown_nodes(workflow, ["Known"], "A")


def test_what_is_known_of_each_is_said_with_what_to_type() -> None:
    origins = {"A": Origin(("https://x/a", "https://x/other")), "B": Origin(core=True)}
    error = with_origins(missing(), "2026-11-28", origins)
    assert (
        "A is in https://x/a: " in error.fix
        and "`comfyui-worker nodes add https://x/a`" in error.fix
    )
    assert "B is ComfyUI's own" in error.fix and "2026-11-28" in error.fix
    assert "Install the custom node" not in error.fix
    loaded = {**origins, "A": Origin(("https://x/a",), installed=True)}
    for other in ({"A": origins["A"]}, loaded):  # B is not known; A is there, and failed
        assert "look in the worker's log" in with_origins(missing(), "2026-11-28", other).fix
    assert error.details["packs"] == {"A": ["https://x/a", "https://x/other"]}
    assert error.code == "workflow.unknown_node" and error.details["classes"] == ["A", "B"]


def test_without_a_map_it_is_said_how_to_get_one() -> None:
    assert "`comfyui-worker nodes map --refresh`" in with_origins(missing(), "", {}).fix


def test_an_error_without_a_known_pack_is_left_unchanged() -> None:
    error = missing()
    assert with_origins(error, "2026-11-28", {"A": Origin(), "B": Origin()}) is error


def test_among_other_problems_it_is_still_known_for_what_it_is() -> None:
    both = combined([missing(), JobError("input.missing", "x", "y")])
    assert isinstance(both, UnknownNode) and both.classes == ["A", "B"]
    assert missing().classes == ["A", "B"]


def test_what_only_the_editor_knows_is_in_no_pack() -> None:
    assert missing({"1": {"class_type": "Reroute", "inputs": {}}}).classes == []
