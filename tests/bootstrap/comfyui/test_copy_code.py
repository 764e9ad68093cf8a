"""ComfyUI's tree copied to local disk: content, links, size, and failures."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bootstrap.comfyui import launch
from bootstrap.comfyui.copy_code import (
    CannotStage,
    CopyPlan,
    Staged,
    copy_user_folder,
    link_output,
    stage,
)
from bootstrap.comfyui.launch import check_queued
from bootstrap.comfyui.workdir import WorkDir, WriteBack
from bootstrap.config import Settings
from bootstrap.volume import locate
from tests.support.volumes import mounted

MB = 1_000_000


@pytest.fixture
def comfyui(tmp_path: Path) -> Path:
    """A small tree with one of everything."""
    root = tmp_path / "volume" / "ComfyUI"
    write(root / "main.py", "print('main')")
    write(root / "comfy/ldm/models/autoencoder.py", "code, not weights")
    write(root / "custom_nodes/pack/__init__.py", "import os")
    write(root / "custom_nodes/pack/__pycache__/__init__.cpython-311.pyc", "bytecode")
    write(root / "custom_nodes/pack/run.sh", "#!/bin/sh")
    os.chmod(root / "custom_nodes/pack/run.sh", 0o755)
    write(root / "custom_nodes/pack/.git/HEAD", "ref: refs/heads/main")
    for name in ("models", "output", "input", "temp", "user", "venv"):
        write(root / name / "data.bin", name)
    write(root.parent / "models/vae/v.safetensors", "weights")
    os.utime(root / "main.py", ns=(1_600_000_000_123_456_789, 1_600_000_000_123_456_789))
    return root


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def staged(comfyui: Path, pack_mb: float = 200, timeout: float = 30) -> Staged:
    """A copy in a new folder beside the volume."""
    parent = comfyui.parent.parent / "local" / "stage"
    shutil.rmtree(parent, ignore_errors=True)
    return stage(CopyPlan(comfyui, parent, int(pack_mb * MB), timeout))[0]


def test_code_is_copied_with_its_time_and_rights(comfyui: Path) -> None:
    copy = staged(comfyui).place
    for path in ("main.py", "comfy/ldm/models/autoencoder.py", "custom_nodes/pack/__init__.py"):
        assert (copy / path).read_bytes() == (comfyui / path).read_bytes()
        assert not (copy / path).is_symlink()
    assert (copy / "main.py").stat().st_mtime_ns == 1_600_000_000_123_456_789
    assert os.access(copy / "custom_nodes/pack/run.sh", os.X_OK)


def test_bytecode_comes_along(comfyui: Path) -> None:
    bytecode = "custom_nodes/pack/__pycache__/__init__.cpython-311.pyc"
    assert (staged(comfyui).place / bytecode).read_text() == "bytecode"


@pytest.mark.parametrize("name", ["models", "output", "input", "temp", "user", "venv"])
def test_data_stays_on_the_volume_at_the_top_only(comfyui: Path, name: str) -> None:
    copy = staged(comfyui).place
    assert (copy / name).is_symlink()
    write(copy / name / "new.bin", "written through")
    assert (comfyui / name / "new.bin").read_text() == "written through"


@pytest.mark.parametrize("on_the_volume", ["a folder", "a link", "nothing"])
def test_output_beside_the_code_is_where_comfyui_is_reported_to_write(
    comfyui: Path, tmp_path: Path, on_the_volume: str
) -> None:
    if on_the_volume != "a folder":
        shutil.rmtree(comfyui / "output")
    if on_the_volume == "a link":
        (comfyui / "output").symlink_to("../elsewhere")
    copy, reported = staged(comfyui), tmp_path / "work/output"
    link_output(copy.place, reported)
    write(reported / "a.png", "result")
    assert (copy.place / "output/a.png").read_text() == "result"
    assert WriteBack([copy]).now() == [], "results reach the volume in their own way"


def test_a_repository_is_linked(comfyui: Path) -> None:
    copy = staged(comfyui).place
    assert (copy / "custom_nodes/pack/.git").is_symlink()
    assert (copy / "custom_nodes/pack/.git/HEAD").is_file()


def test_a_change_on_the_volume_is_in_the_next_copy(comfyui: Path) -> None:
    staged(comfyui)
    write(comfyui / "custom_nodes/pack/__init__.py", "import sys")
    write(comfyui / "custom_nodes/other/__init__.py", "new")
    (comfyui / "custom_nodes/pack/run.sh").unlink()
    copy = staged(comfyui).place
    assert (copy / "custom_nodes/pack/__init__.py").read_text() == "import sys"
    assert (copy / "custom_nodes/other/__init__.py").read_text() == "new"
    assert not (copy / "custom_nodes/pack/run.sh").exists()


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("custom_nodes/pack/inside", "../../comfy"),
        ("custom_nodes/pack/to_data", "../../models"),
        ("custom_nodes/pack/beside", "../../../models/vae"),
        ("custom_nodes/pack/far_away", "../../../../outside"),
        ("custom_nodes/pack/absolute", "{volume}/models"),
        ("custom_nodes/pack/broken", "nowhere"),
    ],
)
def test_links_mean_what_they_meant(comfyui: Path, place: str, text: str) -> None:
    write(comfyui.parent.parent / "outside/file", "o")
    (comfyui / place).symlink_to(text.format(volume=comfyui.parent))
    copy = staged(comfyui).place
    assert (copy / place).is_symlink()
    meant, now = os.path.realpath(comfyui / place), os.path.realpath(copy / place)
    inside = os.path.relpath(meant, comfyui)
    if inside.startswith(("..", "models")):
        assert now == meant
    else:
        assert now == os.path.realpath(copy / inside)
    assert os.path.exists(now) == os.path.exists(meant)


def test_a_relative_path_of_a_models_file_leads_where_it_led(comfyui: Path) -> None:
    copy = staged(comfyui).place
    beside = os.path.normpath(copy / "../models/vae/v.safetensors")
    assert Path(beside).read_text() == "weights"


def test_of_a_heavy_pack_the_largest_files_are_linked(comfyui: Path) -> None:
    pack = comfyui / "custom_nodes/heavy"
    write(pack / "__init__.py", "code")
    write(pack / "big.bin", b"b" * 30 * MB)
    write(pack / "small.bin", b"s" * 6 * MB)
    copy = staged(comfyui, pack_mb=10)
    assert copy.linked == ("custom_nodes/heavy/big.bin",)
    place = copy.place / "custom_nodes/heavy"
    assert (place / "big.bin").is_symlink() and (place / "big.bin").read_bytes()[:1] == b"b"
    assert not (place / "small.bin").is_symlink()
    assert (place / "small.bin").stat().st_size == 6 * MB
    assert not (place / "__init__.py").is_symlink()
    assert staged(comfyui, pack_mb=50).linked == ()


def test_a_pipe_or_socket_that_was_left_holds_nothing_up(comfyui: Path) -> None:
    os.mkfifo(comfyui / "pipe")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(comfyui / "s"))
        copy = staged(comfyui).place
    assert not (copy / "pipe").exists()


def test_what_cannot_be_read_is_linked(comfyui: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really_open = os.open

    def refuse(path: str, *rest: int) -> int:
        if str(path) == str(comfyui / "custom_nodes/pack/run.sh"):
            raise PermissionError(13, "Permission denied")
        return really_open(path, *rest)

    monkeypatch.setattr(os, "open", refuse)
    copy = staged(comfyui).place
    assert (copy / "custom_nodes/pack/run.sh").is_symlink()


def test_a_disk_that_is_too_small_leaves_nothing_behind(comfyui: Path, tmp_path: Path) -> None:
    write(comfyui / "custom_nodes/pack/weights.bin", b"w" * 3 * MB)
    with mounted(tmp_path / "small", "-o", "size=1m") as disk:
        with pytest.raises(CannotStage, match="No space left"):
            stage(CopyPlan(comfyui, disk / "stage", 200 * MB, 30))
        assert list(disk.iterdir()) == []


def test_large_files_are_not_started_without_free_space(comfyui: Path, tmp_path: Path) -> None:
    write(comfyui / "custom_nodes/pack/weights.bin", b"w" * 6 * MB)
    with mounted(tmp_path / "small", "-o", "size=200m") as disk:
        with pytest.raises(CannotStage, match="no space for 6 MB"):
            stage(CopyPlan(comfyui, disk / "stage", 200 * MB, 30))
        assert list(disk.iterdir()) == []


def test_a_volume_that_hangs_is_given_up(comfyui: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `scandir` that never returns simulates a mount whose server is gone."""
    hung = subprocess.Popen(["sleep", "60"])
    really_scan = os.scandir

    def hang(path: str) -> object:
        if str(path).endswith("custom_nodes/pack"):
            hung.wait()
        return really_scan(path)

    monkeypatch.setattr(os, "scandir", hang)
    try:
        with pytest.raises(CannotStage, match=r"within 0\.5 s"):
            staged(comfyui, timeout=0.5)
    finally:
        hung.kill()
        hung.wait()


def test_people_s_settings_come_along_but_no_logs_or_databases(tmp_path: Path) -> None:
    user = tmp_path / "user"
    write(user / "default/workflows/mine.json", "{}")
    write(user / "__manager/config.ini", "[default]")
    for name in ("comfyui.db", "comfyui.log", "comfyui.db-wal"):
        write(user / name, "another worker's")
    copy = copy_user_folder(user, tmp_path / "local", 30).place
    assert (copy / "default/workflows/mine.json").is_file()
    assert (copy / "__manager/config.ini").read_text() == "[default]"
    assert sorted(p.name for p in copy.iterdir()) == ["__manager", "default"]


def test_a_missing_user_folder_is_not_a_fault(tmp_path: Path) -> None:
    assert copy_user_folder(tmp_path / "none", tmp_path / "local", 30).stamps == {}


@pytest.mark.parametrize("name", [".venv-cu128", "env", "custom_nodes/pack/inner"])
def test_a_virtual_environment_is_never_copied_whatever_its_name(comfyui: Path, name: str) -> None:
    write(comfyui / name / "pyvenv.cfg", "home = /usr/bin")
    write(comfyui / name / "lib/python3.12/site-packages/torch/__init__.py", "large")
    copy = staged(comfyui)
    assert (copy.place / name).is_symlink()
    assert (copy.place / name / "lib/python3.12/site-packages/torch/__init__.py").is_file()
    assert not any(path.startswith(name) for path in copy.stamps)


def test_where_the_volume_is_comfyui_only_its_own_folders_are_copied(comfyui: Path) -> None:
    write(comfyui / "datasets/mine.bin", "data")
    parent = comfyui.parent.parent / "local/stage"
    (copy,) = stage(CopyPlan(comfyui, parent, MB, 30, is_volume=True))
    assert (copy.place / "datasets").is_symlink()
    assert not (copy.place / "comfy").is_symlink() and "main.py" in copy.stamps


def test_custom_nodes_that_are_a_link_are_copied(comfyui: Path) -> None:
    (comfyui / "custom_nodes").rename(comfyui.parent / "nodes")
    (comfyui / "custom_nodes").symlink_to("../nodes")
    copy = staged(comfyui).place
    assert not (copy / "custom_nodes").is_symlink()
    assert (copy / "custom_nodes/pack/__init__.py").read_text() == "import os"


def test_a_comfyui_without_a_models_folder_gets_a_link_to_the_one_that_is_made(
    comfyui: Path,
) -> None:
    shutil.rmtree(comfyui / "models")
    copy = staged(comfyui).place
    (comfyui / "models").symlink_to("../models")
    assert (copy / "models/vae/v.safetensors").read_text() == "weights"


def test_nodes_of_the_volume_go_before_those_of_the_images_comfyui(comfyui: Path) -> None:
    nodes = comfyui.parent / "nodes"
    write(nodes / "pack/__init__.py", "newer")
    write(nodes / "other.py", "one file")
    write(comfyui / "custom_nodes/baked/__init__.py", "of the image")
    parent = comfyui.parent.parent / "local/stage"
    code, extra = stage(CopyPlan(comfyui, parent, MB, 30, nodes=nodes))
    packs = code.place / "custom_nodes"
    assert sorted(os.listdir(packs)) == ["baked", "other.py", "pack"]
    assert (packs / "pack/__init__.py").read_text() == "newer"
    assert not (packs / "pack/run.sh").exists()
    write(packs / "baked/__pycache__/x.pyc", "of the image")
    write(packs / "pack/kept.txt", "of the volume")
    assert WriteBack([extra]).now() == ["pack/kept.txt"]
    assert sorted(os.listdir(nodes)) == ["other.py", "pack"]


QUEUE = "startup-scripts/install-scripts.txt"


def test_what_the_manager_has_queued_is_left_out_and_reported(comfyui: Path) -> None:
    assert check_queued([staged(comfyui)]) == []
    write(comfyui / "custom_nodes/ComfyUI-Manager" / QUEUE, "['pack', '#LAZY-INSTALL-NODE']")
    write(comfyui / "user/__manager" / QUEUE, "['pack']")
    write(comfyui / "user/__manager/startup-scripts/restore-snapshot.json", "{}")
    write(comfyui / "user/__manager/config.ini", "[default]")
    code = staged(comfyui)
    user = copy_user_folder(comfyui / "user", comfyui.parent.parent / "local/user", 30)
    assert not (code.place / "custom_nodes/ComfyUI-Manager" / QUEUE).exists()
    assert sorted(user.stamps) == ["__manager/config.ini", "data.bin"]
    (finding,) = check_queued([code, user])
    assert finding.code == "nodes.installs_queued" and len(finding.details["paths"]) == 3
    for path in finding.details["paths"]:  # as a start on a Pod does it
        Path(path).unlink()
    assert check_queued([staged(comfyui)]) == []


def test_what_links_lead_to_is_never_copied(comfyui: Path, tmp_path: Path) -> None:
    """Neither a file nor a folder elsewhere, in code, data and people's settings."""
    elsewhere = tmp_path / "elsewhere"
    write(elsewhere / "secret", "secret")
    for place in ("custom_nodes/pack", "output", "models", "user"):
        (comfyui / place / "file").symlink_to(elsewhere / "secret")
        (comfyui / place / "folder").symlink_to(elsewhere)
    code = staged(comfyui)
    user = copy_user_folder(comfyui / "user", tmp_path / "local/user", 30)
    for copy, below in ((code, "custom_nodes/pack"), (user, "")):
        for name in ("file", "folder"):
            assert os.readlink(copy.place / below / name).startswith(str(elsewhere))
        assert not [path for path in copy.stamps if "secret" in path or "file" in path]


def refused(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_without_room_for_the_last_link_it_runs_from_the_volume(
    comfyui: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(volume_path=comfyui.parent)
    monkeypatch.setattr(launch, "link_output", refused)
    work = WorkDir(tmp_path / "local", 0)
    copies, (finding,) = launch.stage_code(settings, locate(settings), work)
    assert copies == [] and finding.code == "comfyui.not_staged"
    assert "to local disk: No space left on device. It runs" in finding.message


def test_a_user_folder_that_may_not_be_looked_at_is_left_out(
    comfyui: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(volume_path=comfyui.parent)
    layout = replace(locate(settings), comfyui=tmp_path / "image/ComfyUI")
    real = os.stat

    def closed(path: Any, *more: Any, **also: Any) -> os.stat_result:
        if str(path).endswith("ComfyUI/user"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path, *more, **also)

    monkeypatch.setattr(os, "stat", closed)
    assert launch.copy_user(settings, layout, WorkDir(tmp_path / "local", 0)) == (None, [])
