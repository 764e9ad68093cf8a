"""The volume's other mount point as a link: made where it is free, never over something real."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from bootstrap.core.findings import Finding
from bootstrap.volume import find_comfyui
from bootstrap.volume.find_comfyui import (
    MountState,
    OtherMount,
    link_other_mounts,
    other_mounts,
    unlink_other_mounts,
)


def linked(root: Path, names: Sequence[Path]) -> tuple[list[Path], list[Finding]]:
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(find_comfyui, "USUAL_ROOTS", names)
        return link_other_mounts(root)


def others(root: Path, names: Sequence[Path]) -> tuple[OtherMount, ...]:
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(find_comfyui, "USUAL_ROOTS", names)
        return other_mounts(root)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "runpod-volume/storage").mkdir(parents=True)
    return tmp_path / "runpod-volume"


def test_a_free_name_becomes_a_link_and_goes_again(root: Path) -> None:
    names = (root, root.parent / "workspace")
    made, findings = linked(root, names)
    assert made == [names[1]] and [f.code for f in findings] == ["volume.mount_linked"]
    assert (names[1] / "storage").is_dir()
    assert others(root, names) == (OtherMount(names[1], MountState.VOLUME),)
    assert linked(root, names) == ([], [])
    unlink_other_mounts(made, root)
    assert not os.path.lexists(names[1])


def test_an_empty_folder_is_no_volume_to_link_to(root: Path) -> None:
    (root / "storage").rmdir()
    name = root.parent / "workspace"
    assert linked(root, (name,)) == ([], [])
    assert not os.path.lexists(name)


@pytest.mark.parametrize("what", ["folder", "file", "link"])
def test_nothing_real_is_replaced(root: Path, what: str) -> None:
    name = root.parent / "workspace"
    (root.parent / "elsewhere").mkdir()
    if what == "folder":
        name.mkdir()
    elif what == "file":
        name.write_text("mine")
    else:
        name.symlink_to("elsewhere")
    before = os.lstat(name).st_ino
    assert linked(root, (name,)) == ([], [])
    assert others(root, (name,))[0].state is MountState.TAKEN
    unlink_other_mounts([name], root)
    assert os.lstat(name).st_ino == before


def test_a_link_that_a_killed_worker_left_to_a_volume_that_is_gone_is_replaced(root: Path) -> None:
    name = root.parent / "workspace"
    name.symlink_to(root.parent / "gone")
    assert linked(root, (name,))[0] == [name]
    assert name.resolve() == root


def test_no_name_above_or_below_the_volume_and_none_without_one(root: Path) -> None:
    inner = root / "storage"
    assert others(inner, (root,)) == others(root, (inner,)) == ()
    assert linked(root.parent / "gone", (root.parent / "workspace",)) == ([], [])


def test_someone_who_may_not_write_there_gets_none(root: Path) -> None:
    assert linked(root, (Path("/proc/workspace"),)) == ([], [])
