"""Named workflows as typed endpoints: declared, listed, checked, put into nodes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from bootstrap.config import Settings
from handler.common.errors import JobError
from handler.request.named_workflows import NamedWorkflows, openapi
from handler.request.params import read_params
from handler.request.parse import WorkflowRequest, WorkflowsRequest, parse_request
from scripts.make_params import first_params, main, make_params

WORKFLOW: dict[str, Any] = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "old.png"}},
    "3": {
        "class_type": "KSampler",
        "inputs": {"seed": 5, "steps": 8, "cfg": 7.5, "sampler_name": "euler", "model": ["4", 0]},
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "a.safetensors"}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a dog", "clip": ["4", 1]}},
    "9": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "x"}},
}
DECLARED = """
description: A portrait
params:
  prompt: {type: string, sets: 6.text, required: true, maxLength: 100, description: What to see}
  steps: {type: integer, sets: 3.steps, minimum: 1, maximum: 50, default: 20}
  cfg: {type: number, sets: 3.cfg, minimum: 0, maximum: 30}
  sampler: {type: string, sets: 3.sampler_name, enum: [euler, ddim]}
  seed: {type: seed, sets: 3.seed, default: random}
  photo: {type: file, sets: [1.image]}
"""


@pytest.fixture
def named(tmp_path: Path) -> NamedWorkflows:
    folder = tmp_path / "workflows"
    (folder / "deep").mkdir(parents=True)
    (folder / "portrait.json").write_text(json.dumps(WORKFLOW))
    (folder / "portrait.params.yaml").write_text(DECLARED)
    (folder / "deep" / "plain.json").write_text(json.dumps(WORKFLOW))
    (folder / "broken.json").write_text(json.dumps(WORKFLOW))
    (folder / "broken.params.yaml").write_text("params: {steps: {type: integer, sets: 77.steps}}")
    return NamedWorkflows(tmp_path)


def ask(named: NamedWorkflows, name: str = "portrait", **given: Any) -> WorkflowRequest:
    request = parse_request({"workflow_name": name, **given}, Settings(), None, named.read)
    assert isinstance(request, WorkflowRequest)
    return request


def refused(named: NamedWorkflows, code: str, name: str = "portrait", **given: Any) -> JobError:
    with pytest.raises(JobError) as caught:
        ask(named, name, **given)
    assert caught.value.code == code, caught.value
    assert caught.value.fix
    return caught.value


def test_a_folder_that_is_not_there_is_not_called_empty(tmp_path: Path) -> None:
    absent = refused(NamedWorkflows(tmp_path), "workflow.name_unknown")
    assert "(the folder does not exist)" in absent.message
    (tmp_path / "workflows").mkdir()
    assert "(empty)" in refused(NamedWorkflows(tmp_path), "workflow.name_unknown").message


def test_params_set_the_inputs_that_they_name(named: NamedWorkflows) -> None:
    photo = "data:image/png;base64,iVBORw0KGgo="
    params = {"prompt": "a cat", "steps": 30.0, "seed": 7, "sampler": "ddim", "photo": photo}
    request = ask(named, params=params, overrides={"9": {"filename_prefix": "cat"}})
    nodes = request.workflow
    assert nodes["6"]["inputs"]["text"] == "a cat"
    sampler = nodes["3"]["inputs"]
    assert (sampler["steps"], sampler["seed"], sampler["sampler_name"]) == (30, 7, "ddim")
    assert sampler["cfg"] == 7.5, "without a default it stays as the workflow has it"
    assert nodes["9"]["inputs"]["filename_prefix"] == "cat"
    (file,) = request.files
    assert file.data == photo and nodes["1"]["inputs"]["image"] == file.reference == "photo.png"


def test_defaults_count_and_a_seed_is_drawn(named: NamedWorkflows) -> None:
    request = ask(named, params={"prompt": "x"})
    assert request.workflow["3"]["inputs"]["steps"] == 20
    assert request.seeds == {"3.seed": request.workflow["3"]["inputs"]["seed"]}


def test_a_file_may_be_an_address_or_a_name(named: NamedWorkflows) -> None:
    url = "https://example.com/a/b.jpeg?sig=1"
    request = ask(named, params={"prompt": "x", "photo": url})
    (file,) = request.files
    assert file.url == url and request.workflow["1"]["inputs"]["image"] == "photo.jpeg"
    request = ask(named, params={"prompt": "x", "photo": "mine.png"})
    assert request.files == () and request.workflow["1"]["inputs"]["image"] == "mine.png"


def test_everything_that_is_wrong_is_said_at_once_with_what_is_allowed(
    named: NamedWorkflows,
) -> None:
    wrong = {"promt": "x", "steps": 99, "cfg": "7", "sampler": "x", "seed": -1, "photo": " "}
    error = refused(named, "params.unknown", params=wrong)
    for said in ("did you mean prompt", "`prompt` is missing", "at most 50", '"ddim"', "2^64"):
        assert said in error.message, said
    assert "steps (integer 1…50)" in error.fix and "prompt (string required)" in error.fix
    codes = [problem["error_code"] for problem in error.details["problems"]]
    assert codes == ["params.unknown", "params.missing", *["params.wrong"] * 5]


@pytest.mark.parametrize(
    ("params", "code"),
    [
        (None, "params.missing"),
        ([], "params.wrong"),
        ("text", "params.wrong"),
        ({"prompt": "x" * 101}, "params.wrong"),
        ({"prompt": 7}, "params.wrong"),
        ({"prompt": "x", "steps": True}, "params.wrong"),
        ({"prompt": "x", "steps": 1.5}, "params.wrong"),
        ({"prompt": "x", "steps": 10**400}, "params.wrong"),
        ({"prompt": "x", "cfg": 1e999}, "request.not_json"),
        ({"prompt": ["6", 0]}, "params.wrong"),
        ({"prompt": {"a": 1}}, "params.wrong"),
    ],
)
def test_values_of_another_kind_are_refused(named: NamedWorkflows, params: Any, code: str) -> None:
    refused(named, code, params=params)


def test_params_where_there_are_none(named: NamedWorkflows) -> None:
    assert ask(named, "deep/plain").workflow == WORKFLOW
    refused(named, "params.none", "deep/plain", params={"a": 1})
    given = {"workflow": WORKFLOW, "params": {"a": 1}}
    request = parse_request(given, Settings())
    assert isinstance(request, WorkflowRequest) and "params" in request.warnings[0]


def test_the_list_has_a_json_schema_for_each(named: NamedWorkflows) -> None:
    assert isinstance(parse_request({"type": "workflows"}, Settings()), WorkflowsRequest)
    listed = {entry["name"]: entry for entry in named.listed()}
    assert set(listed) == {"broken", "deep/plain", "portrait"}
    assert listed["deep/plain"]["params"] is None
    assert listed["broken"]["error_code"] == "params.file_wrong"
    assert "77" in listed["broken"]["error"]
    schema = listed["portrait"]["params"]
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    params: dict[str, Any]
    for params in ({"prompt": "x"}, {"prompt": "x", "seed": "random", "steps": 50}):
        assert validator.is_valid(params)
        ask(named, params=params)
    wrong: list[Any] = [{}, {"prompt": "x", "steps": 51}, {"prompt": "x", "no": 1}, {"prompt": 1}]
    for params in wrong:
        assert not validator.is_valid(params)
        with pytest.raises(JobError):
            ask(named, params=params)


def test_the_openapi_document_knows_them(named: NamedWorkflows) -> None:
    document = openapi(named.listed(), {"openapi": "3.1.0", "info": {}, "paths": {"/x": {}}})
    body = document["paths"]["/runsync"]["post"]["requestBody"]["content"]["application/json"]
    (reference, _) = body["schema"]["anyOf"]
    schema = document["components"]["schemas"][reference["$ref"].rpartition("/")[2]]
    jsonschema.validate({"input": {"workflow_name": "portrait", "params": {"prompt": "x"}}}, schema)
    assert schema["title"] == "portrait" and "/x" in document["paths"]


MISTAKES = [
    ("", "params"),
    ("params: []", "params"),
    ("params: {1a: {type: string, sets: 6.text}}", "1a"),
    ("params: {a: 7}", "number 7"),
    ("params: {a: {type: text, sets: 6.text}}", "boolean"),
    ("params: {a: {type: string}}", "sets"),
    ("params: {a: {type: string, sets: 6.txt}}", "text, clip"),
    ("params: {a: {type: string, sets: 6.text, max: 3}}", "max"),
    ("params: {a: {type: integer, sets: 3.steps, minimum: x}}", "minimum"),
    ("params: {a: {type: integer, sets: 3.steps, maximum: .inf}}", "maximum"),
    ("params: {a: {type: integer, sets: 3.steps, maximum: 5, default: 6}}", "default"),
    ("params: {a: {type: number, sets: 3.cfg, default: .nan}}", "finite"),
    ("params: {a: &x {type: integer}, b: *x}", "aliases"),
    ("params: {", "YAML"),
    ("params: {a: {type: string, sets: 6.text, enum: [2024-01-01, a]}}", "quotes"),
    ("params: {a: {type: string, sets: 6.text, enum: [yes, no]}}", "the value true"),
    ("params: {a: {type: string, sets: 6.text, enum: [!!binary aGk=]}}", "enum"),
    ("params: {a: {type: string, sets: 6.text, enum: !!set {b, c}}}", "enum"),
    ("params: {a: {type: string, sets: 6.text, enum: []}}", "enum"),
    ("params: {a: {type: integer, sets: 3.steps, enum: [1, b]}}", "must be a number"),
    ("params: {a: {type: number, sets: 3.cfg, enum: [.nan]}}", "finite"),
    ("params: {a: {type: boolean, sets: 3.steps, minimum: 1}}", "minimum"),
    ("params: {a: {type: string, sets: 6.text, maxLength: -3}}", "maxLength"),
    ("params: {a: {type: string, sets: 6.text, maxLength: 1.5}}", "maxLength"),
    ("params: {a: {type: seed, sets: 3.seed, maxLength: 3}}", "maxLength"),
    ("params: {a: {type: integer, sets: 3.steps, minimum: 50, maximum: 1}}", "50, above"),
    (f"params: {{a: {{type: seed, sets: 3.seed, default: 0x{'f' * 9000}}}}}", "default"),
    (f"params: {{a: {{type: integer, sets: 3.steps, default: 0x{'f' * 9000}}}}}", "default"),
    (f"params: {{a: {{type: number, sets: 3.cfg, enum: [0x{'f' * 9000}]}}}}", "enum"),
    ("params: {a: {type: string, sets: 6.text, default: 2024-99-99}}", "broken.params.yaml"),
    (f"description: 0x{'f' * 9000}\nparams: {{}}", "broken.params.yaml"),
    (f"params: {{0x{'f' * 9000}: {{type: seed}}}}", "broken.params.yaml"),
    ("!!python/object/apply:os.system [ls]", "YAML"),
]


@pytest.mark.parametrize(("text", "said"), MISTAKES)
def test_a_declaration_with_mistakes_is_refused_with_each_of_them(
    named: NamedWorkflows, tmp_path: Path, text: str, said: str
) -> None:
    (tmp_path / "workflows" / "broken.params.yaml").write_text(text)
    error = refused(named, "params.file_wrong", "broken", params={"a": 1})
    assert said in error.message
    listed = {entry["name"]: entry.get("error_code") for entry in named.listed()}
    assert listed == {"broken": "params.file_wrong", "deep/plain": None, "portrait": None}


def test_bounds_are_said_as_they_are(named: NamedWorkflows, tmp_path: Path) -> None:
    place = tmp_path / "workflows" / "broken.params.yaml"
    place.write_text("params: {a: {type: seed, sets: 3.seed, minimum: 1234567, maximum: 16777216}}")
    error = refused(named, "params.wrong", "broken", params={"a": 1})
    assert "at least 1234567" in error.message and "1234567…16777216" in error.fix


def test_what_is_listed_can_be_run(named: NamedWorkflows, tmp_path: Path) -> None:
    folder = tmp_path / "workflows"
    (folder / "Foo.JSON").write_text("\ufeff" + json.dumps(WORKFLOW), "utf-8")
    (folder / "._portrait.json").write_bytes(b"\0\5\x16\7")
    (folder / "Odd.Json").write_text(json.dumps(WORKFLOW))
    listed = [entry["name"] for entry in named.listed() if "error" not in entry]
    assert listed == ["Foo", "deep/plain", "portrait"]
    for name in (*listed, "Foo.JSON", "Foo.json"):
        assert named.read(name).workflow == WORKFLOW


def test_of_many_unknown_params_a_hundred_are_looked_up_and_a_missing_one_is_still_reported(
    named: NamedWorkflows,
) -> None:
    error = refused(named, "params.unknown", params={f"extra{n}": 1 for n in range(10_000)})
    codes = [problem["error_code"] for problem in error.details["problems"]]
    assert codes == ["params.unknown"] * 100 + ["params.missing"]


def test_a_link_out_of_the_folder_is_not_followed(named: NamedWorkflows, tmp_path: Path) -> None:
    outside = tmp_path / "outside.yaml"
    outside.write_text(DECLARED)
    place = tmp_path / "workflows" / "deep" / "plain.params.yaml"
    place.symlink_to(outside)
    assert ask(named, "deep/plain").workflow == WORKFLOW


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
names = st.sampled_from(["type", "sets", "default", "enum", "minimum", "maxLength", "required"])
declarations = st.dictionaries(
    st.sampled_from(["a", "b", "1", "…"]),
    json_values | st.dictionaries(names, json_values | st.sampled_from(["seed", "file", "6.text"])),
)


@settings(max_examples=200, deadline=None)
@given(declarations, json_values)
def test_whatever_is_declared_or_sent_is_applied_or_a_job_error(declared: Any, sent: Any) -> None:
    try:
        params = read_params({"params": declared}, WORKFLOW)
        json.dumps(params.schema())
        params.applied(sent)
    except JobError as error:
        code = error.code
    else:
        code = "params."
    assert code.startswith("params.")


def test_the_generator_says_which_file_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "none.json"
    (tmp_path / "one.json").write_text("{}")
    assert main([str(missing)]) == 2
    said, hint = capsys.readouterr().err.splitlines()
    assert said == f"error[client.usage]: {missing} does not exist."
    assert hint == f"hint: Did you mean {tmp_path / 'one.json'}?"
    assert main([str(tmp_path)]) == 2
    assert f"error[client.usage]: {tmp_path} is a folder.\n" in capsys.readouterr().err


def test_the_generator_says_what_is_wrong_with_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text('{"1": {\n"class_type": "A",}}')
    assert main([str(broken)]) == 2
    said, hint = capsys.readouterr().err.splitlines()
    assert "line 2, column 18: there must be no comma before }" in said
    assert hint.startswith("hint: Correct it, or export it again.")
    broken.write_text('{"nodes": [], "links": []}')
    assert main([str(broken)]) == 2
    assert "error[workflow.ui_format]: " in capsys.readouterr().err


def test_the_generator_makes_a_first_version_that_works(tmp_path: Path) -> None:
    folder = tmp_path / "workflows"
    folder.mkdir()
    (folder / "new.json").write_text(json.dumps(WORKFLOW))
    place = make_params(folder / "new.json")
    assert place.name == "new.params.yaml"
    declared = yaml.safe_load(place.read_text())
    assert {name: p["type"] for name, p in declared["params"].items()} == {
        "image": "file",
        "seed": "seed",
        "steps": "integer",
        "cfg": "number",
        "prompt": "string",
    }
    request = ask(NamedWorkflows(tmp_path), "new", params={"image": "a.png", "prompt": "a cat"})
    assert request.workflow["6"]["inputs"]["text"] == "a cat"
    with pytest.raises(FileExistsError):
        make_params(folder / "new.json")
    assert main([str(folder / "new.json")]) == 1 and main([str(folder / "none.json")]) == 2
    twice = {**WORKFLOW, "7": WORKFLOW["6"]}
    assert {"prompt", "prompt_2"} <= set(first_params(twice)["params"])
