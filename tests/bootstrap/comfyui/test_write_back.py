"""What is written into the local copy goes back to the volume, and never over another's."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from bootstrap.comfyui import copy_code
from bootstrap.comfyui.copy_code import CopyPlan, Staged, stage
from bootstrap.comfyui.workdir import WriteBack
from bootstrap.core.files import Stamp, copy_opened
from tests.support.waiting import wait_until

PACK = "custom_nodes/pack"


@pytest.fixture
def copy(tmp_path: Path) -> Staged:
    """A copy of a ComfyUI with one custom node."""
    root = tmp_path / "volume/ComfyUI"
    (root / PACK).mkdir(parents=True)
    (root / "models").mkdir()
    (root / "main.py").write_text("main")
    (root / PACK / "config.json").write_text("old")
    (root / PACK / "other.json").write_text("old")
    return stage(CopyPlan(root, tmp_path / "local/stage", 10**9, 30))[0]


def there(copy: Staged) -> set[str]:
    """Files on the volume, below ComfyUI."""
    return {str(p.relative_to(copy.source)) for p in copy.source.rglob("*") if p.is_file()}


def test_nothing_new_is_nothing_done(copy: Staged) -> None:
    before = there(copy)
    assert WriteBack([copy]).now() == []
    assert there(copy) == before


def test_a_file_that_grew_while_it_was_copied_has_not_been_changed_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a log does that a Pod with the same volume writes."""
    log = tmp_path / "ComfyUI/pack.log"
    log.parent.mkdir()
    log.write_text("one line")

    def growing(source: int, found: os.stat_result, place: str) -> Stamp:
        log.write_text("one line, and another")
        return copy_opened(source, found, place)

    monkeypatch.setattr(copy_code, "copy_opened", growing)
    copy = stage(CopyPlan(log.parent, tmp_path / "local", 10**9, 30))[0]
    assert WriteBack([copy]).now() == []
    assert "not kept" not in capsys.readouterr().err
    (copy.place / "pack.log").write_text("ours")
    assert WriteBack([copy]).now() == []
    assert log.read_text() == "one line, and another"


def test_a_model_that_a_node_downloads_beside_itself_is_kept(copy: Staged) -> None:
    (copy.place / PACK / "ckpts/deep").mkdir(parents=True)
    (copy.place / PACK / "ckpts/deep/m.bin").write_bytes(b"weights" * 1000)
    write_back = WriteBack([copy])
    assert write_back.now() == [f"{PACK}/ckpts/deep/m.bin"]
    assert (copy.source / PACK / "ckpts/deep/m.bin").read_bytes() == b"weights" * 1000
    assert write_back.now() == [], "kept once"


def test_a_changed_setting_replaces_the_one_it_was(copy: Staged) -> None:
    write_back = WriteBack([copy])
    for text in ("new", "newer still"):
        (copy.place / PACK / "config.json").write_text(text)
        write_back.now()
        assert (copy.source / PACK / "config.json").read_text() == text


def test_a_file_that_another_worker_changed_is_left(
    copy: Staged, capsys: pytest.CaptureFixture[str]
) -> None:
    (copy.source / PACK / "config.json").write_text("theirs, changed since")
    (copy.place / PACK / "config.json").write_text("ours")
    (copy.source / PACK / "new.json").write_text("theirs, new")
    (copy.place / PACK / "new.json").write_text("ours")
    write_back = WriteBack([copy])
    assert write_back.now() == write_back.now() == []
    assert (copy.source / PACK / "config.json").read_text() == "theirs, changed since"
    assert (copy.source / PACK / "new.json").read_text() == "theirs, new"
    assert capsys.readouterr().err.count("not kept on the volume") == 2, "each reported once"


def test_bytecode_goes_back_quietly_and_may_replace(
    copy: Staged, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = PACK + "/__pycache__"
    (copy.place / cache).mkdir()
    (copy.place / cache / "a.cpython-311.pyc").write_bytes(b"new")
    (copy.place / cache / "b.cpython-311.pyc.140213").write_bytes(b"half")
    (copy.source / cache).mkdir()
    (copy.source / cache / "a.cpython-311.pyc").write_bytes(b"other")
    assert WriteBack([copy]).now() == [f"{cache}/a.cpython-311.pyc"]
    assert (copy.source / cache / "a.cpython-311.pyc").read_bytes() == b"new"
    assert os.listdir(copy.source / cache) == ["a.cpython-311.pyc"]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["x.log", "x.db", "x.tmp", "m.safetensors.part", "a.lock"])
def test_what_is_one_worker_s_own_or_half_written_stays_here(copy: Staged, name: str) -> None:
    (copy.place / PACK / name).write_text("private")
    assert WriteBack([copy]).now() == []


def test_what_is_still_being_written_is_left_for_later(copy: Staged) -> None:
    new = copy.place / PACK / "growing.bin"
    new.write_bytes(b"half")
    write_back = WriteBack([copy])
    assert write_back.now(settled=60) == []
    old = time.time() - 120
    os.utime(new, (old, old))
    assert write_back.now(settled=60) == [f"{PACK}/growing.bin"]


def test_a_file_that_kept_growing_is_complete_in_the_end(copy: Staged) -> None:
    new = copy.place / PACK / "growing.bin"
    write_back = WriteBack([copy])
    for size in (10, 20, 30):
        new.write_bytes(b"x" * size)
        write_back.now()
        assert (copy.source / PACK / "growing.bin").stat().st_size == size


def test_writes_through_links_are_not_reported(copy: Staged) -> None:
    (copy.place / "models/new.safetensors").write_text("on the volume already")
    (copy.place / PACK / "link").symlink_to(copy.place / "main.py")
    assert WriteBack([copy]).now() == []
    assert not os.path.lexists(copy.source / PACK / "link")


def test_a_volume_that_refuses_is_reported_and_tried_again(
    copy: Staged, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (copy.place / PACK / "new.bin").write_text("new")
    write_back = WriteBack([copy])
    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left")))
        assert write_back.now() == []
        assert sorted(os.listdir(copy.source / PACK)) == ["config.json", "other.json"]
    assert "No space left" in capsys.readouterr().err
    assert write_back.now() == [f"{PACK}/new.bin"]


def test_soon_works_in_the_background_and_again(copy: Staged) -> None:
    write_back = WriteBack([copy])
    for name in ("one.bin", "two.bin"):
        (copy.place / PACK / name).write_text(name)
        write_back.soon()
        wait_until((copy.source / PACK / name).exists)
        assert (copy.source / PACK / name).read_text() == name
    assert sum(thread.name == "write-back" for thread in threading.enumerate()) >= 1


def test_nothing_goes_through_a_link_that_leads_away_from_where_it_belongs(
    copy: Staged, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the volume, a folder became such a link since the copy was made; in the copy, a node
    made links to files elsewhere."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "secret").write_text("secret")
    (copy.source / PACK).rename(tmp_path / "pack")
    (copy.source / PACK).symlink_to(elsewhere)
    (copy.place / PACK / "new.bin").write_text("ours")
    (copy.place / PACK / "deep").mkdir()
    (copy.place / PACK / "deep/new.bin").write_text("ours")
    (copy.place / "custom_nodes/file").symlink_to(elsewhere / "secret")
    (copy.place / "custom_nodes/folder").symlink_to(elsewhere)
    assert WriteBack([copy]).now() == []
    assert [path.name for path in elsewhere.iterdir()] == ["secret"]
    assert sorted(p.name for p in (copy.source / "custom_nodes").iterdir()) == ["pack"]
    assert "leads elsewhere" in capsys.readouterr().err
