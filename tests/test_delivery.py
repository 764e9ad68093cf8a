"""Produced files become entries of a reply, and copies on the volume that nobody overwrites."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bootstrap.volume import Layout
from bootstrap.workdir import WorkDir, make_workdir
from handler.delivery import Delivery, marked
from handler.errors import JobError
from handler.outputs import Produced, ProducedFile, ProducedText

MARK = "0123456789ab"


@pytest.fixture
def work(tmp_path: Path) -> Iterator[WorkDir]:
    """A work folder that is reached by a link, as a `WORK_DIR` may be."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    made = make_workdir(tmp_path / "link")
    assert isinstance(made, WorkDir)
    yield made
    made.remove()


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    root = tmp_path / "volume"
    (root / "ComfyUI").mkdir(parents=True)
    return Layout(root, True, root / "ComfyUI")


@pytest.fixture
def delivery(work: WorkDir, layout: Layout) -> Delivery:
    return Delivery(work, layout)


def put(folder: Path, name: str, content: bytes = b"content") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def image(name: str = "a_00001_.png", subfolder: str = "", type: str = "output") -> ProducedFile:
    return ProducedFile("9", name, subfolder, type)


def kept_files(layout: Layout) -> list[str]:
    return sorted(str(p.relative_to(layout.output)) for p in layout.output.rglob("*.*"))


def test_an_image_is_sent_and_kept_on_the_volume_under_the_jobs_mark(
    delivery: Delivery, work: WorkDir, layout: Layout
) -> None:
    put(work.output, "a_00001_.png")
    (entry,), warnings = delivery.deliver([image()], MARK)
    assert warnings == []
    assert entry == {
        "filename": f"a_00001_{MARK}.png",
        "path": f"ComfyUI/output/a_00001_{MARK}.png",
        "node_id": "9",
        "kind": "image",
        "type": "output",
        "mime_type": "image/png",
        "size": 7,
        "image": base64.b64encode(b"content").decode(),
    }
    assert (layout.root / entry["path"]).read_bytes() == b"content"


def test_what_is_no_image_is_sent_as_data_and_texts_as_they_are(
    delivery: Delivery, work: WorkDir
) -> None:
    put(work.output, "v.mp4")
    given: list[Produced] = [ProducedText("3", "hello"), image("v.mp4")]
    (text, video), _ = delivery.deliver(given, MARK)
    assert text == {"node_id": "3", "kind": "text", "text": "hello"}
    assert "data" in video and "image" not in video and video["kind"] == "video"


def test_subfolders_are_kept(delivery: Delivery, work: WorkDir, layout: Layout) -> None:
    put(work.output / "flux/today", "a.png")
    (entry,), _ = delivery.deliver([image("a.png", "flux/today")], MARK)
    assert entry["path"] == f"ComfyUI/output/flux/today/a_{MARK}.png"


def test_a_preview_is_sent_and_not_kept(delivery: Delivery, work: WorkDir, layout: Layout) -> None:
    put(work.temp, "p.png")
    (entry,), _ = delivery.deliver([image("p.png", type="temp")], MARK)
    assert "path" not in entry and "image" in entry
    assert not layout.output.exists()


@pytest.mark.parametrize(
    ("name", "subfolder", "type"),
    [
        ("secret.png", "..", "output"),
        ("../secret.png", "", "output"),
        ("secret.png", "../user", "output"),
        ("hostname", "/etc", "output"),
        ("link.png", "", "output"),
        ("a.png", "", "elsewhere"),
        ("folder", "", "output"),
        ("gone.png", "", "output"),
        ("", "", "output"),
    ],
)
def test_nothing_outside_comfyuis_folders_and_nothing_missing_is_sent(
    delivery: Delivery, work: WorkDir, layout: Layout, name: str, subfolder: str, type: str
) -> None:
    secret = put(work.root, "secret.png")
    put(work.user, "secret.png")
    put(work.output, "a.png")
    (work.output / "folder").mkdir()
    (work.output / "link.png").symlink_to(secret)
    with pytest.raises(JobError) as caught:
        delivery.deliver([image(name, subfolder, type)], MARK)
    assert caught.value.code == "job.result_missing"
    assert not layout.output.exists()


def test_a_roundabout_subfolder_does_not_lead_out_of_the_volumes_output(
    delivery: Delivery, work: WorkDir, layout: Layout
) -> None:
    put(work.output / "sub", "a.png")
    detour = f"../../{work.root.name}/output/sub"
    (entry,), _ = delivery.deliver([image("a.png", detour)], MARK)
    assert entry["path"] == f"ComfyUI/output/sub/a_{MARK}.png"


def test_of_several_files_a_missing_one_is_a_warning(delivery: Delivery, work: WorkDir) -> None:
    put(work.output, "a_00001_.png")
    entries, (warning,) = delivery.deliver([image(), image("gone.png")], MARK)
    assert len(entries) == 1 and "gone.png" in warning


def test_one_name_in_two_jobs_is_two_files(
    delivery: Delivery, work: WorkDir, layout: Layout
) -> None:
    for mark, content in (("job1", b"one"), ("job2", b"two"), ("job2", b"three")):
        put(work.output, "a_00001_.png", content)
        delivery.deliver([image()], mark)
    assert kept_files(layout) == ["a_00001_job1.png", "a_00001_job2-2.png", "a_00001_job2.png"]


def test_without_a_volume_a_file_is_sent_with_a_warning(work: WorkDir, tmp_path: Path) -> None:
    put(work.output, "a_00001_.png")
    delivery = Delivery(work, Layout(tmp_path / "nowhere", False, None))
    (entry,), (warning,) = delivery.deliver([image()], MARK)
    assert "path" not in entry and entry["image"]
    assert "there is no volume" in warning
    assert not (tmp_path / "nowhere").exists()


def test_a_volume_that_takes_nothing_is_a_warning(
    delivery: Delivery, work: WorkDir, layout: Layout
) -> None:
    layout.output.write_text("a file where the folder should be")
    put(work.output, "a_00001_.png")
    (entry,), (warning,) = delivery.deliver([image()], MARK)
    assert entry["image"] and "could not be kept" in warning


def test_files_that_were_not_reported_are_kept_once(
    delivery: Delivery, work: WorkDir, layout: Layout
) -> None:
    put(work.output, "a_00001_.png")
    put(work.output / "checkpoints", "merged.safetensors")
    delivery.deliver([image()], MARK)
    kept, warnings = delivery.keep_rest(MARK)
    assert (kept, warnings) == ([f"ComfyUI/output/checkpoints/merged_{MARK}.safetensors"], [])
    assert delivery.keep_rest("other") == ([], [])
    assert kept_files(layout) == [f"a_00001_{MARK}.png", f"checkpoints/merged_{MARK}.safetensors"]


def test_a_file_that_was_written_again_is_kept_again(delivery: Delivery, work: WorkDir) -> None:
    put(work.output, "state.json", b"one")
    delivery.keep_rest("job1")
    put(work.output, "state.json", b"other")
    assert delivery.keep_rest("job2")[0] == ["ComfyUI/output/state_job2.json"]


def test_what_is_no_file_is_not_kept(delivery: Delivery, work: WorkDir) -> None:
    (work.output / "broken.png").symlink_to("/nowhere")
    os.mkfifo(work.output / "pipe")
    assert delivery.keep_rest(MARK) == ([], [])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a_00001_.png", "a_00001_M.png"),
        ("a.png", "a_M.png"),
        ("a.tar.gz", "a.tar_M.gz"),
        ("a", "a_M"),
        (".hidden", ".hidden_M"),
    ],
)
def test_the_mark_stands_before_the_extension(name: str, expected: str) -> None:
    assert marked(name, "M") == expected
