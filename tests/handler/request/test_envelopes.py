"""Where clients put a workflow, and what they send beside it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bootstrap.config import Settings
from handler.common.errors import JobError
from handler.common.reply import failed
from handler.request.parse import WorkflowRequest, parse_request

NODES = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 8}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}},
}
DRAWN = {"nodes": [{"id": 1}], "links": []}


def parse(given: dict[str, Any]) -> WorkflowRequest:
    request = parse_request(given, Settings())
    assert isinstance(request, WorkflowRequest)
    return request


def refused(given: dict[str, Any]) -> JobError:
    with pytest.raises(JobError) as caught:
        parse(given)
    return caught.value


@pytest.mark.parametrize(
    "given",
    [
        {"workflow": NODES},
        {"workflow": {"prompt": NODES, "client_id": "abc"}},
        {"workflow": {"output": NODES, "workflow": DRAWN}},
        {"prompt": NODES},
        {"prompt": {"prompt": NODES}},
        {"handler": "RawWorkflow", "workflow_json": NODES},
        {"workflow": "custom", "payload": NODES},
    ],
)
def test_a_workflow_is_found_wherever_clients_put_it(given: dict[str, Any]) -> None:
    assert parse(given).workflow == NODES


def test_a_field_of_another_worker_is_named() -> None:
    assert "taken from `prompt`" in parse({"prompt": NODES}).warnings[0]
    assert parse({"workflow": {"prompt": NODES, "client_id": "abc"}}).warnings == ()


def test_a_node_may_be_called_prompt_or_output() -> None:
    odd = {"prompt": NODES["1"], "output": NODES["1"]}
    assert parse({"workflow": odd}).workflow == odd


def test_what_nodes_read_beside_the_workflow_is_passed_on() -> None:
    info = {"workflow": DRAWN}
    for given in (
        {"workflow": NODES, "extra_pnginfo": info},
        {"workflow": NODES, "extra_data": {"extra_pnginfo": info}},
        {"workflow": {"prompt": NODES, "extra_data": {"extra_pnginfo": info}}},
        {"workflow": {"output": NODES, "workflow": DRAWN}},
    ):
        assert parse(given).extra_data == {"extra_pnginfo": info}, given


def test_the_requests_own_key_goes_before_that_in_extra_data() -> None:
    given = {"workflow": NODES, "extra_data": {"api_key_comfy_org": "a"}}
    assert parse(given).extra_data == {"api_key_comfy_org": "a"}
    assert parse(given | {"comfy_org_api_key": "b"}).extra_data == {"api_key_comfy_org": "b"}


def test_only_some_outputs_may_be_wanted() -> None:
    assert parse({"workflow": NODES}).targets is None
    assert parse({"workflow": NODES, "partial_execution_targets": ["2"]}).targets == ("2",)
    body = {"prompt": NODES, "partial_execution_targets": ["2"]}
    assert parse({"workflow": body}).targets == ("2",)


@pytest.mark.parametrize(
    "wrong",
    [
        {"extra_data": []},
        {"extra_pnginfo": "x"},
        {"partial_execution_targets": "2"},
        {"file_inputs": []},
        {"file_inputs": {"1": {"url": "https://x.y/z"}}},
    ],
)
def test_a_wrong_type_beside_it_is_named(wrong: dict[str, Any]) -> None:
    error = refused({"workflow": NODES} | wrong)
    assert error.code == "request.wrong_type" and next(iter(wrong)) in error.message


def test_comfy_gens_files_are_fetched_and_the_workflow_names_them() -> None:
    load = {"5": {"class_type": "LoadImage", "inputs": {"image": "placeholder.png"}}}
    item = {"url": "https://example.com/a?sig=1", "filename": "a.png", "field": "image"}
    request = parse({"workflow": load, "file_inputs": {"5": item}})
    (file,) = request.files
    assert (file.name, file.url) == ("a.png", item["url"])
    assert request.workflow["5"]["inputs"]["image"] == "a.png"
    error = refused({"workflow": load, "file_inputs": {"9": item}})
    assert error.code == "overrides.unknown_node"


def test_a_failed_request_names_what_it_holds_for_another_worker() -> None:
    error = refused({"command": "download", "timeout": 5})
    assert error.code == "workflow.missing"
    (warning,) = error.details["warnings"]
    assert "command (here: `type`" in warning and "timeout (here: `max_wait`)" in warning


@pytest.mark.parametrize(
    "given",
    [
        {"workflow": {"1": {"class_type": "x" * 9_000_000, "inputs": []}}},
        {"workflow": {"n" * 9_000_000: {"class_type": "A", "inputs": []}}},
        {"workflow": {"n" * 9_000_000: 7}},
        {"workflow": NODES, "overrides": {"n" * 9_000_000: {}}},
        {"workflow": {"1": {"class_type": "A", "inputs": []}}, **{f"f{n}": n for n in range(9999)}},
        {"workflow": NODES, "output": {"format": ["y" * 9_000_000]}},
        {"workflow": NODES, "files": [{"name": "z" * 9_000_000, "data": "QQ=="}]},
        {"type": "t" * 9_000_000},
    ],
)
def test_whatever_is_quoted_of_a_request_is_cut(given: dict[str, Any]) -> None:
    assert len(json.dumps(failed(refused(given)))) < 50_000


def test_ten_thousand_overrides_make_no_endless_warnings() -> None:
    values = {f"input {n}": n for n in range(10_000)}
    request = parse({"workflow": NODES, "overrides": {"1": values}})
    assert len(json.dumps(request.warnings)) < 50_000
