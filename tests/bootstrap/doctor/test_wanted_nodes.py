"""The checker on a volume with a manifest of nodes, and workflows that need packs."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bootstrap.config import Settings
from bootstrap.core.findings import Finding, Severity
from bootstrap.doctor import Scope, examine
from bootstrap.nodes.node_map import map_path
from bootstrap.nodes.presence import RECEIPT
from tests.support.pack_server import COMMIT

URL = "https://github.com/owner/A-Pack"
MAP = {
    "version": 1,
    "fetched": "2026-11-28",
    "source": "x",
    "packs": [[URL, "A"]],
    "nodes": {"ANode": [0]},
    "parts": [],
}


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    volume = tmp_path / "volume"
    (volume / "ComfyUI/custom_nodes").mkdir(parents=True)
    (volume / "ComfyUI/main.py").write_text("")
    wanted = {"version": 1, "nodes": [{"git": URL, "commit": COMMIT}, {"id": "unpinned"}]}
    (volume / "nodes.json").write_text(json.dumps(wanted))
    (volume / "workflows/deep").mkdir(parents=True)
    (volume / "workflows/deep/a.json").write_text(json.dumps({"1": {"class_type": "ANode"}}))
    (volume / "workflows/broken.json").write_text("{")
    return volume


def found(volume: Path) -> dict[str, Finding]:
    settings = Settings(volume_path=volume)
    report = examine(settings, {}, Scope())
    return {f.code: f for f in report.findings if f.code.startswith("nodes.")}


def test_packs_that_are_not_there_are_named_and_gone_when_they_are(volume: Path) -> None:
    before = found(volume)
    assert before["nodes.absent"].severity is Severity.WARNING
    assert "A-Pack (missing)" in before["nodes.absent"].message
    assert "`comfyui-worker nodes pull`" in before["nodes.absent"].fix
    assert "unpinned" in before["nodes.not_pinned"].message
    pack = volume / "ComfyUI/custom_nodes/A-Pack"
    pack.mkdir()
    (pack / RECEIPT).write_text(json.dumps({"source": f"{URL}@{COMMIT}", "files": {}}))
    assert "nodes.absent" not in found(volume)


def test_what_a_workflow_on_the_volume_lacks_is_named_with_its_pack(volume: Path) -> None:
    assert "nodes.workflow_lacks" not in found(volume), "no map is kept"
    map_path(volume).parent.mkdir()
    map_path(volume).write_text(json.dumps(MAP))
    lacks = found(volume)["nodes.workflow_lacks"]
    assert "workflows/deep/a.json" in lacks.message and f"ANode ({URL})" in lacks.message
    assert "2026-11-28" in lacks.message and "nodes add --from" in lacks.fix
    (volume / "ComfyUI/custom_nodes/A-Pack").mkdir()
    assert "nodes.workflow_lacks" not in found(volume)


def test_a_folder_that_cannot_be_read_hides_no_other_finding(
    volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = volume / "ComfyUI/custom_nodes/A-Pack"
    pack.mkdir()
    for name in ("scandir", "listdir"):
        monkeypatch.setattr(os, name, partial(refused, getattr(os, name), str(pack)))
    codes = found(volume)
    assert "A-Pack (a folder without a receipt)" in codes["nodes.absent"].message
    assert "nodes.not_pinned" in codes


def refused(real: Callable[[Any], Any], closed: str, path: Any = ".") -> Any:
    if str(path) == closed:
        raise PermissionError(errno.EACCES, "Permission denied", closed)
    return real(path)
