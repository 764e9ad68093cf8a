"""The record of what an endpoint used last."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from bootstrap.models.prefetch import UsageRecord


def test_the_last_used_come_first_each_once(tmp_path: Path) -> None:
    recent = UsageRecord(tmp_path, "ep1")
    recent.note(["checkpoints/a.safetensors", "loras/l.safetensors"])
    recent.note(["checkpoints/b.safetensors", "loras/l.safetensors"])
    wanted = ["checkpoints/b.safetensors", "loras/l.safetensors", "checkpoints/a.safetensors"]
    assert UsageRecord(tmp_path, "ep1").models() == wanted
    assert UsageRecord(tmp_path, "other").models() == []


def test_an_endpoints_name_is_not_a_path(tmp_path: Path) -> None:
    UsageRecord(tmp_path / "volume", "../../x").note(["a.bin"])
    assert [p.name for p in tmp_path.iterdir()] == ["volume"]
    assert UsageRecord(tmp_path / "volume", "../../x").models() == ["a.bin"]


def test_the_same_again_writes_nothing(tmp_path: Path) -> None:
    recent = UsageRecord(tmp_path, None)
    recent.note(["a.bin"])
    (path,) = tmp_path.rglob("*.json")
    before = path.stat().st_ino
    recent.note(["a.bin"])
    assert path.stat().st_ino == before


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"version": 2, "models": ["a"]}',
        '{"version": 1, "models": "a"}',
        "[" * 99999,
    ],
)
def test_a_record_that_is_none_is_as_if_there_were_none(tmp_path: Path, content: str) -> None:
    recent = UsageRecord(tmp_path, None)
    recent.note(["a.bin"])
    (path,) = tmp_path.rglob("*.json")
    path.write_text(content)
    assert UsageRecord(tmp_path, None).models() == []


def test_paths_that_lead_elsewhere_are_not_believed(tmp_path: Path) -> None:
    recent = UsageRecord(tmp_path, None)
    recent.note(["ok.bin"])
    (path,) = tmp_path.rglob("*.json")
    models = ["/etc/passwd", "../x", "a/../../x", 5, None, "ok/fine.bin"]
    path.write_text(json.dumps({"version": 1, "models": models}))
    assert UsageRecord(tmp_path, None).models() == ["ok/fine.bin"]


def test_a_volume_that_cannot_be_written_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / ".comfyui-worker").write_text("a file where the folder should be")
    UsageRecord(tmp_path, None).note(["a.bin"])


def test_several_workers_leave_one_complete_record(tmp_path: Path) -> None:
    def work(number: int) -> None:
        for turn in range(20):
            UsageRecord(tmp_path, "ep").note([f"{number}/{turn}.bin"])

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        for path in tmp_path.rglob("*.json"):
            assert json.loads(path.read_text())["version"] == 1
    assert len(os.listdir(tmp_path / ".comfyui-worker/recent")) == 1


def test_what_is_read_ahead_goes_by_the_setting(tmp_path: Path) -> None:
    recent = UsageRecord(tmp_path, None)
    recent.note(["checkpoints/a.safetensors"])
    assert recent.likely("Last") == ["checkpoints/a.safetensors"]
    assert recent.likely("none") == []
    assert recent.likely("loras/a.safetensors, vae/b.pt,") == ["loras/a.safetensors", "vae/b.pt"]
