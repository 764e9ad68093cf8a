"""Manifests and workflows: all mistakes are reported together; the rest is used."""

from __future__ import annotations

import io
import json
import re
from importlib import resources, util
from pathlib import Path
from typing import Any

import pytest

from bootstrap import net as download_errors
from bootstrap.core.findings import Severity, errors_in
from bootstrap.models import cli
from bootstrap.models import manifest as manifest_module
from bootstrap.models.manifest import MOST_MODELS, Manifest, is_workflow, parse_manifest
from bootstrap.models.manifest_file import MAX_BYTES, add_entry, load_manifest
from tests.support.provisioning import MARKER, sha256, spec, tensors
from tests.support.vicious_server import ViciousServer

URL = "https://models.example/m.safetensors"
GOOD: dict[str, Any] = {"name": "m.safetensors", "url": URL, "directory": "loras"}


def one(**fields: Any) -> Manifest:
    entry = {key: value for key, value in {**GOOD, **fields}.items() if value is not ...}
    return parse_manifest({"version": 1, "models": [entry]})


def codes(manifest: Manifest) -> list[str]:
    return [finding.code for finding in manifest.findings]


def test_a_full_entry_is_read_and_written_back() -> None:
    entry = {
        **GOOD,
        "hash": "A" * 64,
        "hash_type": "SHA256",
        "size": 7,
        "revision": "main",
        "optional": True,
        "allow_pickle": True,
        "note": {"mine": 1},
    }
    read = parse_manifest({"version": 1, "models": [entry], "title": "kept out of the way"})
    assert read.findings == ()
    assert read.models[0].as_entry() == {**entry, "hash": "a" * 64}


@pytest.mark.parametrize(
    ("fields", "code", "field"),
    [
        ({"url": ...}, "manifest.field", "url"),
        ({"url": 5}, "manifest.field", "url"),
        ({"url": "ftp://x/y"}, "manifest.url", "url"),
        ({"url": "http://x.example/m.safetensors"}, "manifest.url", "url"),
        ({"url": "https://u:p@x.example/m"}, "manifest.url", "url"),
        ({"url": "https://huggingface.co/org/repo"}, "manifest.url", "url"),
        ({"url": "https://civitai.com/models/5"}, "manifest.url", "url"),
        ({"url": "urn:air:sdxl:lora:civitai:5"}, "manifest.url", "url"),
        ({"url": "https://x.example/a\nb"}, "manifest.url", "url"),
        ({"directory": ...}, "manifest.field", "directory"),
        ({"directory": "../loras"}, "manifest.name", "directory"),
        ({"directory": "/loras"}, "manifest.name", "directory"),
        ({"directory": "a//b"}, "manifest.name", "directory"),
        ({"directory": "C:\\x"}, "manifest.name", "directory"),
        ({"name": "../m.safetensors"}, "manifest.name", "name"),
        ({"name": "a/b.safetensors"}, "manifest.name", "name"),
        ({"name": "a\\b.safetensors"}, "manifest.name", "name"),
        ({"name": "C:m.safetensors"}, "manifest.name", "name"),
        ({"name": "nul\0.safetensors"}, "manifest.name", "name"),
        ({"name": ".."}, "manifest.name", "name"),
        ({"name": ".hidden.safetensors"}, "manifest.name", "name"),
        ({"name": "CON.safetensors"}, "manifest.name", "name"),
        ({"name": "\ud800.safetensors"}, "manifest.name", "name"),
        ({"name": "x" * 250 + ".safetensors"}, "manifest.name", "name"),
        ({"name": "ü" * 120 + ".safetensors"}, "manifest.name", "name"),
        ({"size": -1}, "manifest.field", "size"),
        ({"size": "7"}, "manifest.field", "size"),
        ({"size": True}, "manifest.field", "size"),
        ({"hash": "abc"}, "manifest.field", "hash"),
        ({"optional": "yes"}, "manifest.field", "optional"),
        ({"name": "m.ckpt", "directory": "checkpoints"}, "manifest.pickle", "allow_pickle"),
        ({"name": "m.pt", "allow_pickle": True}, "manifest.pickle", "allow_pickle"),
    ],
    ids=str,
)
def test_a_fault_names_entry_and_field(fields: dict[str, Any], code: str, field: str) -> None:
    read = one(**fields)
    assert read.models == ()
    (finding,) = errors_in(read.findings)
    assert finding.code == code
    assert finding.details == {"entry": "models[0]", "field": field}
    assert "models[0]" in finding.message
    assert finding.fix


@pytest.mark.parametrize(
    ("fields", "code", "words"),
    [
        ({"directory": "lora"}, "manifest.unknown_folder", "Did you mean `loras`?"),
        ({"directory": "Loras"}, "manifest.unknown_folder", "loras"),
        ({"name": "m.gguf"}, "manifest.extension", "directory"),
        ({"hash": "x", "hash_type": "BLAKE3"}, "manifest.hash_type", "sha256sum"),
    ],
)
def test_what_is_odd_is_a_warning(fields: dict[str, Any], code: str, words: str) -> None:
    read = one(**fields)
    assert len(read.models) == 1
    (finding,) = read.findings
    assert (finding.code, finding.severity) == (code, Severity.WARNING)
    assert words in f"{finding.message} {finding.fix}"


def test_all_faults_of_all_entries_come_at_once() -> None:
    read = parse_manifest(
        {"version": 1, "models": [{}, GOOD, 5, {"url": "x", "name": "/", "directory": ".."}]}
    )
    assert len(read.models) == 1
    entries = [finding.details["entry"] for finding in read.findings]
    assert entries == ["models[0]"] * 3 + ["models[2]"] + ["models[3]"] * 3


def test_pickles_pass_when_allowed_and_pinned() -> None:
    read = one(name="m.ckpt", directory="checkpoints", allow_pickle=True, hash="0" * 64)
    assert read.findings == ()


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ({}, []),
        ({"hash": "0" * 64}, []),
        ({"url": "https://other.example/m.safetensors"}, ["manifest.two_for_one_file"]),
        ({"name": "M.safetensors"}, ["manifest.case_twins"]),
    ],
)
def test_two_entries_for_one_file(second: dict[str, Any], expected: list[str]) -> None:
    read = parse_manifest({"version": 1, "models": [GOOD, {**GOOD, **second}]})
    assert codes(read) == expected
    assert len(read.models) == 1
    if "hash" in second:
        assert read.models[0].sha256 == "0" * 64


def test_clip_and_text_encoders_are_one_folder() -> None:
    other = {**GOOD, "directory": "clip", "url": "https://other.example/m.safetensors"}
    read = parse_manifest({"version": 1, "models": [{**GOOD, "directory": "text_encoders"}, other]})
    assert codes(read) == ["manifest.two_for_one_file"]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        ([], "manifest.shape"),
        ("x", "manifest.shape"),
        ({}, "manifest.shape"),
        ({"version": 1, "models": {}}, "manifest.shape"),
        ({"models": []}, "manifest.version"),
        ({"version": 2, "models": []}, "manifest.version"),
        ({"3": {"class_type": "KSampler", "inputs": {}}}, "manifest.shape"),
        ({"version": 1, "models": []}, "manifest.no_models"),
        ({"nodes": [], "version": 0.4}, "manifest.no_models"),
    ],
)
def test_what_is_not_a_manifest_is_reported(data: Any, code: str) -> None:
    assert codes(parse_manifest(data)) == [code]


def test_a_workflow_is_a_manifest() -> None:
    def node(name: str, **more: Any) -> dict[str, Any]:
        models = [{**GOOD, "name": name, "url": f"https://models.example/{name}"}]
        return {"id": 1, "type": "LoraLoader", "properties": {"models": models}, **more}

    workflow: dict[str, Any] = {
        "version": 0.4,
        "models": [{**GOOD, "name": "top.safetensors"}],
        "nodes": [node("a.safetensors"), node("muted.safetensors", mode=2), {"properties": None}],
        "definitions": {"subgraphs": [{"name": "Sub", "nodes": [node("s.safetensors"), 5]}]},
    }
    workflow["nodes"].append({"properties": {"models": [{"position": {"x": 1}}, "other"]}})
    read = parse_manifest(workflow)
    assert {m.name: m.optional for m in read.models} == {
        "top.safetensors": False,
        "a.safetensors": False,
        "muted.safetensors": True,
        "s.safetensors": False,
    }
    assert not errors_in(read.findings)


def test_what_is_wrong_with_a_workflows_model_is_an_error_but_not_what_other_nodes_keep() -> None:
    wrong = [{**GOOD, "url": "ftp://models.example/m"}, {"position": {"x": 1}}]
    findings = parse_manifest({"nodes": [], "models": wrong}).findings
    assert {f.severity for f in findings if f.code == "manifest.url"} == {Severity.ERROR}
    assert {f.severity for f in findings if f.code == "manifest.field"} == {Severity.WARNING}


def test_the_official_templates_parse() -> None:
    if util.find_spec("comfyui_workflow_templates_json") is None:
        pytest.skip("comfyui-workflow-templates-json is not installed (requirements/dev.txt)")
    folder = Path(str(resources.files("comfyui_workflow_templates_json"))) / "templates"
    workflows = models = 0
    for path in sorted(folder.rglob("*.json")):
        data = json.loads(path.read_text("utf-8"))
        if not isinstance(data, dict) or not is_workflow(data):
            continue  # the index in several languages, and lists for its search
        read = parse_manifest(data, path.name)
        assert not errors_in(read.findings), read.findings
        workflows += 1
        models += len(read.models)
    assert workflows >= 600
    assert models >= 900


# --- files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["models.json", "models.yaml"])
def test_the_volume_s_own_manifest_is_found(name: str, tmp_path: Path) -> None:
    text = json.dumps({"version": 1, "models": [GOOD]})  # JSON is YAML as well
    (tmp_path / name).write_text(text)
    assert [m.name for m in load_manifest(None, tmp_path).models] == ["m.safetensors"]


def test_inline_and_relative_and_none(tmp_path: Path) -> None:
    inline = json.dumps({"version": 1, "models": [GOOD]})
    assert len(load_manifest(inline, tmp_path).models) == 1
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/w.json").write_text(inline)
    assert len(load_manifest("sub/w.json", tmp_path).models) == 1
    assert load_manifest(None, tmp_path) == Manifest()


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("m.json", b"{", "manifest.unreadable"),
        ("m.json", b"\xff\xfe", "manifest.unreadable"),
        ("m.json", b"[" * 100_000, "manifest.unreadable"),
        ("m.yaml", b"a: [", "manifest.unreadable"),
        ("m.yaml", b"a: &a [1]\nb: *a", "manifest.unreadable"),
        ("m.yaml", b"a: !!python/object/apply:os.system [id]", "manifest.unreadable"),
        ("m.yaml", b"a: 2026-99-99", "manifest.unreadable"),
        ("m.yaml", b"#" * 2_000_000, "manifest.too_large"),
        ("m.json", b" " * (MAX_BYTES + 1), "manifest.too_large"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_cannot_be_read_is_reported(
    name: str, content: bytes, code: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    assert codes(load_manifest(str(tmp_path / name), tmp_path)) == [code]


def test_a_missing_manifest_is_reported(tmp_path: Path) -> None:
    assert codes(load_manifest("none.json", tmp_path)) == ["manifest.unreadable"]


def test_the_fix_names_what_is_to_be_corrected(tmp_path: Path) -> None:
    (tmp_path / "models.json").write_text("{")
    [in_file] = load_manifest(None, tmp_path).findings
    [in_variable] = load_manifest('{"models": [', tmp_path).findings
    assert in_file.fix.startswith("Correct the file")
    assert "MODELS_MANIFEST is not valid JSON" in in_variable.message
    assert in_variable.fix.startswith("Correct it in the endpoint's environment variables")


def test_a_manifest_of_5_mb_is_read(tmp_path: Path) -> None:
    entries = [{**GOOD, "name": f"{n}.safetensors", "note": "x" * 400} for n in range(10_000)]
    path = tmp_path / "models.json"
    path.write_text(json.dumps({"version": 1, "models": entries}))
    assert path.stat().st_size > 5_000_000
    assert len(load_manifest(None, tmp_path).models) == 10_000


def test_no_more_entries_are_read_than_a_start_can_bear() -> None:
    """Each bad one is a finding: a file of the allowed size took minutes and all memory."""
    found = parse_manifest({"version": 1, "models": [0] * (MOST_MODELS + 1)}).findings
    assert len(found) == MOST_MODELS + 1
    assert found[-1].code == "manifest.too_large"


@pytest.mark.parametrize("name", ["models.json", "models.yaml"])
def test_adding_keeps_what_is_there(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    assert add_entry(path, spec(URL))
    assert not add_entry(path, spec(URL))
    assert add_entry(path, spec(URL, name="n.safetensors", note="kept"))
    assert add_entry(path, spec(URL, hash="0" * 64))
    read = load_manifest(None, tmp_path)
    assert [(m.name, m.sha256, dict(m.extra)) for m in read.models] == [
        ("m.safetensors", "0" * 64, {}),
        ("n.safetensors", None, {"note": "kept"}),
    ]
    assert [p.name for p in tmp_path.iterdir()] == [name]


# --- command ----------------------------------------------------------------------------------

DATA = tensors(300_000)


@pytest.fixture
def volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VOLUME_PATH", str(tmp_path))
    monkeypatch.setenv("ALLOW_PRIVATE_DOWNLOAD_URLS", "true")
    monkeypatch.setenv("civitai_token", MARKER)
    return tmp_path


def command(*argv: str) -> tuple[int, str]:
    out = io.StringIO()
    code = cli.main(argv, out)
    assert MARKER not in out.getvalue()
    return code, out.getvalue()


def test_from_a_url_to_a_verified_file(server: ViciousServer, volume: Path) -> None:
    url = server.serve("/m.safetensors", DATA)
    assert command("add", url)[0] == 1  # a plain server knows no folder
    code, text = command("add", url, "--directory", "loras")
    assert code == 0
    assert str(volume / "models.json") in text
    assert command("list")[0] == 1
    code, text = command("plan")
    assert code == 0
    assert "293 KiB from https (127.0.0.1)" in text
    assert command("pull")[0] == 0
    assert (volume / "models/loras/m.safetensors").read_bytes() == DATA
    requests = len(server.seen)
    code, text = command("pull", "--json")
    assert json.loads(text)[0]["state"] == "present"
    assert command("list")[0] == 0
    code, text = command("verify")
    assert (code, sha256(DATA) in text) == (0, True)
    assert len(server.seen) == requests
    with open(volume / "models/loras/m.safetensors", "r+b") as file:
        file.seek(-10, 2)
        file.write(b"damage")
    code, text = command("verify", "--json")
    assert code == 1
    assert json.loads(text)[0]["problem"]["code"] == "download.hash_mismatch"


def test_what_is_wrong_with_a_manifest_stays_out_of_its_json(
    volume: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = [{"url": "https://h.example/a.ckpt", "directory": "nowhere at all/.."}]
    (volume / "models.json").write_text(json.dumps(entries))
    code, text = command("list", "--json")
    assert (code, json.loads(text)) == (1, [])
    assert "error[" in capsys.readouterr().err


def test_without_a_manifest_the_way_is_shown(volume: Path) -> None:
    code, text = command("list")
    assert code == 1
    assert "models add" in text


@pytest.mark.parametrize("argv", [["list"], ["plan"], ["add", "hf://a/b/c"]])
def test_without_a_volume_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: list[str]
) -> None:
    monkeypatch.setenv("VOLUME_PATH", str(tmp_path / "gone"))
    code, text = command(*argv)
    said = f"error[volume.not_found]: There is no volume at {tmp_path / 'gone'}.\nhint: Attach it: "
    assert code == 1 and text.startswith(said) and "VOLUME_PATH" in text


def test_a_plan_without_its_source_goes_by_the_manifest(
    server: ViciousServer, volume: Path
) -> None:
    entry = {"url": server.url + "/gone.pt", "directory": "loras", "name": "a.safetensors"}
    manifest = {"version": 1, "models": [{**entry, "size": 3 << 20}]}
    (volume / "models.json").write_text(json.dumps(manifest))
    code, text = command("plan")
    assert code == 1 and "FAILED" in text
    assert "To fetch: 3.0 MiB, by the manifest; free at " in text
    manifest["models"] = [entry]
    (volume / "models.json").write_text(json.dumps(manifest))
    assert "To fetch: an unknown amount; free at " in command("plan")[1]


def test_a_plan_of_a_manifest_that_cannot_be_read_names_no_amount(volume: Path) -> None:
    (volume / "models.json").write_text("{")
    code, text = command("plan")
    assert code == 1 and text.startswith("error[manifest.unreadable]: ") and "To fetch" not in text


def test_faults_are_printed_with_their_fix(volume: Path) -> None:
    (volume / "models.json").write_text('{"version": 1, "models": [{}]}')
    code, text = command("pull")
    assert code == 1
    assert re.search(r"error\[manifest\.\w+\]: .*models\[0\]: `url` is missing", text)
    assert "\nhint: " in text


def test_codes_are_declared() -> None:
    """Every code that the sources mention has a meaning."""
    bootstrap = Path(cli.__file__).parents[1]
    used: set[str] = set()
    for path in bootstrap.glob("**/*.py"):
        used |= set(re.findall(r'"((?:manifest|download)\.[a-z_]+)"', path.read_text()))
    assert used == set(manifest_module.CODES) | set(download_errors.CODES)
