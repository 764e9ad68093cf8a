"""nodes.json and other tools' snapshots: their packs, and every kind of fault."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from bootstrap.core.findings import Severity
from bootstrap.models.manifest_file import Unreadable
from bootstrap.nodes.manifest import (
    MOST_PACKS,
    GitPin,
    NodeManifest,
    PackSpec,
    RegistryPin,
    add_packs,
    load_nodes,
    parse_nodes,
    repository_url,
)
from tests.support.pack_server import COMMIT, OTHER
from tests.support.sources import ROOT

URL = "https://github.com/cubiq/ComfyUI_essentials"


def ours(*entries: Any) -> NodeManifest:
    return parse_nodes({"version": 1, "nodes": list(entries)}, "nodes.json")


def wanted(manifest: NodeManifest) -> dict[str, str]:
    """Folder → pin."""
    return {spec.name: str(spec.pin) for spec in manifest.packs}


def codes(manifest: NodeManifest) -> list[str]:
    return [finding.code for finding in manifest.findings]


def test_ours_lists_versions_and_commits() -> None:
    manifest = ours(
        {"id": "comfyui-impact-pack", "version": "8.1.5", "hash": "A" * 64},
        {"git": f"{URL}.git/", "commit": COMMIT.upper(), "ref": "main", "note": "mine"},
        {"git": URL, "commit": OTHER, "directory": "older"},
    )
    assert codes(manifest) == []
    assert wanted(manifest) == {
        "comfyui-impact-pack": "comfyui-impact-pack@8.1.5",
        "ComfyUI_essentials": f"{URL}@{COMMIT}",
        "older": f"{URL}@{OTHER}",
    }
    assert manifest.packs[0].pin == RegistryPin("comfyui-impact-pack", "8.1.5", "a" * 64)
    assert manifest.packs[1].extra == {"note": "mine"}


# As get_current_snapshot of ComfyUI-Manager writes it.
SNAPSHOT = {
    "comfyui": "b1a2c3",
    "git_custom_nodes": {
        f"{URL}.git": {"hash": COMMIT, "disabled": False},
        "git@github.com:kijai/ComfyUI-KJNodes.git": {"hash": OTHER, "disabled": False},
        "https://github.com/off/off": {"hash": OTHER, "disabled": True},
        "https://github.com/ltdrdata/ComfyUI-Manager": {"hash": OTHER, "disabled": False},
    },
    "cnr_custom_nodes": {"comfyui-impact-pack": "8.1.5", "comfyui-manager": "3.30"},
    "file_custom_nodes": [
        {"filename": "websocket_image_save.py", "disabled": False},
        {"filename": "old.py.disabled", "disabled": True},
    ],
    "pips": {"torch==2.9.0": ""},
}
FROM_SNAPSHOT = {
    "comfyui-impact-pack": "comfyui-impact-pack@8.1.5",
    "ComfyUI_essentials": f"{URL}@{COMMIT}",
    "ComfyUI-KJNodes": f"https://github.com/kijai/ComfyUI-KJNodes@{OTHER}",
}


@pytest.mark.parametrize(
    "data", [SNAPSHOT, {"custom_nodes": SNAPSHOT}, {"basic": None, "custom_nodes": SNAPSHOT}]
)
def test_snapshots_of_the_manager_and_of_comfy_cli_are_read_as_they_are(data: Any) -> None:
    manifest = parse_nodes(data, "snapshot")
    assert wanted(manifest) == FROM_SNAPSHOT
    (single,) = manifest.findings
    assert (single.code, single.severity) == ("nodes.no_address", Severity.INFO)
    assert "websocket_image_save.py" in single.message


def test_a_snapshot_in_yaml_is_one_too(tmp_path: Path) -> None:
    (tmp_path / "snapshot.yaml").write_text(
        "custom_nodes:\n  cnr_custom_nodes:\n    some-pack: 1.0.0\n  git_custom_nodes:\n"
        f"    {URL}:\n      disabled: false\n      hash: {COMMIT}\n"
    )
    manifest = load_nodes("snapshot.yaml", tmp_path)
    assert manifest is not None
    assert set(wanted(manifest)) == {"some-pack", "ComfyUI_essentials"}


def test_desktops_export_is_read() -> None:
    nodes = [
        {"type": "cnr", "id": "a-pack", "dirName": "a-pack", "version": "1.0.0", "enabled": True},
        {"type": "git", "id": "e", "dirName": "e", "url": URL, "commit": COMMIT, "enabled": True},
        {"type": "cnr", "id": "off", "dirName": "off", "version": "1.0.0", "enabled": False},
        {"type": "file", "id": "one.py", "dirName": "one.py", "enabled": True},
    ]
    export = {
        "type": "comfyui-desktop-2-snapshot",
        "version": 2,
        "snapshots": [{"customNodes": nodes}],
    }
    manifest = parse_nodes(export, "export")
    assert wanted(manifest) == {"a-pack": "a-pack@1.0.0", "e": f"{URL}@{COMMIT}"}
    assert codes(manifest) == ["nodes.no_address"]
    export["snapshots"] = [{}, {}]
    assert codes(parse_nodes(export, "export")) == ["nodes.manifest_shape"]


BAD: list[tuple[str, Any]] = [
    ("nodes.manifest_entry", "text"),
    ("nodes.manifest_entry", {}),
    ("nodes.manifest_entry", {"id": "a", "git": URL}),
    ("nodes.manifest_entry", {"id": "../a", "version": "1.0.0"}),
    ("nodes.manifest_entry", {"id": 5, "version": "1.0.0"}),
    ("nodes.manifest_entry", {"id": "a", "version": "1.0.0", "hash": "abc"}),
    ("nodes.manifest_entry", {"id": "a", "version": "1.0.0", "directory": "../evil"}),
    ("nodes.manifest_entry", {"id": "a", "version": "1.0.0", "directory": "a.disabled"}),
    ("nodes.manifest_entry", {"id": "a", "version": "1.0.0", "directory": ".git"}),
    ("nodes.manifest_entry", {"git": "https://github.com/", "commit": COMMIT}),
    ("nodes.manifest_entry", {"git": f"{URL}?a=b", "commit": COMMIT}),
    ("nodes.manifest_entry", {"git": "http://github.com/a/b", "commit": COMMIT}),
    ("nodes.manifest_entry", {"git": f"{URL}\ud83d", "commit": COMMIT}),
    ("download.url_refused", {"git": "https://me:secret@github.com/a/b", "commit": COMMIT}),
    ("download.url_refused", {"git": "file:///etc/passwd", "commit": COMMIT}),
    ("download.url_refused", {"git": "ext::sh -c id", "commit": COMMIT}),
    ("nodes.not_pinned", {"id": "a"}),
    ("nodes.not_pinned", {"id": "a", "version": "nightly"}),
    ("nodes.not_pinned", {"git": URL}),
    ("nodes.not_pinned", {"git": URL, "commit": "main"}),
    ("nodes.not_pinned", {"git": URL, "commit": COMMIT[:12]}),
]


@pytest.mark.parametrize(("code", "entry"), BAD)
def test_the_schema_knows_what_is_taken_and_what_is_not(code: str, entry: Any) -> None:
    """Those that an editor can know: an address may be refused for more than its form."""
    schema = json.loads((ROOT / "docs/nodes-manifest.schema.json").read_text("utf-8"))
    good = [{"id": "a", "version": "1.0.0"}, {"git": URL, "commit": COMMIT}]
    jsonschema.validate({"version": 1, "nodes": good}, schema)
    of_an_address = isinstance(entry, dict) and "git" in entry and code != "nodes.not_pinned"
    if not of_an_address and "a.disabled" not in str(entry):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"version": 1, "nodes": [entry]}, schema)


@pytest.mark.parametrize(("code", "entry"), BAD)
def test_a_bad_entry_is_left_out_and_named_with_a_fix(code: str, entry: Any) -> None:
    manifest = ours({"id": "good", "version": "1.0.0"}, entry)
    assert list(wanted(manifest)) == ["good"]
    (finding,) = manifest.findings
    assert (finding.code, finding.severity) == (code, Severity.ERROR)
    assert "nodes[1]" in finding.message and finding.fix
    assert "secret" not in finding.message


@pytest.mark.parametrize(
    "data",
    [
        [],
        "text",
        {},
        {"nodes": []},
        {"version": 2, "nodes": []},
        {"version": 1, "nodes": {}},
        {"version": 1, "nodes": [], "links": []},
        {"1": {"class_type": "A", "inputs": {}}},
    ],
)
def test_what_is_not_a_manifest_is_refused_with_how_one_looks(data: Any) -> None:
    manifest = parse_nodes(data, "x.json")
    assert manifest.packs == () and codes(manifest) == ["nodes.manifest_shape"]
    assert "nodes" in manifest.findings[0].fix


def test_two_packs_cannot_have_one_folder_but_one_may_be_listed_twice() -> None:
    one = {"git": URL, "commit": COMMIT}
    manifest = ours(one, one, {"git": URL.lower(), "commit": OTHER})
    assert wanted(manifest) == {"ComfyUI_essentials": f"{URL}@{COMMIT}"}
    assert codes(manifest) == ["nodes.manifest_twice"]


def test_no_more_packs_are_read_than_a_start_can_bear() -> None:
    """Each bad entry is a finding: two million of them took 41 s and 1.2 GB."""
    many = parse_nodes({"version": 1, "nodes": [0] * 300_000}, "nodes.json")
    assert len(many.findings) == MOST_PACKS + 1
    assert many.findings[-1].code == "manifest.too_large"
    snapshot = {"cnr_custom_nodes": {f"pack-{n}": "1.0.0" for n in range(MOST_PACKS + 1)}}
    found = parse_nodes(snapshot, "snapshot.json")
    assert len(found.packs) == MOST_PACKS
    assert [finding.code for finding in found.findings] == ["manifest.too_large"]


def test_a_manifest_behind_a_link_is_added_to_where_it_is(tmp_path: Path) -> None:
    real, link = tmp_path / "kept-in-git/nodes.json", tmp_path / "nodes.json"
    real.parent.mkdir()
    real.write_text('{"version": 1, "nodes": []}')
    link.symlink_to(real)
    (spec,) = parse_nodes({"cnr_custom_nodes": {"b": "2.0.0"}}, "").packs
    add_packs(link, [spec])
    assert link.is_symlink() and json.loads(real.read_text())["nodes"] == [spec.as_entry()]


def test_half_a_character_in_another_entry_does_not_keep_one_from_being_added(
    tmp_path: Path,
) -> None:
    path = tmp_path / "nodes.json"
    text = '{"version": 1, "nodes": [{"id": "a", "version": "1.0", "note": "\\ud800 é"}]}'
    path.write_text(text)
    (spec,) = parse_nodes({"cnr_custom_nodes": {"b": "2.0.0"}}, "").packs
    assert add_packs(path, [spec]) == [spec]
    first, second = json.loads(path.read_text("utf-8"))["nodes"]
    assert (first["note"], second["id"]) == ("\ud800 é", "b")


@pytest.mark.parametrize(
    "written",
    [URL, f"{URL}.git", f"{URL}/", "git@github.com:cubiq/ComfyUI_essentials.git",
     "ssh://git@github.com/cubiq/ComfyUI_essentials"],
)  # fmt: skip
def test_all_spellings_of_an_address_are_one(written: str) -> None:
    assert repository_url(written) == URL


def test_the_manifest_is_the_volumes_or_the_variables(tmp_path: Path) -> None:
    assert load_nodes(None, tmp_path) is None
    text = json.dumps({"version": 1, "nodes": [{"id": "a", "version": "1.0.0"}]})
    (tmp_path / "nodes.json").write_text(text)
    (tmp_path / "other.json").write_text(text.replace('"a"', '"b"'))
    for setting, name in ((None, "a"), ("other.json", "b"), (text, "a")):
        manifest = load_nodes(setting, tmp_path)
        assert manifest is not None and list(wanted(manifest)) == [name]
    for setting in ("missing.json", "{"):
        manifest = load_nodes(setting, tmp_path)
        assert manifest is not None and codes(manifest) == ["manifest.unreadable"]
        assert "NODES_MANIFEST" in str(manifest.findings[0]) or "nodes.md" in str(manifest.findings)


def test_an_entry_is_added_in_place_of_that_for_the_same_folder(tmp_path: Path) -> None:
    path = tmp_path / "nodes.json"
    first = PackSpec("ComfyUI_essentials", GitPin(URL, OTHER))
    assert add_packs(path, [first]) == [first]
    data = json.loads(path.read_text())
    data["nodes"][0]["note"] = "mine"
    data["nodes"].append({"id": "some-pack"})
    path.write_text(json.dumps(data))
    new = [
        PackSpec("ComfyUI_essentials", GitPin(URL, COMMIT, "main")),
        PackSpec("some-pack", RegistryPin("some-pack", "1.0.0")),
    ]
    assert add_packs(path, new) == new
    assert add_packs(path, new) == []
    assert json.loads(path.read_text())["nodes"] == [
        {"note": "mine", "git": URL, "commit": COMMIT, "ref": "main"},
        {"id": "some-pack", "version": "1.0.0"},
    ]


@pytest.mark.parametrize("data", [[], SNAPSHOT, {"version": 1, "nodes": [], "links": []}])
def test_a_file_that_is_not_ours_is_not_added_to(tmp_path: Path, data: Any) -> None:
    path = tmp_path / "nodes.json"
    path.write_text(json.dumps(data))
    with pytest.raises(Unreadable):
        add_packs(path, [PackSpec("a", RegistryPin("a", "1.0.0"))])
    assert json.loads(path.read_text()) == data


def test_an_unpinned_entry_is_refused_with_how_to_pin_it() -> None:
    manifest = ours({"id": "a"}, {"git": URL, "commit": "main"}, {"git": URL, "commit": "a;b"})
    fixes = [finding.fix for finding in manifest.findings]
    assert "`comfyui-worker nodes add a`" in fixes[0] and "missing" in manifest.findings[0].message
    assert f"`comfyui-worker nodes add {URL}@main`" in fixes[1]
    assert f"`comfyui-worker nodes add {URL}`" in fixes[2], "what is typed into a shell is plain"
