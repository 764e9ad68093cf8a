"""`comfyui-worker nodes`: commands, output and exit codes."""

from __future__ import annotations

import io
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bootstrap.nodes.cli import _parser, main
from bootstrap.nodes.manifest import parse_nodes
from tests.support.pack_server import COMMIT, FILES, OTHER, PackServer, refresh_map
from tests.support.sources import ROOT


@pytest.fixture
def volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    volume = tmp_path / "volume"
    (volume / "ComfyUI").mkdir(parents=True)
    (volume / "ComfyUI/main.py").write_text("")
    monkeypatch.setenv("VOLUME_PATH", str(volume))
    monkeypatch.setenv("ALLOW_PRIVATE_DOWNLOAD_URLS", "true")
    return volume


def typed(server: PackServer, *argv: str) -> tuple[int, str]:
    """The exit code and what was said."""
    out = io.StringIO()
    return main(list(argv), out, server.sources()), out.getvalue()


def listed(volume: Path) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads((volume / "nodes.json").read_text())["nodes"]
    return entries


def test_from_an_id_to_a_pack_that_is_there(server: PackServer, volume: Path) -> None:
    server.pack("some-pack", "1.2.3")
    code, said = typed(server, "list")
    assert code == 1 and "nodes add" in said
    code, said = typed(server, "add", "some-pack")
    assert code == 0 and "nodes pull" in said
    assert listed(volume) == [{"id": "some-pack", "version": "1.2.3"}]
    code, said = typed(server, "plan")
    assert code == 0 and "some-pack@1.2.3" in said and said.startswith("missing")
    assert typed(server, "list")[0] == 1
    code, said = typed(server, "pull")
    assert (code, said) == (0, "1 of 1 pack there.\n")
    for command in ("list", "verify"):
        code, said = typed(server, command)
        assert code == 0 and said.startswith("ok "), said
    pack = volume / "ComfyUI/custom_nodes/some-pack"
    assert (pack / "__init__.py").read_text() == FILES["__init__.py"]
    (pack / "__init__.py").write_text("mine")
    code, said = typed(server, "verify")
    assert code == 1 and "__init__.py" in said
    assert said.startswith("FAILED  some-pack  error[nodes.edited]: ")


def test_a_read_only_volume_is_named(server: PackServer, volume: Path, tmp_path: Path) -> None:
    """In a namespace of mounts of its own, where the volume is mounted once more, read-only."""
    wanted = tmp_path / "wanted.json"
    entry = {"git": server.repository("owner/A-Pack"), "commit": COMMIT}
    wanted.write_text(json.dumps({"version": 1, "nodes": [entry]}))
    script = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
    program = [sys.executable, "-m", "scripts.cli", "nodes", "pull", "--manifest", str(wanted)]
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, str(volume), *program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if "unshare" in done.stderr:
        pytest.skip(f"no namespace of mounts: {done.stderr.strip()[-200:]}")
    assert done.returncode == 1, done.stderr
    assert "A-Pack" in done.stdout and "Read-only file system" in done.stdout
    assert [entry.name for entry in volume.iterdir()] == ["ComfyUI"]


@pytest.mark.parametrize(
    ("given", "entry"),
    [
        (["some-pack@1.2.3"], {"id": "some-pack", "version": "1.2.3"}),
        (["{url}"], {"git": "{url}", "commit": COMMIT}),
        (["{url}.git"], {"git": "{url}", "commit": COMMIT}),
        (["{url}@dev"], {"git": "{url}", "commit": OTHER, "ref": "dev"}),
        (["{url}", "--ref", "v1"], {"git": "{url}", "commit": COMMIT, "ref": "v1"}),
        (["{url}/tree/dev"], {"git": "{url}", "commit": OTHER, "ref": "dev"}),
        (["{url}/commit/" + OTHER], {"git": "{url}", "commit": OTHER}),
        (["{url}", "--directory", "mine"], {"git": "{url}", "commit": COMMIT, "directory": "mine"}),
    ],
)  # fmt: skip
def test_what_add_takes_and_pins(
    server: PackServer, volume: Path, given: list[str], entry: dict[str, str]
) -> None:
    server.pack("some-pack", "1.2.3")
    url = server.repository("owner/A-Pack")
    code, said = typed(server, "add", *(word.format(url=url) for word in given))
    assert code == 0, said
    assert listed(volume) == [{k: v.format(url=url) for k, v in entry.items()}]
    assert "Already in" in typed(server, "add", *(word.format(url=url) for word in given))[1]


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ([], 2),
        (["a", "--from", "b"], 2),
        (["unknown-pack"], 1),
        (["file:///etc"], 1),
        (["{url}@nope"], 1),
        (["{url}", "--directory", "../evil"], 1),
        (["--from", "missing.json"], 1),
        (["\udcff"], 1),
        (["x" * 5000], 1),
    ],
)
def test_what_add_refuses_changes_nothing(
    server: PackServer, volume: Path, given: list[str], code: int
) -> None:
    server.answer("/map.json", {"https://github.com/a/b": [["A"], {}]})
    refresh_map(server, volume, "/map.json")
    url = server.repository("owner/A-Pack")
    ended, said = typed(server, "add", *(word.format(url=url) for word in given))
    assert ended == code and said
    assert not (volume / "nodes.json").exists()


def test_all_that_a_workflow_needs_is_added(
    server: PackServer, volume: Path, tmp_path: Path
) -> None:
    url = server.repository("owner/A-Pack")
    kept = {
        "version": 1,
        "fetched": "2026-11-28",
        "source": "x",
        "packs": [
            [url, "A"],
            ["https://github.com/comfyanonymous/ComfyUI", "ComfyUI"],
            ["https://github.com/o/There", ""],
        ],
        "nodes": {"ANode": [0], "KSampler": [1], "ThereNode": [2]},
        "parts": [],
    }
    (volume / ".comfyui-worker").mkdir()
    (volume / ".comfyui-worker/node-map.json").write_text(json.dumps(kept))
    (volume / "ComfyUI/custom_nodes/There").mkdir(parents=True)
    nodes = [
        {"type": "ANode"},
        {"type": "KSampler"},
        {"type": "ThereNode"},
        {"type": "B", "properties": {"cnr_id": "b-pack", "ver": "2.0.1"}},
        {"type": "C", "properties": {"cnr_id": "comfy-core", "ver": "0.9.0"}},
    ]
    workflow = tmp_path / "workflow.json"
    workflow.write_text(json.dumps({"nodes": nodes, "links": []}))
    code, said = typed(server, "add", "--from", str(workflow))
    assert code == 0, said
    wanted = [{"git": url, "commit": COMMIT}, {"id": "b-pack", "version": "2.0.1"}]
    assert listed(volume) == wanted
    workflow.write_text(json.dumps({"1": {"class_type": "ANode"}, "2": {"class_type": "Mystery"}}))
    code, said = typed(server, "add", "--from", str(workflow))
    assert code == 1 and "Mystery" in said and "2026-11-28" in said
    assert listed(volume) == wanted


def test_what_the_editor_wrote_takes_precedence_over_the_map(
    server: PackServer, volume: Path, tmp_path: Path
) -> None:
    """A node's own commit or version is what the workflow was made with."""
    url = server.repository("owner/A-Pack")
    server.pack("newest-pack", "3.2.1")
    packs = [url, server.url + "/owner/Other", "https://raw.example.com/one.py"]
    kept = {
        "version": 1,
        "fetched": "2026-11-28",
        "source": "x",
        "packs": [[pack, ""] for pack in packs],
        "nodes": {"A": [0, 1], "File": [2]},
        "parts": [],
    }
    (volume / ".comfyui-worker").mkdir()
    (volume / ".comfyui-worker/node-map.json").write_text(json.dumps(kept))
    nodes = [
        {"type": "A", "properties": {"cnr_id": "a-pack", "ver": OTHER}},
        {"type": "B", "properties": {"cnr_id": "newest-pack", "ver": "nightly"}},
        {"type": "C", "properties": {"cnr_id": "gone-pack"}},
        {"type": "File"},
    ]
    workflow = tmp_path / "workflow.json"
    workflow.write_text(json.dumps({"nodes": nodes, "links": []}))
    code, said = typed(server, "add", "--from", str(workflow))
    assert code == 1 and "others have it, too" in said and "gone-pack" in said
    assert "copy https://raw.example.com/one.py into custom_nodes" in said
    assert "that has: C, File." in said
    assert listed(volume) == [
        {"git": url, "commit": OTHER},
        {"id": "newest-pack", "version": "3.2.1"},
    ]


def test_the_map_is_fetched_shown_and_asked(server: PackServer, volume: Path) -> None:
    server.answer("/map.json", {"https://github.com/a/b": [["A", "B"], {}]})
    code, said = typed(server, "map", "A")
    assert code == 1 and "--refresh" in said
    code, said = typed(server, "map", "--refresh", "--url", server.url + "/map.json")
    assert code == 0 and re.match(r"Map of 20\d\d-\d\d-\d\d: 2 nodes of 1 pack, from http", said)
    code, said = typed(server, "map", "A", "Nope")
    assert (code, said) == (1, "A: https://github.com/a/b\nNope: unknown\n")
    assert typed(server, "map", "--refresh", "--url", server.url + "/gone.json")[0] == 1


@pytest.mark.parametrize("command", ["list", "plan", "verify", "pull"])
def test_json_is_for_programs(server: PackServer, volume: Path, command: str) -> None:
    server.pack("some-pack", "1.2.3")
    typed(server, "add", "some-pack")
    code, said = typed(server, command, "--json")
    (found,) = json.loads(said)
    assert (found["pack"], found["source"]) == ("some-pack", "some-pack@1.2.3")
    assert code == (0 if command in ("plan", "pull") else 1)


def test_a_snapshot_is_pulled_unchanged(server: PackServer, volume: Path) -> None:
    server.pack("some-pack", "1.2.3")
    url = server.repository("owner/A-Pack")
    snapshot: dict[str, Any] = {
        "comfyui": None,
        "git_custom_nodes": {url: {"hash": COMMIT, "disabled": False}},
        "cnr_custom_nodes": {"some-pack": "1.2.3"},
        "file_custom_nodes": [],
        "pips": {},
    }
    path = volume / "snapshot.json"
    path.write_text(json.dumps(snapshot))
    code, said = typed(server, "pull", "--manifest", str(path))
    assert (code, said) == (0, "2 of 2 packs there.\n")
    assert sorted(p.name for p in (volume / "ComfyUI/custom_nodes").iterdir()) == [
        "A-Pack",
        "some-pack",
    ]
    code, said = typed(server, "add", "some-pack", "--manifest", str(path))
    assert code == 1 and json.loads(path.read_text()) == snapshot


def test_a_folder_in_the_way_is_moved_with_force(server: PackServer, volume: Path) -> None:
    server.pack("some-pack", "1.2.3")
    typed(server, "add", "some-pack")
    mine = volume / "ComfyUI/custom_nodes/some-pack"
    mine.mkdir(parents=True)
    (mine / "mine.py").write_text("")
    code, said = typed(server, "pull")
    assert code == 1 and "left alone" in said and "0 of 1 pack there." in said
    code, said = typed(server, "pull", "--force")
    assert code == 0 and ".disabled" in said and not (mine / "mine.py").exists()


@pytest.mark.parametrize(
    ("argv", "said"),
    [(["pul"], "Did you mean pull?"), (["pull", "--forse"], "Did you mean --force?")],
)
def test_a_slip_of_the_pen_is_understood(
    volume: Path, capsys: pytest.CaptureFixture[str], argv: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2 and said in capsys.readouterr().err


PAGE = (ROOT / "docs/nodes.md").read_text("utf-8")


def test_the_page_shows_a_manifest_that_is_taken() -> None:
    (example,) = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    manifest = parse_nodes(json.loads(example), "docs")
    assert len(manifest.packs) == 2 and manifest.findings == ()
    fields = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE))))
    assert fields == {"id", "version", "hash", "git", "commit", "ref", "directory"}


@pytest.mark.parametrize("command", sorted(set(re.findall(r"comfyui-worker nodes [^`\n]+", PAGE))))
def test_every_command_on_the_page_is_one(command: str) -> None:
    words = shlex.split(command)[2:]
    assert _parser("comfyui-worker nodes").parse_args(words).command == words[0]
