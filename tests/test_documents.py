"""The documents say what the code does: codes, settings, JSON examples, commands."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bootstrap.fetch.receipts import Receipt
from bootstrap.manifest import parse_manifest
from bootstrap.manifest_entry import ModelSpec
from bootstrap.settings import Settings
from bootstrap.workplace import Result
from handler.requests import DiagnosticsRequest, DownloadRequest, WorkflowRequest, parse_request
from scripts.document import CODES_FILE, READMES, codes_document, with_settings

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
ALLOWING = Settings(allow_download_requests=True)


def blocks(document: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    fenced = re.compile(rf"^ *```{language}\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
    return fenced.findall(document.read_text("utf-8"))


def test_every_code_is_documented() -> None:
    assert CODES_FILE.read_text("utf-8") == codes_document(), "run `make docs`"


@pytest.mark.parametrize("readme", READMES, ids=lambda r: r.name)
def test_every_setting_is_documented(readme: Path) -> None:
    text = readme.read_text("utf-8")
    assert "| `VOLUME_PATH` |" in text and text == with_settings(text), "run `make docs`"


@pytest.mark.parametrize("readme", READMES, ids=lambda r: r.name)
def test_json_in_the_readme_is_what_the_worker_takes_and_gives(readme: Path) -> None:
    examples: list[Any] = [json.loads(block) for block in blocks(readme, "json")]
    requests = [e["input"] for e in examples if "input" in e]
    parsed = [parse_request(request, ALLOWING) for request in requests]
    assert not any(request.warnings for request in parsed), "a field that does not exist"
    assert {WorkflowRequest, DiagnosticsRequest, DownloadRequest} <= {type(r) for r in parsed}
    replies = [e for e in examples if "results" in e]
    assert replies
    for reply in replies:
        assert {"filename", "image", "path"} <= set(reply["results"][0])


def test_json_about_models_is_what_the_worker_takes_and_gives() -> None:
    seen = set()
    for block in blocks(ROOT / "docs" / "models.md", "json"):
        example: dict[str, Any] = json.loads(block)
        if "input" in example:
            request = parse_request(example["input"], ALLOWING)
            assert isinstance(request, DownloadRequest) and not request.warnings
            seen.add("request")
        elif "version" in example:
            manifest = parse_manifest(example)
            assert manifest.models and manifest.findings == ()
            seen.add("manifest")
        elif example["status"] == "IN_PROGRESS":
            assert set(example["output"]) == {"stage", "percent", "model", "detail"}
            seen.add("progress")
        else:
            spec = ModelSpec("m", "https://x.y/m", "loras")
            given = Result(spec, "fetched", receipt=Receipt(1, 1, None, ())).as_dict()
            (told,) = example["models"]
            assert set(told) == set(given)
            assert isinstance(given["receipt"], dict) and set(told["receipt"]) == set(
                given["receipt"]
            )
            seen.add("reply")
    assert seen == {"request", "manifest", "progress", "reply"}


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
