"""The documents say what the code does: codes, settings, JSON examples, commands."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bootstrap.settings import Settings
from handler import output_options, requests
from handler.requests import DiagnosticsRequest, WorkflowRequest, parse_request
from scripts.document import CODES_FILE, READMES, all_codes, codes_document
from tests.support.schemas import check_reply, check_request, validator

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"


def blocks(document: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    fenced = re.compile(rf"^ *```{language}\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
    return fenced.findall(document.read_text("utf-8"))


def test_every_code_is_documented() -> None:
    assert CODES_FILE.read_text("utf-8") == codes_document(), "run `make docs`"


@pytest.mark.parametrize("readme", [r for r in READMES if r.exists()], ids=lambda r: r.name)
def test_json_in_the_readme_is_what_the_worker_takes_and_gives(readme: Path) -> None:
    examples: list[Any] = [json.loads(block) for block in blocks(readme, "json")]
    requests = [e["input"] for e in examples if "input" in e]
    parsed = [parse_request(request, Settings()) for request in requests]
    assert not any(request.warnings for request in parsed), "a field that does not exist"
    assert {type(request) for request in parsed} == {WorkflowRequest, DiagnosticsRequest}
    replies = [e for e in examples if "results" in e]
    assert replies
    for reply in replies:
        assert {"filename", "image", "path"} <= set(reply["results"][0])


def test_json_in_the_api_page_fits_the_schemas_and_the_worker() -> None:
    examples: list[Any] = [json.loads(block) for block in blocks(ROOT / "docs" / "api.md", "json")]
    asked = [example for example in examples if "input" in example]
    for job in asked:
        given = {**job["input"], **({"s3Config": job["s3Config"]} if "s3Config" in job else {})}
        check_request(given)
        if "workflow" in given:
            request = parse_request(given, Settings())
            assert isinstance(request, WorkflowRequest) and not request.warnings
    replies = [example for example in examples if "status" in example]
    assert len(asked) == 2 and {reply["status"] for reply in replies} == {"completed", "failed"}
    for reply in replies:
        check_reply(reply)
        assert reply.get("error_code", "input.missing") in all_codes()


@pytest.mark.parametrize("readme", READMES, ids=lambda r: r.name)
def test_examples_in_the_readme_fit_the_schemas(readme: Path) -> None:
    for example in map(json.loads, blocks(readme, "json")):
        if "results" in example:
            check_reply(example)
        elif "type" not in example.get("input", {"type": 1}):
            check_request(example["input"])


def test_the_schema_of_requests_knows_every_field_that_is_read() -> None:
    schema: Any = validator("request").schema
    properties = schema["properties"]
    assert set(properties) == {*requests._WORKFLOW_FIELDS, "type"}
    assert set(properties["output"]["properties"]) == set(output_options._FIELDS)


def test_both_readmes_have_the_same_examples_and_links() -> None:
    english, russian = READMES
    for language in ("json", "sh"):
        ours, theirs = blocks(english, language), blocks(russian, language)
        assert [_without_comments(b) for b in ours] == [_without_comments(b) for b in theirs]
    found = [sorted(set(_links(readme))) for readme in READMES]
    assert found[0] == found[1]


def test_links_lead_somewhere() -> None:
    for document in (*READMES, ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text("utf-8")):
            assert (document.parent / link).exists(), f"{document.name} links to {link}"


def test_make_targets_that_are_named_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in (*READMES, ROOT / "CONTRIBUTING.md"):
        text = document.read_text("utf-8")
        named = set(re.findall(r"(?:^|`|\()make (?:-s )?([a-z]+(?:-[a-z]+)*)", text, re.MULTILINE))
        assert named <= targets, f"{document.name} names {named - targets}"


def test_the_checkers_options_in_the_readme_exist() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "check_volume.py"), "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    options = set(re.findall(r"^\| `(--[a-z]+)", README.read_text("utf-8"), re.MULTILINE))
    assert options
    assert options == set(re.findall(r"^  (--[a-z]+)", done.stdout, re.MULTILINE))


def _without_comments(block: str) -> str:
    return re.sub(r"\s+# .*", "", block)


def _links(readme: Path) -> list[str]:
    links = re.findall(r"\]\(([^)]+)\)", readme.read_text("utf-8"))
    return [link for link in links if not re.fullmatch(r"README(\.ru)?\.md", link)]
