"""Safe repairs: planned first, done once, never on what may be the user's."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from bootstrap.core.findings import Finding, Severity
from bootstrap.doctor.fix import Repair, apply_fixes, plan_fixes
from bootstrap.volume import locate
from tests.support.volumes import facts_of, healthy, look, model, mounted, only, settings

HEX = "0123456789abcdef" * 2
KEY = "0123456789abcdef"


def plan(root: Path, mounts: str | None = None) -> list[Repair]:
    facts = facts_of(root) if mounts is None else facts_of(root, mounts=mounts)
    return plan_fixes(locate(settings(root)), facts)


def snapshot(root: Path) -> dict[str, str]:
    return {str(p): os.readlink(p) if p.is_symlink() else "" for p in sorted(root.rglob("*"))}


def aged(path: Path, hours: float) -> Path:
    before = path.lstat().st_mtime - hours * 3600
    os.utime(path, (before, before), follow_symlinks=False)
    return path


def repaired(root: Path) -> list[Finding]:
    """What was done; afterwards there is nothing left to do."""
    planned = plan(root)
    done = apply_fixes(planned)
    assert plan(root) == []
    state = snapshot(root)
    assert apply_fixes(planned) == []
    assert snapshot(root) == state
    return done


def test_a_healthy_volume_needs_nothing(root: Path) -> None:
    state = snapshot(root)
    assert plan(root) == []
    assert snapshot(root) == state


def test_planning_changes_nothing_and_says_what_would_be_done(root: Path) -> None:
    shutil.rmtree(root / "ComfyUI/models")
    aged(model(root / f"ComfyUI/output/.{HEX}.part"), 2)
    state = snapshot(root)
    folders, sweep = plan(root)
    assert snapshot(root) == state
    assert (folders.code, sweep.code) == ("fix.folders_made", "fix.swept")
    assert folders.paths[:2] == (str(root / "models"), str(root / "models/checkpoints"))
    assert "Make 10 folders" in folders.sentence and str(root / "models") in folders.sentence
    assert "Remove 1 file (7 bytes)" in sweep.sentence
    assert sweep.paths == (str(root / f"ComfyUI/output/.{HEX}.part"),)


def test_missing_folders_are_made(root: Path) -> None:
    shutil.rmtree(root / "ComfyUI/models")
    assert [f.code for f in repaired(root)] == ["fix.folders_made"]
    assert (root / "models/checkpoints").is_dir()
    assert [f.code for f in look(root)] == ["volume.found"]


def test_missing_categories_are_made_where_the_models_are(root: Path) -> None:
    shutil.rmtree(root / "ComfyUI/models/loras")
    os.rename(root / "ComfyUI/models/vae", root / "ComfyUI/models/VAE")
    repaired(root)
    assert (root / "ComfyUI/models/loras").is_dir()
    assert (root / "ComfyUI/models/vae").is_dir() and not (root / "ComfyUI/models/VAE").exists()


@pytest.mark.parametrize("make", [Path.touch, lambda path: path.symlink_to("gone")])
def test_a_name_that_something_has_is_left_alone(root: Path, make: object) -> None:
    shutil.rmtree(root / "ComfyUI/models")
    make(root / "models")  # type: ignore[operator]
    assert plan(root) == []


def test_nothing_is_made_where_no_volume_is_attached(tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()
    assert plan(tmp_path / "volume", mounts="") == []
    assert plan(tmp_path / "none") == []


def test_nothing_is_made_in_a_folder_of_the_volume_that_is_taken_for_it(root: Path) -> None:
    inside = root / "ComfyUI/custom_nodes"
    (inside / "loras").mkdir()
    model(inside / "loras/a.safetensors")
    assert only(look(inside), "volume.inside")
    assert plan(inside) == []


def test_our_own_dead_links_go_and_others_stay(root: Path) -> None:
    models = root / "ComfyUI/models"
    (models / "sams").symlink_to("../../models/sams")
    (models / "loras/deep.pt").symlink_to("../../../models/loras/deep.pt")
    (models / "theirs").symlink_to("../../store/theirs")
    (models / "absolute").symlink_to(root / "models/absolute")
    assert [f.code for f in repaired(root)] == ["fix.links_removed"]
    assert not (models / "sams").is_symlink() and not (models / "loras/deep.pt").is_symlink()
    assert (models / "theirs").is_symlink() and (models / "absolute").is_symlink()


def test_our_link_that_came_to_life_meanwhile_stays(root: Path) -> None:
    (root / "ComfyUI/models/sams").symlink_to("../../models/sams")
    planned = plan(root)
    assert [repair.code for repair in planned] == ["fix.links_removed"]
    model(root / "models/sams/x.pth")
    assert apply_fixes(planned) == []
    assert (root / "ComfyUI/models/sams/x.pth").exists()


def test_only_old_leftovers_of_ours_are_swept(root: Path) -> None:
    models, output = root / "ComfyUI/models", root / "ComfyUI/output"
    gone = [
        aged(model(output / f".{HEX}.part"), 1.1),
        aged(model(output / "mine" / f".{HEX}.part"), 1.1),
        aged(model(models / f"loras/.model-{KEY}-{KEY}.part"), 25),
        aged(model(models / f"loras/.model-{KEY}.lease"), 25),
    ]
    dead = models / f".{HEX}.unlinking"
    dead.symlink_to("gone")
    gone.append(aged(dead, 1.1))
    kept = [
        aged(model(output / f".{'a' * 32}.part"), 0.9),
        aged(model(models / f"vae/.model-{KEY}-{KEY}.part"), 23),
        aged(model(models / f"vae/.{HEX}.unlinking"), 99),
        aged(model(models / "vae/big.safetensors.part"), 99),
        aged(model(output / ".part"), 99),
    ]
    alive = models / f".{'b' * 32}.unlinking"
    alive.symlink_to("vae")
    kept.append(aged(alive, 99))
    assert [f.code for f in repaired(root)] == ["fix.swept"]
    assert [p for p in gone if p.is_symlink() or p.exists()] == []
    assert [p for p in kept if not p.exists()] == []


def test_a_leftover_that_changed_meanwhile_stays(root: Path) -> None:
    part = aged(model(root / f"ComfyUI/output/.{HEX}.part"), 2)
    planned = plan(root)
    part.write_bytes(b"someone goes on with it")
    assert apply_fixes(planned) == []
    assert part.read_bytes() == b"someone goes on with it"
    assert [p.name for p in part.parent.iterdir()] == [part.name]


def test_one_that_changes_between_look_and_removal_is_put_back(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = aged(model(root / f"ComfyUI/output/.{HEX}.part"), 2)
    planned = plan(root)
    rename = os.rename

    def replaced_first(source: Path, target: Path) -> None:
        if source == part:
            source.write_bytes(b"new")
        rename(source, target)

    monkeypatch.setattr(os, "rename", replaced_first)
    assert apply_fixes(planned) == []
    assert part.read_bytes() == b"new"
    assert len(list(part.parent.iterdir())) == 1


def test_what_cannot_be_fixed_is_reported(tmp_path: Path) -> None:
    with mounted(tmp_path / "volume") as root:
        healthy(root)
        (root / "ComfyUI/models/loras").rmdir()
        aged(model(root / f"ComfyUI/output/.{HEX}.part"), 2)
        planned = plan(root)
        os.system(f"mount -o remount,ro '{root}'")
        done = apply_fixes(planned)
    assert [f.code for f in done] == ["fix.failed", "fix.failed"]
    assert {f.severity for f in done} == {Severity.WARNING}
    assert done[0].details["errno"] == "EROFS" and str(root) in done[0].message


def test_the_finding_about_leftovers_is_gone_after_the_fix(root: Path) -> None:
    aged(model(root / f"ComfyUI/output/.{HEX}.part"), 2)
    only(look(root), "volume.leftovers")
    repaired(root)
    assert [f.code for f in look(root)] == ["volume.found"]


@pytest.mark.parametrize("linked", ["models", "models/loras", "ComfyUI/models", "ComfyUI/output"])
def test_nothing_is_made_or_removed_behind_a_link_that_leaves_the_volume(
    root: Path, tmp_path: Path, linked: str
) -> None:
    """With a leftover, a dead link that reads like ours, and folders missing."""
    elsewhere = tmp_path / "elsewhere"
    if (root / linked).exists():
        shutil.rmtree(root / linked)
    for folder in (elsewhere, elsewhere / "loras"):
        model(folder / f".{HEX}.part")
        aged(folder / f".{HEX}.part", 48)
        model(folder / f".model-{KEY}-{KEY}.part")
        aged(folder / f".model-{KEY}-{KEY}.part", 48)
        (folder / "gone.safetensors").symlink_to(root / "models/loras/gone.safetensors")
    (root / linked).parent.mkdir(parents=True, exist_ok=True)
    (root / linked).symlink_to(elsewhere)
    state = snapshot(elsewhere)
    apply_fixes(plan(root))
    assert snapshot(elsewhere) == state


def test_misplaced_models_are_moved_and_nothing_is_overwritten(root: Path) -> None:
    model(root / "loras/new.safetensors")
    model(root / "loras/sub/deep.safetensors")
    mine = model(root / "models/loras/taken.safetensors")
    mine.write_bytes(b"mine")
    model(root / "loras/taken.safetensors").write_bytes(b"other")
    (root / "loras/linked").mkdir()
    (root / "loras/linked/x.safetensors").symlink_to("../new.safetensors")
    (move,) = [repair for repair in plan(root) if repair.code == "fix.models_moved"]
    done = apply_fixes([move])
    assert (root / "models/loras/new.safetensors").is_file()
    assert (root / "models/loras/sub/deep.safetensors").is_file()
    assert mine.read_bytes() == b"mine"
    assert (root / "loras/taken.safetensors").read_bytes() == b"other"
    assert (root / "loras/linked/x.safetensors").is_symlink(), "it would lead elsewhere"
    assert [f.code for f in done] == ["fix.models_moved", "fix.failed", "fix.failed"]
    assert "loras/taken.safetensors" in done[2].message


def test_links_that_name_a_mount_point_hold_everywhere_afterwards(root: Path) -> None:
    model(root / "models/vae/a.safetensors")
    link = root / "ComfyUI/models/vae"
    link.rmdir()
    link.symlink_to("/workspace/models/vae")
    (relink,) = [repair for repair in plan(root) if repair.code == "fix.links_changed"]
    (done,) = apply_fixes([relink])
    assert done.code == "fix.links_changed"
    assert os.readlink(link) == "../../models/vae" and (link / "a.safetensors").is_file()
    assert not [repair for repair in plan(root) if repair.code == "fix.links_changed"]
    link.unlink()
    link.symlink_to("/somewhere/else")
    assert apply_fixes([relink]) == []
    assert os.readlink(link) == "/somewhere/else", "it is not what was seen"
