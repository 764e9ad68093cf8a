"""Input becomes a request, or an error that says what to send instead."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bootstrap.config import Settings
from handler.common.errors import CODES, MAX_DEPTH, JobError
from handler.request.fields import _OUTPUT_FIELDS, InputFile, OutputOptions
from handler.request.named_workflows import NamedWorkflow
from handler.request.parse import Request, WorkflowRequest, parse_request
from handler.request.workflow import bad_links, is_link, read_workflow

SETTINGS = Settings(max_wait=300, max_request_mb=1)
NODE = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "prefix": "a"}}
WORKFLOW: dict[str, Any] = {"1": {"class_type": "EmptyImage", "inputs": {"width": 8}}, "2": NODE}


def parse(**fields: Any) -> WorkflowRequest:
    request = parse_request({"workflow": WORKFLOW, **fields}, SETTINGS)
    assert isinstance(request, WorkflowRequest)
    return request


def refused(given: object) -> JobError:
    with pytest.raises(JobError) as caught:
        parse_request(given, SETTINGS)
    assert caught.value.code in CODES
    assert caught.value.fix
    assert len(str(caught.value)) < 2000
    return caught.value


def files_with(*files: object) -> dict[str, object]:
    return {"workflow": WORKFLOW, "files": list(files)}


def nested(levels: int) -> object:
    value: object = 1
    for _ in range(levels):
        value = [value]
    return value


def test_a_workflow_alone_is_a_request_with_the_defaults() -> None:
    assert parse() == WorkflowRequest(WORKFLOW, 300.0)


def test_everything_that_may_be_given_is_taken() -> None:
    request = parse(
        max_wait=5,
        images=[{"name": "a.png", "image": "QQ=="}],
        files=[{"name": "b.wav", "url": "https://x.example/b.wav?sig=1", "subfolder": "clips/"}],
        overrides={"1": {"width": 16}},
        output={"delivery": "volume", "format": "webp", "quality": 80, "metadata": False},
    )
    assert request.output == OutputOptions("volume", "webp", 80, False)
    assert request.max_wait == 5.0
    assert request.files == (
        InputFile("a.png", "QQ=="),
        InputFile("b.wav", url="https://x.example/b.wav?sig=1", subfolder="clips"),
    )
    assert "sig" not in repr(request) and "QQ==" not in repr(request)
    assert request.workflow["1"]["inputs"] == {"width": 16}
    assert request.warnings == ()


def test_a_workflow_may_come_as_text() -> None:
    assert parse(workflow=json.dumps(WORKFLOW)).workflow == WORKFLOW


def test_a_workflow_may_be_named() -> None:
    given = {"workflow_name": " portrait ", "overrides": {"1": {"width": 16}}}
    request = parse_request(
        given, SETTINGS, named_workflow=lambda _: NamedWorkflow(read_workflow(WORKFLOW))
    )
    assert isinstance(request, WorkflowRequest)
    assert request.workflow["1"]["inputs"] == {"width": 16}


S3 = {
    "accessId": "id-marker",
    "accessSecret": "secret-marker",
    "bucketName": "mine",
    "endpointUrl": "https://s3.example.com",
}


@pytest.mark.parametrize("inside", [True, False], ids=["in the input", "beside it"])
def test_a_bucket_comes_with_the_job(inside: bool) -> None:
    given = {"workflow": WORKFLOW, **({"s3Config": S3} if inside else {})}
    request = parse_request(given, SETTINGS, None if inside else S3)
    assert isinstance(request, WorkflowRequest) and request.bucket is not None
    assert (request.bucket.name, request.bucket.trusted) == ("mine", False)
    assert request.bucket.secret.reveal() == "secret-marker"
    assert "marker" not in repr(request)


@pytest.mark.parametrize("key", S3)
@pytest.mark.parametrize("value", [None, 7, "", "a b", "x\r\nEvil: 1", ["secret-marker"]])
def test_an_incomplete_bucket_is_refused_without_its_secret(key: str, value: object) -> None:
    error = refused({"workflow": WORKFLOW, "s3Config": {**S3, key: value}})
    assert error.code == "output.bad_bucket" and key in error.message
    assert "marker" not in str(error) + repr(error.details)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("s3.example.com", "is not an https URL"),
        ("ftp://s3.example.com", "is not an https URL"),
        ("https://", "is not an https URL"),
        ("https://s3.example.com:port", "malformed"),
        ("https://[::1", "Invalid IPv6"),
        ("https://id:secret-marker@s3.example.com", "carries a login"),
        ("http://s3.example.com", "plain http"),
        ("https://10.0.0.7", "10.0.0.7, which is not a public address"),
        ("https://127.1:9000", "127.0.0.1"),
        ("https://2852039166", "169.254.169.254"),
        ("https://[::ffff:10.1.2.3]", "not a public address"),
        ("https://minio.localhost", "127.0.0.1"),
    ],
)
def test_an_address_that_no_bucket_of_a_request_may_have_is_refused_at_the_door(
    address: str, said: str
) -> None:
    error = refused({"workflow": WORKFLOW, "s3Config": {**S3, "endpointUrl": address}})
    assert error.code == "output.bad_bucket" and said in error.message and error.fix
    assert "marker" not in str(error) + repr(error.details)


def test_names_of_buckets_are_not_looked_up_at_the_door(monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(host: str, *_: object, flags: int = 0, **__: object) -> list[object]:
        assert flags & socket.AI_NUMERICHOST, f"{host} is looked up"
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    given = {"workflow": WORKFLOW, "s3Config": {**S3, "endpointUrl": "https://s3.example.com"}}
    request = parse_request(given, SETTINGS)
    assert isinstance(request, WorkflowRequest) and request.bucket is not None


def test_an_endpoint_may_allow_buckets_of_its_own_network() -> None:
    given = {"workflow": WORKFLOW, "s3Config": {**S3, "endpointUrl": "http://10.0.0.7:9000"}}
    request = parse_request(given, replace(SETTINGS, allow_private_urls=True))
    assert isinstance(request, WorkflowRequest) and request.bucket is not None


def test_what_came_in_is_not_changed() -> None:
    before = json.dumps(WORKFLOW)
    request = parse(overrides={"1": {"width": 16}})
    request.workflow["2"]["inputs"]["prefix"] = "changed"
    assert json.dumps(WORKFLOW) == before


def test_unknown_fields_are_ignored_and_mentioned() -> None:
    (warning,) = parse(seed=1, debug=True).warnings
    assert "debug, seed" in warning


def test_overrides_may_add_an_input_and_say_so() -> None:
    request = parse(overrides={"1": {"height": 8}})
    assert request.workflow["1"]["inputs"] == {"width": 8, "height": 8}
    assert '"height" (it has width)' in request.warnings[0]


@pytest.mark.parametrize(
    ("code", "given"),
    [
        ("request.no_input", None),
        ("request.wrong_type", []),
        ("request.wrong_type", "text"),
        ("workflow.missing", {}),
        ("workflow.missing", {"workflow": None}),
        ("workflow.not_json", {"workflow": "not JSON"}),
        ("workflow.not_json", {"workflow": ""}),
        ("workflow.not_json", {"workflow": "[" * 100_000}),
        ("workflow.not_an_object", {"workflow": []}),
        ("workflow.not_an_object", {"workflow": 7}),
        ("workflow.not_an_object", {"workflow": "[1]"}),
        ("workflow.empty", {"workflow": {}}),
        ("workflow.empty", {"workflow": "{}"}),
        ("workflow.ui_format", {"workflow": {"nodes": [], "links": [], "version": 0.4}}),
        ("workflow.bad_node", {"workflow": {"1": 5}}),
        ("workflow.bad_node", {"workflow": {"1": {}}}),
        ("workflow.bad_node", {"workflow": {"1": {"class_type": 7}}}),
        ("workflow.bad_node", {"workflow": {"1": {"class_type": ""}}}),
        ("workflow.bad_node", {"workflow": {"1": {"class_type": "A", "inputs": []}}}),
        ("workflow.bad_node", {"workflow": {"1": {"class_type": "A", "inputs": None}}}),
        ("overrides.unknown_node", {"workflow": WORKFLOW, "overrides": {"9": {}}}),
        ("request.wrong_type", {"workflow": WORKFLOW, "overrides": [1]}),
        ("request.wrong_type", {"workflow": WORKFLOW, "overrides": {"1": 5}}),
        ("request.wrong_type", {"workflow": WORKFLOW, "images": {"name": "a"}}),
        ("request.wrong_type", {"workflow": WORKFLOW, "images": ["a"]}),
        ("image.no_name", {"workflow": WORKFLOW, "images": [{"image": "QQ=="}]}),
        ("image.no_name", {"workflow": WORKFLOW, "images": [{"name": 1, "image": "QQ=="}]}),
        ("image.no_data", {"workflow": WORKFLOW, "images": [{"name": "a.png"}]}),
        ("image.no_data", {"workflow": WORKFLOW, "images": [{"name": "a.png", "image": ""}]}),
        ("image.bad_name", files_with({"name": "../a.png", "data": "QQ=="})),
        ("image.bad_name", files_with({"name": "a.png", "data": "QQ==", "subfolder": "../x"})),
        ("image.bad_name", files_with({"name": "a.png", "data": "QQ==", "subfolder": "/etc"})),
        ("image.bad_name", files_with({"name": "a.png", "data": "QQ==", "subfolder": "a\\b"})),
        ("image.bad_name", files_with({"name": "a.png", "data": "QQ==", "subfolder": "a/" * 20})),
        ("request.wrong_type", files_with({"name": "a.png", "data": "QQ==", "subfolder": 5})),
        ("request.wrong_type", files_with({"name": "a.png", "data": "QQ==", "url": "https://x"})),
        ("request.wrong_type", files_with({"name": "a.png", "url": ["https://x"]})),
        ("image.no_data", files_with({"name": "a.png", "image": "QQ=="})),
        ("input.named_twice", files_with(*[{"name": "a.png", "data": "QQ=="}] * 2)),
        ("request.wrong_type", {"workflow": WORKFLOW, "output": "s3"}),
        ("request.wrong_type", {"workflow": WORKFLOW, "output": {"delivery": "ftp"}}),
        ("request.wrong_type", {"workflow": WORKFLOW, "output": {"format": []}}),
        ("request.wrong_type", {"workflow": WORKFLOW, "output": {"quality": 0}}),
        ("request.wrong_type", {"workflow": WORKFLOW, "output": {"metadata": "no"}}),
        ("output.no_bucket", {"workflow": WORKFLOW, "output": {"delivery": "s3"}}),
        ("request.wrong_type", {"workflow": WORKFLOW, "s3Config": "secret"}),
        ("output.bad_bucket", {"workflow": WORKFLOW, "s3Config": {"accessId": "id"}}),
        ("request.wrong_type", {"workflow_name": 7}),
        ("request.wrong_type", {"workflow_name": "a", "workflow": WORKFLOW}),
        ("workflow.name_unknown", {"workflow_name": "a"}),
        ("request.wrong_type", {"workflow": WORKFLOW, "retry_on_oom": "yes"}),
        ("request.wrong_type", {"workflow": WORKFLOW, "retry_on_oom": 1}),
        ("request.wrong_type", {"workflow": WORKFLOW, "max_wait": "5"}),
        ("request.wrong_type", {"workflow": WORKFLOW, "max_wait": True}),
        ("request.wrong_type", {"workflow": WORKFLOW, "max_wait": 0}),
        ("request.wrong_type", {"workflow": WORKFLOW, "max_wait": -1}),
        ("request.wrong_type", {"workflow": WORKFLOW, "max_wait": 1e9}),
        ("request.not_json", {"workflow": WORKFLOW, "max_wait": float("nan")}),
        ("request.not_json", {"workflow": {"1": {"class_type": "A", "inputs": {"x": 1e999}}}}),
        ("request.not_json", {"workflow": '{"1": {"class_type": "A", "inputs": {"x": NaN}}}'}),
        ("request.too_deep", {"workflow": nested(MAX_DEPTH + 1)}),
        ("request.too_deep", {"workflow": json.dumps(nested(MAX_DEPTH + 1))}),
        ("request.too_deep", nested(50_000) and {"x": nested(50_000)}),
        ("request.too_large", {"workflow": WORKFLOW, "images": "x" * 1_000_000}),
        ("request.too_large", {"workflow": {"k" * 1_000_001: NODE}}),
        ("request.too_large", {"workflow": [0] * 200_000}),
    ],
)
def test_bad_input_gets_its_own_code(code: str, given: object) -> None:
    assert refused(given).code == code


def test_the_editors_format_is_answered_with_the_menu_that_exports() -> None:
    assert "Export (API)" in refused({"workflow": {"nodes": []}}).fix


def test_a_link_to_nowhere_is_comfyuis_to_judge() -> None:
    assert parse_request({"workflow": {"2": NODE}}, Settings())


def test_a_bad_link_names_both_nodes_and_those_that_are_there() -> None:
    (error,) = bad_links({"2": NODE})
    assert error.code == "workflow.bad_link"
    assert '"images" of node 2 (SaveImage)' in error.message and '"1"' in error.message
    assert error.details == {"node_id": "2", "input": "images", "linked_to": "1"}


def test_endless_names_make_no_endless_message() -> None:
    long = "n" * 50_000
    (error,) = bad_links({long: {"class_type": long, "inputs": {long: ["9", 0]}}})
    assert len(str(error)) < 1000
    refused({"workflow": WORKFLOW, "overrides": {long: {}}})
    refused({"workflow": {long: {"class_type": long}}, "overrides": {"9": {}}})
    refused({"workflow": long})
    request = parse(**{long: 1}, overrides={"1": {long: 1}})
    assert all(len(warning) < 600 for warning in request.warnings)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (["1", 0], True),
        (["1", True], False),
        ([1, 0], False),
        (["1"], False),
        (["a", "b"], False),
        ("10", False),
        (None, False),
    ],
)
def test_a_link_is_a_node_id_and_an_output_number(value: object, expected: bool) -> None:
    assert is_link(value) is expected


_scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
_values = st.recursive(
    _scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=12,
)
_nodes = st.fixed_dictionaries(
    {},
    optional={
        "class_type": st.text(max_size=5) | _values,
        "inputs": st.dictionaries(st.text(max_size=3), _values, max_size=3) | _values,
    },
)
_workflows = st.dictionaries(st.sampled_from("123") | st.text(max_size=3), _nodes, max_size=3)
_file_fields = st.sampled_from(["name", "data", "url", "subfolder", "unpack"])
_output_fields = st.sampled_from(list(_OUTPUT_FIELDS))
_addresses = st.lists(
    _values | st.dictionaries(st.sampled_from(["url", "headers"]), _values), max_size=3
)
_s3_fields = st.sampled_from(["accessId", "accessSecret", "bucketName", "endpointUrl"])
_requests = st.fixed_dictionaries(
    {},
    optional={
        "workflow": _workflows | _values | _workflows.map(json.dumps),
        "images": st.lists(st.dictionaries(st.sampled_from(["name", "image"]), _values)) | _values,
        "files": st.lists(st.dictionaries(_file_fields, _values)) | _values,
        "output": st.dictionaries(_output_fields, _values | _addresses) | _values,
        "progress": st.dictionaries(st.sampled_from(["previews", "preview_size"]), _values)
        | _values,
        "params": _values,
        "s3Config": st.dictionaries(_s3_fields, _values) | _values,
        "workflow_name": _values,
        "overrides": st.dictionaries(st.sampled_from("1234"), _values, max_size=2) | _values,
        "max_wait": _values,
        "retry_on_oom": _values,
        "other": _values,
    },
)


@settings(deadline=None, max_examples=300)
@given(_requests | _values)
def test_whatever_comes_is_a_request_or_a_job_error(given: Any) -> None:
    request = request_or_error(given)
    if isinstance(request, JobError):
        assert request.code in CODES
        str(request).encode()
        json.dumps(dict(request.details))
    elif isinstance(request, WorkflowRequest):
        assert request.workflow and 0 < request.max_wait <= 86400
        assert all(isinstance(node["inputs"], dict) for node in request.workflow.values())


def request_or_error(given: object) -> Request | JobError:
    try:
        return parse_request(given, SETTINGS)
    except JobError as error:
        return error


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        ("set\\cat", "set/cat"),
        ("%date:yyyy-MM-dd%\\a\\b", "%date:yyyy-MM-dd%/a/b"),
        ("set/cat", "set/cat"),
        ("..\\cat", "..\\cat"),
        (7, 7),
    ],
)
def test_a_prefix_from_windows_names_a_folder(sent: object, read: object) -> None:
    nodes = {"1": {"class_type": "SaveImage", "inputs": {"filename_prefix": sent}}}
    request = parse_request({"workflow": nodes}, Settings())
    assert isinstance(request, WorkflowRequest)
    assert request.workflow["1"]["inputs"] == {"filename_prefix": read}
