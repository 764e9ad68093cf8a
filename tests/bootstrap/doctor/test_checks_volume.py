"""Volumes: healthy, absent, full, inaccessible; on real mounts if mounting is allowed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from bootstrap.config import Settings
from bootstrap.core.files import Trouble
from bootstrap.core.findings import Finding, Severity
from bootstrap.core.text import as_on_pod
from bootstrap.doctor.checks import volume, volume_layout, volume_links, volume_storage
from bootstrap.doctor.checks.volume import check_layout, check_volume
from bootstrap.doctor.facts.volume_facts import (
    LinkFact,
    LinkTarget,
    Space,
    VolumeFacts,
    VolumeState,
    Writing,
)
from bootstrap.doctor.facts.volume_places import ModelPath
from bootstrap.doctor.facts.volume_probe import gather_volume
from bootstrap.volume import Layout, locate
from bootstrap.volume.find_comfyui import USUAL_ROOTS
from bootstrap.volume.locate import Mount, similar_folder
from tests.support.volumes import (
    follow,
    grave,
    healthy,
    look,
    mounted,
    only,
    settings,
)

OK, INFO, WARNING, ERROR = Severity
GB, TB = 1024**3, 1024**4
PROJECT = Path(__file__).parents[3]
HEX = "0123456789abcdef" * 2


# --- healthy ones


def test_a_healthy_volume_gives_no_warning(root: Path) -> None:
    assert {f.severity for f in look(root)} == {OK}


def test_a_healthy_volume_with_models_beside_comfyui_gives_no_warning(root: Path) -> None:
    shutil.move(root / "ComfyUI/models", root / "models")
    assert [f.code for f in look(root)] == ["volume.found"]
    (root / "ComfyUI/models").symlink_to("../models")
    assert [f.code for f in look(root)] == ["volume.found"]


def test_a_users_own_folders_are_left_alone(root: Path) -> None:
    for name in ("configs", "detection", "photos", "ComfyUI-Manager", "Comfy_backup", "env"):
        (root / name).mkdir()
    (root / "configs/mine.yaml").write_text("a: 1")
    (root / "latest").symlink_to("photos")
    assert [f.code for f in look(root)] == ["volume.found"]


# --- presence


def test_no_volume(root: Path, tmp_path: Path) -> None:
    shutil.rmtree(root)
    (finding,) = look(root)
    assert (finding.code, finding.severity) == ("volume.not_found", ERROR)
    assert "Network Volumes" in finding.fix
    root.write_text("")
    assert [f.code for f in look(root)] == ["volume.not_a_folder"]
    image = healthy(tmp_path / "image") / "ComfyUI"
    root.unlink()
    (finding,) = look(root, image)
    assert finding.severity is WARNING  # VOLUME_PATH says that one is wanted


def test_an_empty_folder_that_no_volume_is_attached_to(tmp_path: Path) -> None:
    root = tmp_path / "volume"
    (root / "ComfyUI/output").mkdir(parents=True)  # made by a worker since
    (finding,) = look(root, mounts="")
    assert (finding.code, finding.severity) == ("volume.not_mounted", ERROR)
    assert "Network Volumes" in finding.fix
    shutil.rmtree(root / "ComfyUI")
    (finding,) = look(root, mounts="")
    assert finding.code == "volume.not_mounted"
    assert grave(look(root)) == ["comfyui.not_found"]


def test_a_volume_that_vanishes_under_a_worker(tmp_path: Path) -> None:
    with mounted(tmp_path / "volume") as root:
        healthy(root)
        given = settings(root)
        layout = locate(given)
        before = check_layout(layout)
        subprocess.run(["umount", str(root)], check=True)
        (finding,) = check_volume(gather_volume(layout, given), given)
    assert [f.code for f in before] == ["volume.found"]
    assert (finding.code, finding.severity) == ("volume.not_mounted", ERROR)


def test_without_volume_path_an_image_needs_no_volume(tmp_path: Path) -> None:
    facts = VolumeFacts("/runpod-volume", state=VolumeState.MISSING, comfyui="/opt/ComfyUI")
    (finding,) = check_volume(facts, Settings())
    assert (finding.code, finding.severity) == ("volume.not_found", INFO)


def test_a_volume_on_this_machines_own_disk_is_reported(root: Path) -> None:
    finding = only(look(root, mounts=""), "volume.local")
    assert finding.severity is INFO


SEEN = VolumeFacts(
    "/runpod-volume",
    "/runpod-volume",
    state=VolumeState.FOLDER,
    mount=Mount("/runpod-volume", "fuse", "mfs#m:9421", "MooseFS", True, False),
    space=Space(4 * TB, TB, 0, 0),
    writing=Writing(0.01, 0.0),
    comfyui="/runpod-volume/ComfyUI",
    comfyui_on_volume=True,
)


def checked(**changes: object) -> list[Finding]:
    facts = replace(SEEN, **changes)  # type: ignore[arg-type]
    left_out = "volume.models_missing"
    return [f for f in check_volume(facts, Settings()) if f.code != left_out]


def test_silence_comes_alone() -> None:
    (finding,) = checked(silent_after=10.0)
    assert (finding.code, finding.severity) == ("volume.silent", ERROR)
    assert "MooseFS" in finding.message and "10 s" in finding.message


@pytest.mark.parametrize("name", ["ENOTCONN", "ESTALE", "EIO"])
def test_a_broken_mount_is_the_machines_fault(name: str) -> None:
    trouble = Trouble(name, "of a test")
    (finding,) = checked(state=VolumeState.BAD, trouble=trouble)
    assert finding.code == "volume.io_error" and finding.host_fault
    finding = only(checked(writing=Writing(1, trouble=trouble)), "volume.io_error")
    assert finding.host_fault and name in finding.message


@pytest.mark.parametrize(
    ("space", "code"),
    [
        (Space(2100 * TB, 700 * TB, 0, 0), "volume.space_unknown"),
        (Space(100 * GB, GB - 1, 0, 0), "volume.low"),
        (Space(100 * GB, 2 * GB - 1, 0, 0), "volume.low"),
        (Space(4 * TB, 20 * GB - 1, 0, 0), "volume.low"),
        (Space(100 * GB, 50 * GB, 10**6, 999), "volume.inodes_low"),
        (Space(100 * GB, 2 * GB, 10**6, 1000), None),
        (Space(4 * TB, 20 * GB, 0, 0), None),
    ],
)
def test_room(space: Space, code: str | None) -> None:
    assert [f.code for f in checked(space=space)] == ["volume.found", *([code] if code else [])]


def test_a_large_local_disk_is_believed() -> None:
    mount = Mount("/runpod-volume", "xfs", "/dev/md0", "xfs", False, False)
    found = checked(space=Space(100 * TB, 50 * TB, 0, 0), mount=mount)
    assert [f.code for f in found] == ["volume.found", "volume.local"]


def test_a_quota_says_so_and_a_slow_write_is_reported() -> None:
    trouble = Trouble("EDQUOT", "Disk quota exceeded")
    finding = only(checked(writing=Writing(0.1, trouble=trouble)), "volume.full")
    assert "quota" in finding.message and finding.severity is ERROR
    assert only(checked(writing=Writing(2.5)), "volume.slow").severity is WARNING


def test_on_serverless_the_pods_path_is_reported() -> None:
    finding = only(checked(space=Space(GB, 0, 0, 0)), "volume.low")
    assert finding.fix.startswith("On a Pod with this volume, which is /workspace there: `du ")
    assert "/runpod-volume" not in finding.fix
    assert as_on_pod("Then: `rm -- '/runpod-volume/a b'`, or not.") == (
        "Then: `rm -- '/workspace/a b'`, or not. "
        "(That is on a Pod with this volume, which is /workspace there.)"
    )
    for same in ("`sed 's#/runpod-volume#..#' x`", "`rm /data/runpod-volume/x`", "/runpod-volume"):
        assert as_on_pod(same) == same


# --- real mounts


def test_a_full_volume(tmp_path: Path) -> None:
    with mounted(tmp_path / "volume", "-o", "size=2m") as root:
        healthy(root)
        with suppress(OSError):
            (root / "ComfyUI/models/filler").write_bytes(bytes(4 * 1024**2))
        found = look(root)
        assert grave(found) == ["volume.full"]
        assert "ComfyUI/models" in follow(only(found, "volume.full"))
        (root / "ComfyUI/models/filler").unlink()
        assert grave(look(root)) == ["volume.low"]


def test_a_volume_without_inodes(tmp_path: Path) -> None:
    with mounted(tmp_path / "volume", "-o", "nr_inodes=60") as root:
        healthy(root)
        with suppress(OSError):
            for number in range(100):
                (root / f"file{number}").touch()
        found = look(root)
        assert grave(found) == ["volume.inodes_gone"]
        assert str(root) in follow(only(found, "volume.inodes_gone"))
        for path in root.glob("file*"):
            path.unlink()
        assert grave(look(root)) == ["volume.inodes_low"]


def test_a_read_only_volume(tmp_path: Path) -> None:
    with mounted(tmp_path / "volume") as root:
        healthy(root)
        subprocess.run(["mount", "-o", "remount,ro", str(root)], check=True)
        found = look(root)
        assert grave(found) == ["volume.read_only"]
        assert only(found, "volume.read_only").severity is WARNING
        follow(only(found, "volume.read_only"))
        assert grave(look(root)) == []


# --- rights, as another user


def look_as_no_one(root: Path) -> list[Finding]:
    code = (
        "import json,sys,os\n"
        f"sys.path[:0] = {[str(PROJECT), *sys.path]!r}\n"
        "from pathlib import Path\n"
        "from tests.support.volumes import look\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        f"print(json.dumps([f.as_dict() for f in look(Path({str(root)!r}))]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd="/", check=False
    )
    assert done.returncode == 0, done.stderr
    return [
        Finding(
            f["code"],
            Severity(f["severity"]),
            f["message"],
            f.get("fix", ""),
            details=f.get("details", {}),
        )
        for f in json.loads(done.stdout)
    ]


@pytest.fixture
def public() -> Iterator[Path]:
    """A volume that every user can reach and write to; pytest's own folders are private."""
    if os.geteuid() != 0:
        pytest.skip("only root can look as another")
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        base.chmod(0o777)
        root = healthy(base / "volume")
        subprocess.run(["chmod", "-R", "a+rwX", str(root)], check=True)
        yield root


@pytest.mark.parametrize(
    ("place", "mode", "code", "severity"),
    [
        ("", 0o755, "volume.not_writable", WARNING),
        ("ComfyUI/models", 0o755, "volume.not_writable", WARNING),
        ("", 0o711, "volume.unreadable", ERROR),
        ("ComfyUI/main.py", 0o600, "volume.unreadable", ERROR),
        ("ComfyUI/custom_nodes", 0o700, "volume.unreadable", WARNING),
    ],
)
def test_rights(public: Path, place: str, mode: int, code: str, severity: Severity) -> None:
    assert grave(look_as_no_one(public)) == []
    (public / place).chmod(mode)
    found = look_as_no_one(public)
    assert only(found, code).severity is severity
    for _ in range(2):  # a root that cannot be read hides that it cannot be written to
        for finding in found:
            if finding.severity.rank >= WARNING.rank:
                follow(finding)
        found = look_as_no_one(public)
    assert grave(found) == []


# --- the short look


def test_layout(root: Path, tmp_path: Path) -> None:
    assert [f.code for f in check_layout(locate(settings(root)))] == ["volume.found"]
    shutil.rmtree(root / "ComfyUI")
    (finding,) = check_layout(locate(settings(root)))
    assert finding.code == "comfyui.not_found" and "git clone" in finding.fix
    (finding,) = check_layout(locate(settings(tmp_path / "gone")))
    assert finding.code == "volume.not_found"
    (finding,) = check_layout(Layout(tmp_path / "gone", False, tmp_path))
    assert finding.severity is OK
    assert f"no volume at {tmp_path / 'gone'}" in finding.message


@pytest.mark.parametrize("part", ["models", "custom_nodes", "ComfyUI/models/loras"])
def test_a_part_of_a_volume_is_named_with_the_volume(root: Path, tmp_path: Path, part: str) -> None:
    (root / part).mkdir(parents=True, exist_ok=True)
    for finding in (*look(root / part), *check_layout(locate(settings(root / part)))):
        assert (finding.code, finding.severity) == ("volume.inside", ERROR)
        assert f"VOLUME_PATH={root} " in finding.fix
    image = healthy(tmp_path / "image") / "ComfyUI"
    (finding,) = check_layout(locate(settings(root / part, image)))
    assert (finding.code, finding.severity) == ("volume.inside", WARNING), "the image's runs"


def test_a_comfyui_and_a_folder_of_models_may_be_volumes(root: Path) -> None:
    assert check_layout(locate(settings(root / "ComfyUI")))[0].code == "volume.found"
    os.rename(root, root.parent / "models")
    assert [f.code for f in check_layout(locate(settings(root.parent / "models")))] == [
        "volume.found"
    ]


def test_a_misspelt_path_is_corrected(root: Path) -> None:
    near = settings(root.parent / "volum")
    for finding in (*look(root.parent / "volum"), *check_layout(locate(near))):
        assert finding.code == "volume.not_found" and f"Did you mean {root}?" in finding.message


@pytest.mark.parametrize("usual", USUAL_ROOTS)
def test_a_usual_mount_point_is_not_mistaken_for_itself(usual: Path) -> None:
    if usual.exists():
        pytest.skip(f"{usual} is there")
    assert similar_folder(usual) != usual


def test_codes_are_declared_once_and_each_has_a_test() -> None:
    modules = (volume, volume_layout, volume_links, volume_storage)
    codes = [code for module in modules for code in module.CODES]
    assert len(codes) == len(set(codes))
    tests = Path(__file__).parent
    source = Path(__file__).read_text() + (tests / "test_checks_volume_fixes.py").read_text()
    source += (tests / "test_checks_models.py").read_text()
    source += (tests.parents[1] / "support/volume_cases.py").read_text()
    elsewhere = [code for code in codes if code.startswith("throughput.")]  # test_throughput.py
    assert [code for code in codes if f'"{code}"' not in source] == elsewhere


@pytest.mark.parametrize(("mount", "severity"), [("/runpod-volume", INFO), ("/workspace", WARNING)])
def test_what_names_serverless_s_own_mount_point_is_fit_for_jobs(
    mount: str, severity: Severity
) -> None:
    link = LinkFact(f"{mount}/a", f"{mount}/b", LinkTarget.OK, mount, "b")
    path = ModelPath(2, "mine", "loras", f"{mount}/b", f"{mount}/b", True, home=mount, there=True)
    facts = VolumeFacts(
        mount, comfyui=f"{mount}/ComfyUI", comfyui_on_volume=True, real=mount,
        comfyui_real=f"{mount}/ComfyUI",
        links=(link,), model_paths=(path,),
    )  # fmt: skip
    alone = Settings(link_other_mount=False)
    found = [*volume_links.check_links(facts, alone), *volume_links.check_paths(facts, alone)]
    assert [(f.code, f.severity) for f in found] == [
        ("links.absolute", severity), ("volume.paths_absolute", severity),
    ]  # fmt: skip
    image = replace(facts, comfyui="/opt/ComfyUI", comfyui_on_volume=False)
    assert volume_links.check_paths(image, alone) == []
