"""Which pack has a node: ComfyUI-Manager's map, reduced and kept, and hints in workflows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bootstrap.net import DownloadError
from bootstrap.nodes import presence
from bootstrap.nodes.node_map import (
    CORE,
    NodeMap,
    UsedNode,
    keep_map,
    kept_map,
    map_path,
    nodes_in,
    read_map,
    where_nodes_are,
)
from bootstrap.nodes.presence import PackReceipt, has_pack, read_receipt, repositories_in
from tests.support.pack_server import PackServer, refresh_map

IMPACT, OTHER, TTN = (f"https://github.com/{n}" for n in ("a/Impact", "b/Other", "c/ttN"))
# As extension-node-map.json of ComfyUI-Manager is.
MAP: dict[str, Any] = {
    CORE: [["KSampler", "SaveImage"], {"title_aux": "ComfyUI"}],
    IMPACT: [["ImpactWildcard", "Shared", "KSampler"], {"title_aux": "Impact Pack"}],
    OTHER: [["Shared", "Other"], {"title_aux": "Other", "preemptions": ["Shared"]}],
    TTN: [[], {"nodename_pattern": "^ttN ", "title_aux": "tiny"}],
    "https://github.com/d/lab": [[], {"nodename_pattern": " \\(lab\\)$"}],
    "https://github.com/e/evil": [[], {"nodename_pattern": "^(a+)+$"}],
    "javascript:alert(1)": [["Evil"], {}],
    "https://github.com/a/b;curl evil": [["Evil"], {}],
    "https://github.com/a/$(id)": [["Evil"], {}],
    "https://github.com/a/`id`": [["Evil"], {}],
    "https://github.com/f/f": "nonsense",
    "https://github.com/g/g": [["Good", 5, "new\nline", "x" * 1000], "nonsense"],
}


@pytest.fixture
def server() -> Iterator[PackServer]:
    with PackServer() as running:
        running.answer("/map.json", MAP)
        yield running


@pytest.mark.parametrize(
    ("name", "packs", "core"),
    [
        ("ImpactWildcard", (IMPACT,), False),
        ("Shared", (OTHER, IMPACT), False),
        ("KSampler", (), True),
        ("ttN pipe", (TTN,), False),
        ("Thing (lab)", ("https://github.com/d/lab",), False),
        ("Good", ("https://github.com/g/g",), False),
        ("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!", (), False),
        ("Evil", (), False),
        ("Nothing", (), False),
    ],
)
def test_where_a_node_is_from(name: str, packs: tuple[str, ...], core: bool) -> None:
    origin = read_map(json.dumps(MAP).encode(), "2026-11-28", "x").origin_of(name)
    assert (origin.packs, origin.core) == (packs, core)


def test_it_is_fetched_kept_with_its_date_and_read_without_network(
    server: PackServer, tmp_path: Path
) -> None:
    assert kept_map(tmp_path) is None
    assert where_nodes_are(tmp_path, tmp_path, ["Shared"]) == ("", {})
    fetched = refresh_map(server, tmp_path, "/map.json")
    kept = kept_map(tmp_path)
    assert kept == fetched and re.fullmatch(r"20\d\d-\d\d-\d\d", fetched.fetched)
    seen = len(server.seen)
    (tmp_path / "Other").mkdir()
    date, origins = where_nodes_are(tmp_path, tmp_path, ["Shared", "ImpactWildcard", "KSampler"])
    assert date == fetched.fetched and len(server.seen) == seen
    assert origins["Shared"].installed and not origins["ImpactWildcard"].installed
    assert origins["KSampler"].core and not origins["KSampler"].installed


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"https://x/y": 1}', b"<html>", b"[" * 99999]
)
def test_what_is_not_a_map_is_refused_and_the_old_one_stays(
    server: PackServer, tmp_path: Path, content: bytes
) -> None:
    refresh_map(server, tmp_path, "/map.json")
    before = map_path(tmp_path).read_bytes()
    server.serve("/bad.json", content)
    with pytest.raises(DownloadError) as caught:
        refresh_map(server, tmp_path, "/bad.json")
    assert caught.value.code == "nodes.bad_map"
    assert map_path(tmp_path).read_bytes() == before


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"version": 1}',
        '{"version": 1, "fetched": 1, "source": 1, "packs": [1], "nodes": {}, "parts": []}',
    ],
)
def test_a_damaged_map_is_as_none(tmp_path: Path, text: str) -> None:
    map_path(tmp_path).parent.mkdir(parents=True)
    map_path(tmp_path).write_text(text)
    assert kept_map(tmp_path) is None


SAVED = {
    "nodes": [
        {"type": "KSampler", "properties": {"cnr_id": "comfy-core", "ver": "0.3.75"}},
        {"type": "ImpactWildcard", "properties": {"cnr_id": "comfyui-impact-pack", "ver": "8.1.5"}},
        {"type": "Other", "properties": {"aux_id": "b/Other", "ver": "0" * 40}},
        {"type": "Note", "properties": {}},
        {"type": "0c4b9dd6-0b52-4f0e-9d4c-0a8a6c1f7d11"},
        {"type": "workflow>mine"},
        {"type": 5},
        "nonsense",
    ],
    "links": [],
    "extra": {"groupNodes": {"mine": {"nodes": [{"type": "InGroup"}]}}},
    "definitions": {"subgraphs": [{"nodes": [{"type": "InSubgraph", "properties": None}]}, 5]},
}


def test_a_saved_workflow_says_itself_which_pack_its_nodes_are_of() -> None:
    assert nodes_in(SAVED) == [
        UsedNode("KSampler", "comfy-core", "", "0.3.75"),
        UsedNode("ImpactWildcard", "comfyui-impact-pack", "", "8.1.5"),
        UsedNode("Other", "", "b/Other", "0" * 40),
        UsedNode("InGroup"),
        UsedNode("InSubgraph"),
    ]


def test_many_nodes_cost_one_look_at_the_packs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that lacks them waits for it: 40 nodes and 200 packs took 13 s."""
    nodes, many = tmp_path / "custom_nodes", range(40)
    for number in range(100):
        pack = nodes / f"pack-{number}"
        pack.mkdir(parents=True)
        source = f"https://github.com/Owner/other-{number}"
        receipt = PackReceipt(f"{source}@{'0' * 40}", {}).as_dict()
        (pack / ".comfyui-worker.json").write_text(json.dumps(receipt))
    packs = tuple((f"https://github.com/owner/other-{number + 80}", "") for number in many)
    keep_map(NodeMap("2026-11-28", "x", packs, {f"N{n}": (n,) for n in many}), tmp_path)
    read: list[Path] = []

    def counted(pack: Path) -> PackReceipt | None:
        read.append(pack)
        return read_receipt(pack)

    monkeypatch.setattr(presence, "read_receipt", counted)
    _, found = where_nodes_are(tmp_path, nodes, [f"N{number}" for number in many])
    assert sorted(read) == sorted(nodes.iterdir())
    assert [found[f"N{number}"].installed for number in many] == [True] * 20 + [False] * 20


@pytest.mark.parametrize("of", ["/", "..", "../..", "x" * 300, "-o/x", "a/..", "a/b?c", "a b/c"])
def test_text_beside_a_node_in_a_workflow_is_a_valid_id_or_ignored(of: str, tmp_path: Path) -> None:
    """`..` is in every folder: the pack seemed to be there, and the node was never named."""
    properties = {"cnr_id": of, "aux_id": of, "ver": of}
    assert nodes_in({"nodes": [{"type": "A", "properties": properties}]}) == [UsedNode("A")]
    assert not has_pack("https://github.com/o/..", tmp_path, repositories_in(tmp_path))


@pytest.mark.parametrize("wrap", [lambda w: w, lambda w: {"workflow": w}, lambda w: {"prompt": w}])
def test_one_in_api_format_names_classes_only(wrap: Any) -> None:
    api = {"1": {"class_type": "A", "inputs": {}}, "2": {"class_type": "A"}, "3": {}, "4": None}
    assert nodes_in(wrap(api)) == [UsedNode("A")]


@pytest.mark.parametrize("data", [None, [], "text", {}, {"nodes": 5}, {"nodes": [], "extra": 5}])
def test_anything_else_names_none(data: Any) -> None:
    assert nodes_in(data) == []
