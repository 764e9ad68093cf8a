"""Volume and links: a broken volume gives its finding; its fix, typed as it stands, mends it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from bootstrap.checks import (
    links,
    volume,
    volume_disk,
    volume_layout,
    volume_paths,
    volume_presence,
)
from bootstrap.checks.volume import check_layout, check_volume
from bootstrap.facts.folder import Trouble
from bootstrap.facts.mount import Mount
from bootstrap.facts.volume import gather_volume
from bootstrap.facts.volume_disk import Space, Writing
from bootstrap.facts.volume_facts import State, VolumeFacts
from bootstrap.findings import Finding, Severity
from bootstrap.settings import Settings
from bootstrap.volume import Layout, locate
from tests.support.volumes import (
    command_of,
    follow,
    grave,
    healthy,
    look,
    model,
    mounted,
    only,
    settings,
)

OK, INFO, WARNING, ERROR = Severity
GB, TB = 1024**3, 1024**4
PROJECT = Path(__file__).parent.parent
HEX = "0123456789abcdef" * 2
Break = Callable[[Path], object]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return healthy(tmp_path / "volume")


# --- healthy ones


def test_a_healthy_volume_gives_no_warning(root: Path) -> None:
    assert {f.severity for f in look(root)} == {OK}


def test_a_healthy_volume_with_models_beside_comfyui_gives_no_warning(root: Path) -> None:
    shutil.move(root / "ComfyUI/models", root / "models")
    assert [f.code for f in look(root)] == ["volume.found"]
    (root / "ComfyUI/models").symlink_to("../models")
    assert [f.code for f in look(root)] == ["volume.found"]


def test_somebodys_own_folders_are_nobodys_business(root: Path) -> None:
    for name in ("configs", "detection", "photos", "ComfyUI-Manager", "Comfy_backup", "env"):
        (root / name).mkdir()
    (root / "configs/mine.yaml").write_text("a: 1")
    (root / "latest").symlink_to("photos")
    assert [f.code for f in look(root)] == ["volume.found"]


# --- what is broken, and mended by the command in the fix


@dataclass(frozen=True)
class Case:
    """`spoil` breaks a healthy volume, which then has `code` and nothing else as bad; after the
    fix there is nothing bad any more, and `kept` is there."""

    code: str
    severity: Severity
    spoil: Break
    kept: str = "ComfyUI/models/checkpoints/real.safetensors"
    name: str = ""


def moved(source: str, target: str) -> Break:
    def spoil(root: Path) -> None:
        (root / target).parent.mkdir(parents=True, exist_ok=True)
        os.rename(root / source, root / target)

    return spoil


def both(*spoils: Break) -> Break:
    return lambda root: [spoil(root) for spoil in spoils]


def nested(root: Path) -> None:
    os.rename(root / "ComfyUI", root / "inner")
    (root / "ComfyUI").mkdir()
    os.rename(root / "inner", root / "ComfyUI/ComfyUI")


def nested_with_models_outside(root: Path) -> None:
    nested(root)
    model(root / "ComfyUI/models/loras/mine.safetensors")


def into_root(root: Path) -> None:
    for entry in list((root / "ComfyUI").iterdir()):
        os.rename(entry, root / entry.name)
    (root / "ComfyUI").rmdir()


def without_models(root: Path) -> None:
    shutil.rmtree(root / "ComfyUI/models")


def linked(place: str, text: str) -> Break:
    return lambda root: (root / place).symlink_to(text.format(root=root))


def swapped(place: str, text: str, target: str) -> Break:
    """What is at `place` is moved to `target`, and a link that reads `text` is left for it."""
    return both(moved(place, target), linked(place, text))


def paths_file(text: str) -> Break:
    return lambda root: (root / "ComfyUI/extra_model_paths.yaml").write_text(text.format(root=root))


def broken_venv(root: Path) -> None:
    made = [sys.executable, "-m", "venv", "--without-pip", str(root / "venv")]
    subprocess.run(made, check=True)
    for link in (root / "venv/bin").glob("python*"):
        link.unlink()
    (root / "venv/bin/python").symlink_to("/nowhere/bin/python3")
    (root / "venv/bin/python3").symlink_to("python")


def aged(place: str, hours: float = 2, text: str = "") -> Break:
    def spoil(root: Path) -> None:
        path = root / place
        path.write_text(text)
        before = path.stat().st_mtime - hours * 3600
        os.utime(path, (before, before))

    return spoil


def ours_broken(root: Path) -> None:
    model(root / "models/sams/x.pth")
    (root / "ComfyUI/models/sams").symlink_to("../../models/sams")
    shutil.rmtree(root / "models")


LORA = "ComfyUI/models/loras/mine.safetensors"
CASES = [
    Case("volume.comfyui_nested", ERROR, nested),
    Case(
        "volume.comfyui_nested", ERROR, nested_with_models_outside, "models/loras/mine.safetensors"
    ),
    Case("volume.comfyui_renamed", ERROR, moved("ComfyUI", "comfyui")),
    Case("volume.comfyui_renamed", ERROR, moved("ComfyUI", "ComfyUI-master"), name="zip"),
    Case(
        "volume.comfyui_renamed",
        ERROR,
        both(moved("ComfyUI", "comfyui"), lambda r: model(r / "ComfyUI/output/a.png")),
        "ComfyUI-before/output/a.png",
        "with results where it belongs",
    ),
    Case("volume.comfyui_elsewhere", ERROR, moved("ComfyUI", "runpod-slim/ComfyUI")),
    Case("volume.comfyui_in_root", ERROR, into_root),
    Case("volume.models_missing", WARNING, without_models, "models/checkpoints"),
    Case("volume.models_misplaced", WARNING, lambda r: model(r / "loras/mine.safetensors"), LORA),
    Case(
        "volume.models_misplaced",
        WARNING,
        lambda r: model(r / "ComfyUI/Loras/deep/mine.safetensors"),
        "ComfyUI/models/loras/deep/mine.safetensors",
        "in ComfyUI, below",
    ),
    Case(
        "volume.models_misplaced",
        WARNING,
        both(
            without_models,
            lambda r: model(r / "my 'own' models/loras/x.pt"),
            lambda r: os.rename(r / "my 'own' models/loras", r / "LoRAs"),
            lambda r: os.mkdir(r / "models"),
        ),
        "models/loras/x.pt",
        "nothing else",
    ),
    Case(
        "volume.wrong_case",
        WARNING,
        moved("ComfyUI/models", "Models"),
        "models/checkpoints/real.safetensors",
    ),
    Case(
        "volume.wrong_case",
        WARNING,
        moved("ComfyUI/models/loras", "ComfyUI/models/LoRAs"),
        "ComfyUI/models/loras",
        "category",
    ),
    Case(
        "links.other_mount",
        WARNING,
        swapped("ComfyUI/models/loras", "/workspace/store/loras", "store/loras"),
    ),
    Case(
        "links.other_mount",
        WARNING,
        swapped("ComfyUI/models", "/workspace/models", "models"),
        name="models",
    ),
    Case(
        "links.other_mount",
        ERROR,
        swapped("ComfyUI", "/runpod-volume/apps/Comfy", "apps/Comfy"),
        name="comfyui",
    ),
    Case("links.absolute", WARNING, swapped("ComfyUI/models", "{root}/models", "models")),
    Case(
        "links.absolute",
        WARNING,
        swapped("ComfyUI/models/checkpoints/real.safetensors", "{root}/real", "real"),
        name="model",
    ),
    Case("links.broken", WARNING, linked("ComfyUI/models/LLM", "../../gone")),
    Case(
        "links.broken",
        WARNING,
        linked("ComfyUI/custom_nodes/a b\n'\udcff", "/workspace/gone"),
        name="odd name",
    ),
    Case("links.ours_broken", WARNING, ours_broken),
    Case("links.endless", WARNING, linked("ComfyUI/models/sams", "sams")),
    Case("links.endless", WARNING, linked("ComfyUI/models/sams", ".."), name="up"),
    Case(
        "links.outward",
        WARNING,
        swapped("ComfyUI/models/vae", "{root}/../elsewhere", "../elsewhere"),
    ),
    Case("volume.venv_broken", WARNING, broken_venv, "venv/bin/python"),
    Case(
        "volume.paths_other_mount",
        WARNING,
        both(
            lambda r: (r / "store/loras").mkdir(parents=True),
            paths_file("mine:\n    base_path: /workspace/store/\n    loras: loras\n"),
        ),
    ),
    Case(
        "volume.paths_absolute",
        WARNING,
        both(
            lambda r: (r / "store/loras").mkdir(parents=True),
            paths_file("mine:\n    loras: |\n        {root}/store/loras\n"),
        ),
    ),
    Case(
        "volume.paths_missing",
        WARNING,
        paths_file(
            "a111:\n    base_path: /home/me/webui\n    loras: |\n        models/Lora\n"
            "        models/LyCORIS\n    vae: models/VAE\n"
        ),
    ),
    Case(
        "volume.put_aside",
        WARNING,
        aged(f"ComfyUI/models/loras/.{HEX}.unlinking", text="a model"),
        "ComfyUI/models/loras/put-aside-01234567",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.code} {case.name}".strip())
def test_following_the_fix_mends_it(case: Case, root: Path) -> None:
    case.spoil(root)
    found = look(root)
    assert grave(found) == [case.code]
    finding = only(found, case.code)
    assert finding.severity is case.severity
    json.dumps(finding.as_dict(), ensure_ascii=False).encode()
    follow(finding)
    again = look(root)
    assert grave(again) == [], again
    assert case.code not in [f.code for f in again]
    assert (root / case.kept).exists()


def test_an_incomplete_comfyui_gets_its_files_and_keeps_the_rest(
    root: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    shutil.copytree(root / "ComfyUI", source)
    shutil.rmtree(source / "models")
    subprocess.run([*git, "init", "-q", "-b", "master"], cwd=source, check=True)
    subprocess.run([*git, "add", "."], cwd=source, check=True)
    subprocess.run([*git, "commit", "-qm", "x"], cwd=source, check=True)
    redirect = {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{source}.insteadOf",
        "GIT_CONFIG_VALUE_0": volume_layout.SOURCE,
    }
    (root / "ComfyUI/main.py").unlink()
    found = look(root)
    assert grave(found) == ["volume.comfyui_incomplete"]
    follow(only(found, "volume.comfyui_incomplete"), **redirect)
    assert grave(look(root)) == []
    assert (root / "ComfyUI/models/checkpoints/real.safetensors").exists()

    (root / "ComfyUI/main.py").unlink()
    finding = only(look(root), "volume.comfyui_incomplete")
    assert "checkout -- main.py" in command_of(finding)
    follow(finding)
    assert grave(look(root)) == []

    shutil.rmtree(root / "ComfyUI")
    model(root / "models/checkpoints/x.safetensors")
    found = look(root)
    assert grave(found) == ["comfyui.not_found"]
    follow(only(found, "comfyui.not_found"), **redirect)
    assert grave(look(root)) == []


def test_a_comfyui_that_is_the_volumes_root(tmp_path: Path) -> None:
    root = healthy(tmp_path) / "ComfyUI"
    finding = only(look(root), "volume.comfyui_in_root")
    assert finding.fix == f"Set VOLUME_PATH to {tmp_path}."
    assert grave(look(tmp_path)) == []


def test_with_a_comfyui_in_the_image_the_volume_may_have_none(root: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    os.rename(root / "ComfyUI", image)
    model(root / "models/loras/x.safetensors")
    assert grave(look(root, image)) == []
    shutil.copytree(image, root / "comfyui")
    found = look(root, image)
    assert grave(found) == ["volume.comfyui_renamed"]
    assert only(found, "volume.comfyui_renamed").severity is WARNING
    shutil.copytree(image, root / "runpod-slim/ComfyUI")
    shutil.rmtree(root / "comfyui")
    assert only(look(root, image), "volume.comfyui_elsewhere").severity is INFO


def test_a_second_comfyui_is_told(root: Path) -> None:
    shutil.copytree(root / "ComfyUI", root / "ComfyUI-old")
    (root / "comfyui").symlink_to("ComfyUI")
    found = look(root)
    assert grave(found) == []
    assert only(found, "volume.comfyui_spare").details["count"] == 1


def test_names_that_are_taken_are_not_replaced(root: Path) -> None:
    model(root / "loras/mine.safetensors").write_bytes(b"one")
    model(root / LORA).write_bytes(b"other")
    finding = only(look(root), "volume.models_misplaced")
    done = subprocess.run(["bash", "-c", command_of(finding)], capture_output=True, check=False)
    assert done.returncode != 0
    assert (root / "loras/mine.safetensors").read_bytes() == b"one"
    assert (root / LORA).read_bytes() == b"other"


def test_many_broken_links_are_one_finding_mended_in_turns(root: Path) -> None:
    for number in range(30):
        linked(f"ComfyUI/custom_nodes/n{number}", "gone")(root)
    finding = only(look(root), "links.broken")
    assert finding.details["count"] == 30
    follow(finding)
    finding = only(look(root), "links.broken")
    assert finding.details["count"] == 10
    follow(finding)
    assert grave(look(root)) == []


def test_links_on_the_rest_of_the_volume_are_information(root: Path) -> None:
    linked("latest", "gone")(root)
    linked("outside", "/usr")(root)
    linked("photos", ".")(root)
    found = look(root)
    assert [f.code for f in found] == ["volume.found", "links.broken", "links.outward"]
    assert grave(found) == []


def test_a_venv_that_was_moved_is_information(root: Path) -> None:
    made = [sys.executable, "-m", "venv", "--without-pip", str(root / "first")]
    subprocess.run(made, check=True)
    os.rename(root / "first", root / "venv")
    finding = only(look(root), "volume.venv_moved")
    assert finding.severity is INFO
    assert str(root / "venv/bin/python") in finding.fix


def test_a_category_of_the_paths_file_that_nobody_filled_is_information(root: Path) -> None:
    paths_file("mine:\n    base_path: ..\n    is_default: true\n    loras: more/loras\n")(root)
    finding = only(look(root), "volume.paths_missing")
    assert finding.severity is INFO
    follow(finding)
    assert [f.code for f in look(root)] == ["volume.found"]


def test_leftovers_are_swept_when_they_are_old(root: Path) -> None:
    part = f"ComfyUI/output/.{HEX}.part"
    aged(part, hours=0.9)(root)
    assert [f.code for f in look(root)] == ["volume.found"]
    aged(part, hours=1.1)(root)
    finding = only(look(root), "volume.leftovers")
    assert finding.severity is INFO
    follow(finding)
    assert [f.code for f in look(root)] == ["volume.found"]
    (root / part).write_text("")
    os.truncate(root / part, 2 * GB)
    os.utime(root / part, (0, 0))
    assert only(look(root), "volume.leftovers").severity is WARNING


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
    facts = VolumeFacts("/runpod-volume", state=State.MISSING, comfyui="/opt/ComfyUI")
    (finding,) = check_volume(facts, Settings())
    assert (finding.code, finding.severity) == ("volume.not_found", INFO)


def test_a_volume_on_this_machines_own_disk_is_told(root: Path) -> None:
    finding = only(look(root, mounts=""), "volume.local")
    assert finding.severity is INFO


SEEN = VolumeFacts(
    "/runpod-volume",
    "/runpod-volume",
    state=State.FOLDER,
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
    (finding,) = checked(state=State.BAD, trouble=trouble)
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


def test_a_quota_says_so_and_a_slow_write_is_told() -> None:
    trouble = Trouble("EDQUOT", "Disk quota exceeded")
    finding = only(checked(writing=Writing(0.1, trouble=trouble)), "volume.full")
    assert "quota" in finding.message and finding.severity is ERROR
    assert only(checked(writing=Writing(2.5)), "volume.slow").severity is WARNING


def test_on_serverless_the_pods_path_is_told() -> None:
    finding = only(checked(space=Space(GB, 0, 0, 0)), "volume.low")
    assert "type that for /runpod-volume" in finding.fix


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


def look_as_nobody(root: Path) -> list[Finding]:
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
def public(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume that everybody can reach and write to; pytest's own folders are closed."""
    if os.geteuid() != 0:
        pytest.skip("only root can look as somebody else")
    base = tmp_path_factory.mktemp("public")
    for folder in (base, *list(base.parents)[:2]):
        folder.chmod(folder.stat().st_mode | 0o711)
    base.chmod(0o777)
    root = healthy(base / "volume")
    subprocess.run(["chmod", "-R", "a+rwX", str(root)], check=True)
    (base / "mountinfo").touch()
    (base / "mountinfo").chmod(0o666)
    return root


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
    assert grave(look_as_nobody(public)) == []
    (public / place).chmod(mode)
    found = look_as_nobody(public)
    assert only(found, code).severity is severity
    for _ in range(2):  # a root that cannot be read hides that it cannot be written to
        for finding in found:
            if finding.severity.rank >= WARNING.rank:
                follow(finding)
        found = look_as_nobody(public)
    assert grave(found) == []


# --- the short look


def test_layout(root: Path, tmp_path: Path) -> None:
    assert [f.code for f in check_layout(locate(settings(root)))] == ["volume.found"]
    shutil.rmtree(root / "ComfyUI")
    (finding,) = check_layout(locate(settings(root)))
    assert finding.code == "comfyui.not_found" and "git clone" in finding.fix
    (finding,) = check_layout(locate(settings(tmp_path / "gone")))
    assert finding.code == "volume.not_found"
    assert check_layout(Layout(tmp_path / "gone", False, tmp_path))[0].severity is OK


def test_codes_are_declared_once_and_each_has_a_test() -> None:
    modules = (links, volume, volume_disk, volume_layout, volume_paths, volume_presence)
    codes = [code for module in modules for code in module.CODES]
    assert len(codes) == len(set(codes))
    source = Path(__file__).read_text()
    assert [code for code in codes if f'"{code}"' not in source] == []
