"""The documents say what the code does: codes, settings, JSON examples, commands."""

from __future__ import annotations

import ast
import fnmatch
import importlib.util
import json
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from jsonschema import validate

from bootstrap.config import Settings, variables
from bootstrap.core.findings import DOCS, docs_url
from bootstrap.models.manifest import parse_manifest
from bootstrap.models.manifest_entry import ModelSpec
from bootstrap.models.presence import Receipt
from bootstrap.models.provision import ProvisionResult
from handler.request import fields, params, parse
from handler.request.named_workflows import NamedWorkflows
from handler.request.parse import (
    DiagnosticsRequest,
    DownloadRequest,
    WorkflowRequest,
    WorkflowsRequest,
    parse_request,
)
from scripts import check_volume, submit
from scripts.document import TROUBLESHOOTING, all_codes, documents, russian_codes
from scripts.errors import EXIT_CODES
from tests.handler.request.test_worker_comfyui import FAILURE, SUCCESS
from tests.support import check_cases
from tests.support.schemas import check_reply, check_request, validator
from tests.test_architecture import past_faces

ROOT = Path(__file__).parent.parent
READMES = (ROOT / "README.md", ROOT / "README.ru.md")
CHECK = ROOT / "docs" / "check.md"
ALLOWING = Settings(allow_download_requests=True)


def blocks(document: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    fenced = re.compile(rf"^ *```{language}\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
    return fenced.findall(document.read_text("utf-8"))


def test_every_file_has_its_room_in_the_architecture() -> None:
    rows = (ROOT / "docs" / "architecture.md").read_text("utf-8").split("## The life of a boot")[0]
    rooms: set[str] = set()
    for row in rows.splitlines():
        names = re.findall(r"`([^`]+)`", row.split("|")[1]) if row.startswith("| `") else []
        package = names[0].partition("/")[0] if names else ""
        rooms |= {name if "/" in name.rstrip("/") else f"{package}/{name}" for name in names}
    here = {
        str(path.relative_to(ROOT)) + ("/" if path.is_dir() else "")
        for package in ("bootstrap", "handler")
        for path in (ROOT / package).iterdir()
        if path.name not in ("__init__.py", "__pycache__")
    }
    homeless = {path for path in here if not any(fnmatch.fnmatch(path, room) for room in rooms)}
    empty = {room for room in rooms if not fnmatch.filter(here, room)}
    assert (homeless, empty) == (set(), set())


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_what_documents_hold_of_the_code_is_up_to_date(path: Path) -> None:
    assert path.read_text("utf-8") == documents()[path], "run `make docs`"


def test_every_code_has_one_anchor_on_both_pages() -> None:
    for page in TROUBLESHOOTING:
        anchors = re.findall(r'\| <a id="([^"]+)">', page.read_text("utf-8"))
        assert sorted(anchors) == sorted(all_codes()), page.name
    assert docs_url("volume.full").endswith("/troubleshooting/#volume.full")


def test_every_code_has_its_russian_meaning_with_the_same_figures_and_names() -> None:
    english, russian = all_codes(), russian_codes()
    assert list(russian) == sorted(english)
    for code, meaning in russian.items():
        assert re.search("[а-яё]", meaning) and not meaning.endswith("."), code
        assert _figures(english[code], ".") <= _figures(meaning, ","), code
        assert set(re.findall("`.+?`", english[code])) <= set(re.findall("`.+?`", meaning)), code


def test_every_section_names_codes_that_exist_and_both_pages_the_same() -> None:
    named = [
        re.findall(r"<!-- codes: (.*?) -->", page.read_text("utf-8")) for page in TROUBLESHOOTING
    ]
    assert named[0] == named[1]
    codes = all_codes()
    assert [p for line in named[0] for p in line.split() if not fnmatch.filter(codes, p)] == []


def test_the_address_of_the_documentation_is_in_one_place() -> None:
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    repository, documentation = (
        re.search(rf'^urls\.{name} = "(.*)"', project, re.MULTILINE)[1]  # type: ignore[index]
        for name in ("Repository", "Documentation")
    )
    site = (ROOT / "mkdocs.yml").read_text("utf-8")
    assert documentation == f"{DOCS}/"
    assert f"site_url: {documentation}\nrepo_url: {repository}\n" in site
    for readme in READMES:
        text = readme.read_text("utf-8")
        cloned = set(re.findall(r"git clone (\S+)", text))
        images = set(re.findall(r"ghcr\.io/[\w./-]+", text))
        assert cloned == {repository}
        assert images == {repository.replace("https://github.com", "ghcr.io").lower()}


def test_json_about_checks_is_what_the_worker_takes() -> None:
    for page in (ROOT / "docs" / "check.md", ROOT / "docs" / "check.ru.md"):
        (example,) = map(json.loads, blocks(page, "json"))
        request = parse_request(example["input"], ALLOWING)
        assert isinstance(request, DiagnosticsRequest) and not request.warnings


def test_json_about_models_is_what_the_worker_takes_and_gives() -> None:
    seen = set()
    for block in blocks(ROOT / "docs" / "models.md", "json"):
        example: dict[str, Any] = json.loads(block)
        if "input" in example:
            request = parse_request(example["input"], ALLOWING)
            assert isinstance(request, DownloadRequest | WorkflowRequest) and not request.warnings
            seen.add("by address" if isinstance(request, WorkflowRequest) else "request")
        elif "version" in example:
            manifest = parse_manifest(example)
            assert manifest.models and manifest.findings == ()
            seen.add("manifest")
        elif example["status"] == "IN_PROGRESS":
            assert set(example["output"]) == {"stage", "percent", "model", "detail"}
            seen.add("progress")
        else:
            spec = ModelSpec("m", "https://x.y/m", "loras")
            given = ProvisionResult(spec, "fetched", receipt=Receipt(1, 1, None, ())).as_dict()
            (reported,) = example["models"]
            assert set(reported) == set(given)
            assert isinstance(given["receipt"], dict) and set(reported["receipt"]) == set(
                given["receipt"]
            )
            seen.add("reply")
    assert seen == {"request", "by address", "manifest", "progress", "reply"}


def test_the_page_about_workflows_is_what_the_worker_takes_and_gives(tmp_path: Path) -> None:
    page = ROOT / "docs" / "workflows.md"
    inputs = {"text": "", "steps": 1, "sampler_name": "", "seed": 0, "noise_seed": 0, "image": ""}
    nodes = {n: {"class_type": "X", "inputs": dict(inputs)} for n in ("1", "3", "6", "12")}
    (tmp_path / "workflows").mkdir()
    (tmp_path / "workflows/portrait.json").write_text(json.dumps(nodes))
    (declared,) = blocks(page, "yaml")
    (tmp_path / "workflows/portrait.params.yaml").write_text(declared)
    named = NamedWorkflows(tmp_path)
    asked, listing, reply = map(json.loads, blocks(page, "json"))
    request = parse_request(asked["input"], Settings(), None, named.read)
    assert isinstance(request, WorkflowRequest) and request.workflow["6"]["inputs"]["text"]
    assert isinstance(parse_request(listing["input"], Settings()), WorkflowsRequest)
    (entry,) = named.listed()
    reported = reply["workflows"][0]
    assert set(reported) == set(entry) and reported["description"] == entry["description"]
    for name, schema in reported["params"]["properties"].items():
        assert schema == entry["params"]["properties"][name]
    fields = set(re.findall(r"^\| (`.*?) \|", page.read_text().split("## Asking")[0], re.MULTILINE))
    assert {name for row in fields for name in re.findall(r"`(\w+)`", row)} == params._FIELDS
    for command in commands(page):
        assert command.startswith("comfyui-worker params /")


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
    assert len(asked) == 3 and {reply["status"] for reply in replies} == {"completed", "failed"}
    for reply in replies:
        check_reply(reply)
        assert reply.get("error_code", "input.missing") in all_codes()


def test_the_schema_of_requests_knows_every_field_that_is_read() -> None:
    schema: Any = validator("request").schema
    properties = schema["properties"]
    assert set(properties) == {*parse._WORKFLOW_FIELDS, "type"}
    assert set(properties["output"]["properties"]) == set(fields._OUTPUT_FIELDS)


RUSSIAN = [*(ROOT / "docs").glob("*.ru.md"), ROOT / "README.ru.md"]
ENGLISH = [
    *(page for page in (ROOT / "docs").glob("*.md") if not page.name.endswith(".ru.md")),
    ROOT / "README.md",
]


@pytest.mark.parametrize("russian", RUSSIAN, ids=lambda page: page.name)
def test_a_russian_page_has_the_examples_and_links_of_the_english_one(russian: Path) -> None:
    english = russian.with_name(russian.name.replace(".ru.md", ".md"))
    for language in ("json", "sh"):
        ours, theirs = blocks(english, language), blocks(russian, language)
        assert [_without_comments(b) for b in ours] == [_without_comments(b) for b in theirs]
    assert _links(english) == _links(russian)


@pytest.mark.parametrize("russian", RUSSIAN, ids=lambda page: page.name)
def test_a_russian_page_has_the_figures_of_the_english_one(russian: Path) -> None:
    english = russian.with_name(russian.name.replace(".ru.md", ".md"))
    theirs, ours = (page.read_text("utf-8") for page in (english, russian))
    assert _figures(theirs, ".") - _figures(ours, ",") == set()


@pytest.mark.parametrize("russian", RUSSIAN, ids=lambda page: page.name)
def test_a_russian_page_links_to_russian_pages_and_says_what_they_are(russian: Path) -> None:
    text = russian.read_text("utf-8").replace("[In English](README.md)", "")
    for shown, page in re.findall(r"\[([^]]*)\]\((?!https?:)([^)#]+)\.md\b", text):
        assert not shown.endswith(".ru.md")
        assert page.endswith(".ru") or not (russian.parent / f"{page}.ru.md").is_file(), page


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda p: p.name)
def test_a_link_says_where_it_leads_instead_of_a_file_name(page: Path) -> None:
    assert re.findall(r"\[[\w./-]+\.md\]\(", page.read_text("utf-8")) == []


# Written by the benchmarks; for those who change the code. All else has its Russian page.
ENGLISH_ONLY = {"benchmarks.md", "architecture.md"}


def test_every_page_has_its_russian_one() -> None:
    pages = {page.name for page in (ROOT / "docs").glob("*.md")}
    english = {name for name in pages if not name.endswith(".ru.md")} - ENGLISH_ONLY
    assert {name.replace(".ru.md", ".md") for name in pages - english - ENGLISH_ONLY} == english


@pytest.mark.parametrize("russian", RUSSIAN, ids=lambda page: page.name)
def test_a_russian_page_has_the_headings_tables_and_anchors_of_the_english_one(
    russian: Path,
) -> None:
    english = russian.with_name(russian.name.replace(".ru.md", ".md"))
    assert _shape(english) == _shape(russian)
    linked = {anchor for page in ENGLISH for anchor in _anchors_linked(page, english)}
    assert linked <= _anchors(russian)


def _shape(page: Path) -> list[str]:
    """The levels of its headings and the rows of its tables, in order; blocks of code left out."""
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"^(#+ | *\|)", text, re.MULTILINE)


_NOT_PROSE = re.compile(r"<!-- codes.*?<!-- /codes|```.*?```|`[^`]*`|\]\([^)]*\)", re.DOTALL)


def _figures(text: str, point: str) -> set[str]:
    """The numbers of a text, each as in English: 1,715 and 1.5 are 1 715 and 1,5 in Russian."""
    separator = "[\u00a0 ]" if point == "," else ","
    text = re.sub(rf"(?<=\d){separator}(?=\d{{3}}\b)", "", _NOT_PROSE.sub("", text))
    return {figure.replace(point, ".") for figure in re.findall(r"\d+(?:[.,]\d+)*", text)}


def _anchors_linked(page: Path, target: Path) -> set[str]:
    """The anchors of `target` that links on `page` lead to."""
    links = re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", page.read_text("utf-8"))
    return {anchor for name, anchor in links if (page.parent / (name or page.name)) == target}


@pytest.mark.parametrize("readme", READMES, ids=lambda readme: readme.name)
def test_a_readme_is_short(readme: Path) -> None:
    assert len(readme.read_text("utf-8").splitlines()) <= 150


def test_links_lead_somewhere() -> None:
    for document in (*READMES, ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text("utf-8")):
            assert (document.parent / link).exists(), f"{document.name} links to {link}"


def test_make_targets_that_are_named_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in (*READMES, ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        text = document.read_text("utf-8")
        named = set(re.findall(r"(?:^|`|\()make (?:-s )?([a-z]+(?:-[a-z]+)*)", text, re.MULTILINE))
        assert named <= targets, f"{document.name} names {named - targets}"


def test_the_checkers_options_that_are_reported_exist() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "check_volume.py"), "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    options = set(re.findall(r"^\| `(--[a-z]+)", CHECK.read_text("utf-8"), re.MULTILINE))
    assert options
    assert options == set(re.findall(r"^  (--[a-z]+)", done.stdout, re.MULTILINE))


def _without_comments(block: str) -> str:
    return re.sub(r"\s+# .*", "", block)


def _links(page: Path) -> set[str]:
    """Where a page leads to, whichever language the page there has, without anchors."""
    text = page.read_text("utf-8").replace(f"{DOCS}/ru/", f"{DOCS}/")
    links = re.findall(r"\]\(([^)#]+)", text)
    return {re.sub(r"\.ru\.(md|svg)$", r".\1", link) for link in links} - {"README.md"}


# --- docs/ ------------------------------------------------------------------------------------

PAGES = [
    *(ROOT / "docs" / f"{n}.md" for n in "client check deploy migration security".split()),
    *(ROOT / "docs" / f"{n}.ru.md" for n in "client check deploy migration security".split()),
]
CODE = re.compile(r"`([a-z0-9]+(?:_[a-z0-9]+)*\.[a-z0-9_*]+)`")
# Variables of Runpod's, of other programs, of other workers; all others are settings.
FOREIGN = re.compile(
    r"RUNPOD_\w+|BUCKET_\w+|ENDPOINT_URL|MALLOC_ARENA_MAX|PYTORCH_\w+|WEBSOCKET_\w+|COMFY_API_\w+"
    r"|CUDA_VISIBLE_DEVICES|HF_ENDPOINT|HF_HUB_\w+|LD_PRELOAD|NVIDIA_DRIVER_CAPABILITIES"
    r"|MAX_WIAT|COMFY_ARGS|NETWORK_VOLUME_DEBUG|SERVE_API_LOCALLY|PUBLIC_KEY|YOUR_NAME|PYTHON_VERSION"
)


def commands(document: Path) -> list[str]:
    """The lines of a page's sh blocks."""
    lines = [line for block in blocks(document, "sh") for line in block.splitlines()]
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


def test_these_pages_have_commands_at_all() -> None:
    assert sum(len(commands(page)) for page in PAGES) > 15


@pytest.mark.parametrize(
    "command", sorted({c for page in PAGES for c in commands(page)}), ids=lambda c: c[:60]
)
def test_every_command_is_one_that_exists(command: str) -> None:
    """tests/end_to_end/test_clients.py really runs those of docs/client.md."""
    words = shlex.split(command, comments=True)
    words = words[: words.index("<") if "<" in words else None]
    words = words[: words.index(">") if ">" in words else None]
    if words[0] == "curl":
        assert words[1] == "-fsSLO" and words[2].endswith("/download/check_volume.py")
    elif words[0] == "export":
        assert all(FOREIGN.fullmatch(word.partition("=")[0]) for word in words[1:])
    elif words[0] == "docker":
        assert words[1] in ("build", "push")
        assert "--platform" not in words or "linux/amd64" in words
    elif words[:2] == ["comfyui-worker", "submit"]:
        submit._parser().parse_args(words[2:])
    elif words[:2] == ["python3", "check_volume.py"]:
        check_volume._parser().parse_args(words[2:])
    else:
        assert words[0] in ("python3", "sh")
        assert all((ROOT / word).is_file() for word in words[1:])


def test_json_on_these_pages_is_what_is_taken_and_given() -> None:
    examples = [json.loads(block) for page in PAGES for block in blocks(page, "json")]
    replies = [example for example in examples if "input" not in example]
    assert {"images" in e or "error" in e for e in replies} == {True}
    for example in replies:
        validate(example, FAILURE if "error" in example else SUCCESS)
        if "error_code" in example:
            assert example["error_code"] in all_codes()
    for page in (*PAGES, ROOT / "docs" / "troubleshooting.md"):
        for inline in re.findall(r'`(\{"(?:type|input)".*?\})`', page.read_text("utf-8")):
            if "…" not in inline:
                parse_request(json.loads(inline), Settings())


def test_variables_on_these_pages_are_settings() -> None:
    known = {name for v in variables().values() for name in (v.name, *v.aliases)}
    for page in (*PAGES, ROOT / "docs" / "troubleshooting.md", ROOT / "docs" / "architecture.md"):
        named = set(re.findall(r"`([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)\b", page.read_text("utf-8")))
        states = {"IN_QUEUE", "IN_PROGRESS"}
        assert {n for n in named - known - states if not FOREIGN.fullmatch(n)} == set(), page.name


def test_the_options_of_the_client_are_all_reported() -> None:
    text = (ROOT / "docs" / "client.md").read_text("utf-8")
    reported = set(re.findall(r"^\| `(--[a-z-]+)`", text, re.MULTILINE))
    actions = submit._parser()._actions
    assert reported == {o for a in actions for o in a.option_strings} - {"-h", "--help"}
    codes = re.findall(r"^\| (\d+) \|", text, re.MULTILINE)
    assert codes == re.findall(r"^  (\d+) ", EXIT_CODES, re.MULTILINE)


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "docs" / "troubleshooting.md"], ids=lambda p: p.name
)
def test_codes_that_are_named_exist(page: Path) -> None:
    codes = all_codes()
    families = {code.partition(".")[0] for code in codes}
    for named in CODE.findall(page.read_text("utf-8")):
        family, _, rest = named.partition(".")
        if family in families and rest not in ("py", "json", "yaml", "md"):
            assert fnmatch.filter(codes, named), named


def test_anchors_of_these_pages_exist() -> None:
    pages = [*(ROOT / "docs").glob("*.md"), *READMES]
    for page in pages:
        for target, anchor in re.findall(
            r"\]\((?!https?:)([^)#]*)#([^)]+)\)", page.read_text("utf-8")
        ):
            other = page.parent / target if target else page
            assert anchor in _anchors(other), f"{page.name} links to {target}#{anchor}"


def test_the_rooms_on_the_architecture_page_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    for row in re.findall(r"^\| (`.*?) \|", text, re.MULTILINE):
        first, *more = re.findall(r"`([^`]+)`", row)
        package = first.partition("/")[0]
        for name in (first, *(f"{package}/{other}" for other in more)):
            assert list(ROOT.glob(name.rstrip("/"))), name


def _anchors(document: Path) -> set[str]:
    """As GitHub makes them of headings, and those that were placed."""
    headings = re.findall(r"^#+ (.*)$", document.read_text("utf-8"), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    placed = re.findall(r'<a id="([^"]+)">', document.read_text("utf-8"))
    return {heading.strip().replace(" ", "-") for heading in plain} | set(placed)


def test_the_check_in_contributing_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its two files, put where the text says."""
    check, test = blocks(ROOT / "CONTRIBUTING.md", "python")
    assert past_faces("bootstrap.doctor", ast.parse(textwrap.dedent(check))) == set()
    processor = loaded(tmp_path / "processor.py", check)
    monkeypatch.setattr("bootstrap.doctor.checks.processor", processor, raising=False)
    monkeypatch.setattr(check_cases, "CHECKS", (*check_cases.CHECKS, processor.check_processor))
    tests = loaded(tmp_path / "cases.py", test)
    for case in tests.CASES:
        tests.test_finding(case)
    tests.test_every_code_has_a_case()


def loaded(path: Path, text: str) -> Any:
    path.write_text(textwrap.dedent(text), "utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
