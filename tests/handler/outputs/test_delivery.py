"""Produced files become results in the reply, in a bucket and on the volume, and none is lost."""

from __future__ import annotations

import asyncio
import base64
import cProfile
import errno
import io
import json
import os
import pstats
import subprocess
import threading
import time
import zipfile
from collections.abc import Coroutine, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from bootstrap.comfyui import WorkDir, make_workdir
from bootstrap.config import Settings
from bootstrap.config.bucket import bucket_of
from bootstrap.volume import Layout
from handler.common.blocking import Calls
from handler.common.errors import Deadline, JobError
from handler.outputs.delivery import Delivery
from handler.outputs.job_outputs import DeliveryOptions, JobOutputs
from handler.outputs.local_files import Content, encoded
from handler.outputs.produced import Produced, ProducedFile, ProducedText, produced, tagged
from handler.request.fields import OutputOptions
from tests.support.s3_server import (
    BUCKET,
    KEY_ID,
    SECRET,
    Misbehaviour,
    S3Server,
    bad_s3_server,
)
from tests.support.volumes import mounted
from tests.support.waiting import wait_until

MARK = "0123456789ab"
T = TypeVar("T")
PNG = b"\x89PNG\r\n\x1a\n content"


class Jobs:
    """Delivers for one worker, with given settings."""

    def __init__(self, work: WorkDir, layout: Layout, **env: str) -> None:
        settings, problems = Settings.from_env(env)
        assert not problems
        self.bucket = bucket_of(settings)
        self.calls = Calls.on(layout.root)
        self.delivery = Delivery(settings, work, layout, self.calls)

    def deliver(
        self, *items: Produced, mark: str = MARK, until: float | None = None, **options: Any
    ) -> dict[str, Any]:
        wanted = DeliveryOptions(mark, Deadline(60), OutputOptions(**options), self.bucket)
        answer = self.run(self.delivery.deliver(items, self.claimed(wanted, items, until)))
        assert SECRET not in json.dumps(answer)
        return answer

    def entry(self, *items: Produced, **more: Any) -> dict[str, Any]:
        (entry,) = self.deliver(*items, **more)["results"]
        found: dict[str, Any] = entry
        return found

    def kept_from_failed(self, mark: str = MARK) -> list[str]:
        job = self.claimed(DeliveryOptions(mark, Deadline(60)))
        return self.run(self.delivery.keep_rest(job))[0]

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Including what the reply does not wait for."""

        async def whole() -> T:
            try:
                return await work
            finally:
                await self.calls.background.finish(10)

        return asyncio.run(whole())

    def claimed(
        self, options: DeliveryOptions, items: Iterable[Produced] = (), until: float | None = None
    ) -> JobOutputs:
        """Of a job that ended now, or at `until`, with its files claimed for it."""
        parcel, files = self.delivery.begin(options), self.delivery.files
        files.claim(parcel.claim, until or time.time(), files.found(items))
        return parcel


@pytest.fixture
def jobs(work: WorkDir, layout: Layout) -> Jobs:
    return Jobs(work, layout)


def put(folder: Path, name: str, content: bytes = PNG) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def image(name: str = "a_00001_.png", subfolder: str = "", type: str = "output") -> ProducedFile:
    return ProducedFile("9", name, subfolder, type)


def kept_files(layout: Layout) -> list[str]:
    found = (str(p.relative_to(layout.output)) for p in layout.output.rglob("*.*") if p.is_file())
    return sorted(name for name in found if not name.startswith("."))


def test_an_image_is_sent_and_kept_on_the_volume_under_the_jobs_mark(
    jobs: Jobs, work: WorkDir, layout: Layout
) -> None:
    put(work.output, "a_00001_.png")
    answer = jobs.deliver(image())
    assert answer == {
        "status": "completed",
        "results": [
            {
                "filename": f"a_00001_{MARK}.png",
                "path": f"ComfyUI/output/a_00001_{MARK}.png",
                "node_id": "9",
                "kind": "image",
                "type": "output",
                "mime_type": "image/png",
                "size": len(PNG),
                "image": base64.b64encode(PNG).decode(),
            }
        ],
    }
    assert (layout.root / answer["results"][0]["path"]).read_bytes() == PNG


def test_what_is_not_an_image_is_sent_as_data_and_texts_as_they_are(
    jobs: Jobs, work: WorkDir
) -> None:
    put(work.output, "v.mp4", b"film")
    text, video = jobs.deliver(ProducedText("3", "hello"), image("v.mp4"))["results"]
    assert text == {"node_id": "3", "kind": "text", "text": "hello"}
    assert "data" in video and "image" not in video and video["kind"] == "video"


def test_subfolders_are_kept(jobs: Jobs, work: WorkDir) -> None:
    put(work.output / "flux/today", "a.png")
    entry = jobs.entry(image("a.png", "flux/today"))
    assert entry["path"] == f"ComfyUI/output/flux/today/a_{MARK}.png"


def test_a_preview_is_sent_and_not_kept(jobs: Jobs, work: WorkDir, layout: Layout) -> None:
    put(work.temp, "p.png")
    entry = jobs.entry(image("p.png", type="temp"))
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
        ("a\0.png", "", "output"),
        ("x" * 5000, "", "output"),
    ],
)
def test_nothing_outside_comfyuis_folders_and_nothing_missing_is_sent(
    jobs: Jobs, work: WorkDir, layout: Layout, name: str, subfolder: str, type: str
) -> None:
    secret = put(work.root, "secret.png")
    put(work.user, "secret.png")
    put(work.output, "a.png")
    (work.output / "folder").mkdir()
    (work.output / "link.png").symlink_to(secret)
    with pytest.raises(JobError) as caught:
        jobs.deliver(image(name, subfolder, type))
    assert caught.value.code == "job.result_missing"
    assert not layout.output.exists()


@pytest.mark.parametrize("path", ["/etc/hostname", "/proc/self/environ", "../secret.png"])
def test_a_full_path_does_not_lead_out_either(jobs: Jobs, work: WorkDir, path: str) -> None:
    put(work.root, "secret.png")
    with pytest.raises(JobError):
        jobs.deliver(ProducedFile("9", "x.png", "", "output", path))


def test_a_full_path_is_used_where_the_rest_leads_nowhere(jobs: Jobs, work: WorkDir) -> None:
    film = put(work.output / "deep", "a.mp4", b"film")
    assert jobs.entry(ProducedFile("9", "a.mp4", "odd", "video", str(film)))["size"] == 4


def test_a_file_that_a_node_wrote_to_the_volume_itself_is_named_and_left_alone(
    jobs: Jobs, layout: Layout
) -> None:
    film = put(layout.output / "vhs", "a.mp4", b"film")
    for _ in range(2):
        entry = jobs.entry(ProducedFile("9", "a.mp4", "", "output", str(film)))
        assert entry["path"] == "ComfyUI/output/vhs/a.mp4" and entry["data"]
    jobs.deliver(ProducedText("1", "the next job"))
    assert kept_files(layout) == ["vhs/a.mp4"]


@pytest.mark.parametrize("subfolder", ["wild", "{relative}/wild"])
def test_a_file_written_past_the_output_folder_is_found_on_the_volume(
    jobs: Jobs, work: WorkDir, layout: Layout, subfolder: str
) -> None:
    """Into the output folder beside the code, or the volume's by an absolute path."""
    put(layout.output / "wild", "hard.png")
    relative = os.path.relpath(layout.output, os.path.realpath(work.output))
    entry = jobs.entry(image("hard.png", subfolder.format(relative=relative)))
    assert entry["path"] == "ComfyUI/output/wild/hard.png" and entry["image"]
    assert kept_files(layout) == ["wild/hard.png"]


@pytest.mark.parametrize("guessed", [False, True])
def test_an_older_file_of_that_name_on_the_volume_is_not_taken_for_it(
    work: WorkDir, layout: Layout, monkeypatch: pytest.MonkeyPatch, guessed: bool
) -> None:
    film = put(layout.output, "a.png")
    monkeypatch.setattr("handler.outputs.local_files.time.time", lambda: 1e10)
    later = Jobs(work, layout)
    monkeypatch.undo()
    name = ProducedFile("9", "a.png", "", "output", None, guessed)
    if guessed:
        assert later.deliver(name)["results"] == []
    else:
        with pytest.raises(JobError):
            later.deliver(name)
    assert film.exists()


def test_a_text_is_a_file_where_it_names_one_in_the_folders_of_results(
    jobs: Jobs, work: WorkDir, layout: Layout
) -> None:
    put(work.output, "a.wav")
    put(work.output / "deep", "b.mp4")
    put(work.output, "noext")
    put(work.temp, "c.glb")
    absolute = str(put(work.output, "d.bin"))
    secret = str(put(work.root, "secret.png"))
    put(work.input, "photo.png")
    names = ["a.wav", "output/deep/b.mp4", "noext", "c.glb", absolute]
    others = [secret, "../secret.png", "input/photo.png", "photo.png", "/etc/hostname", "mp4"]
    outputs = {"7": {"some": {"key": names}, "others": others}}
    answer = jobs.deliver(*produced(outputs)[0])
    assert [r["filename"].partition("_")[0] for r in answer["results"]] == [
        "a", "b", "noext", "c", "d"
    ]  # fmt: skip
    assert [r["type"] for r in answer["results"]] == ["output"] * 3 + ["temp", "output"]
    assert "warnings" not in answer and len(kept_files(layout)) == 3


def test_texts_that_are_not_files_give_a_warning_about_no_output(jobs: Jobs) -> None:
    answer = jobs.deliver(*produced({"7": {"format": "webp"}})[0])
    assert answer["results"] == [] and "no output" in answer["warnings"][0]


def test_a_file_that_two_nodes_report_is_a_result_of_each_and_kept_once(
    jobs: Jobs, work: WorkDir, layout: Layout
) -> None:
    """ComfyUI answers the second of two equal SaveImage nodes from its cache."""
    for name in ("a.png", "b.png"):
        put(work.output, name)
    batch = {"images": [{"filename": f"{n}.png", "type": "output"} for n in "ab"]}
    results = jobs.deliver(*produced({"3": batch, "5": batch})[0])["results"]
    assert [(r["node_id"], r["filename"][0]) for r in results] == [
        ("3", "a"), ("3", "b"), ("5", "a"), ("5", "b")
    ]  # fmt: skip
    assert all(r["image"] and r["path"] for r in results)
    assert kept_files(layout) == [f"a_{MARK}.png", f"b_{MARK}.png"]


@pytest.mark.parametrize("target", ["/etc/hostname", "{root}/secret.png", "{root}/output/a.png"])
def test_a_link_in_the_output_folder_is_never_followed(
    jobs: Jobs, work: WorkDir, layout: Layout, target: str
) -> None:
    put(work.root, "secret.png")
    put(work.output, "a.png")
    (work.output / "link.png").symlink_to(target.format(root=work.root))
    (work.output / "folder").symlink_to("/etc")
    answer = jobs.deliver(ProducedText("1", "text"))
    assert answer["also_kept"] == [f"ComfyUI/output/a_{MARK}.png"]
    assert kept_files(layout) == [f"a_{MARK}.png"]


def test_a_link_that_a_node_reports_may_lead_to_a_preview(jobs: Jobs, work: WorkDir) -> None:
    (work.output / "link.png").symlink_to(put(work.temp, "link.png"))
    assert jobs.entry(image("link.png"))["image"]


def test_a_file_of_the_input_folder_that_is_reported_is_left_there(
    jobs: Jobs, work: WorkDir
) -> None:
    put(work.input, "photo.png")
    jobs.deliver(image("photo.png", type="input"))
    jobs.deliver(ProducedText("1", "the next job"))
    assert os.listdir(work.input) == ["photo.png"]


def test_a_guess_that_is_not_a_file_is_not_a_warning(jobs: Jobs, work: WorkDir) -> None:
    put(work.output, "a_00001_.png")
    guess = ProducedFile("8", "camera.json", "", "output", "camera.json", guessed=True)
    answer = jobs.deliver(image(), guess)
    assert len(answer["results"]) == 1 and "warnings" not in answer


def test_a_roundabout_subfolder_does_not_lead_out_of_the_volumes_output(
    jobs: Jobs, work: WorkDir
) -> None:
    put(work.output / "sub", "a.png")
    detour = f"../../{work.root.name}/output/sub"
    assert jobs.entry(image("a.png", detour))["path"] == f"ComfyUI/output/sub/a_{MARK}.png"


def test_of_several_files_a_missing_one_is_a_warning(jobs: Jobs, work: WorkDir) -> None:
    put(work.output, "a_00001_.png")
    answer = jobs.deliver(image(), image("gone.png"))
    assert len(answer["results"]) == 1 and "gone.png" in answer["warnings"][0]


def test_one_name_in_two_jobs_is_two_files(jobs: Jobs, work: WorkDir, layout: Layout) -> None:
    for mark, content in (("job1", b"one"), ("job2", b"two"), ("job2", b"three")):
        put(work.output, "a_00001_.png", content)
        jobs.deliver(image(), mark=mark)
    assert kept_files(layout) == ["a_00001_job1.png", "a_00001_job2-2.png", "a_00001_job2.png"]


@pytest.mark.parametrize("zipped", [False, True])
def test_two_files_of_a_job_that_would_have_one_name_have_two(
    jobs: Jobs, work: WorkDir, zipped: bool
) -> None:
    """Each with its own content: both are converted, at the same time."""
    work.temp.mkdir()
    items, sizes = [], [(8 + n, 8) for n in range(6)]
    for n, size in enumerate(sizes):
        folder, type = (work.temp, "temp") if n % 2 else (work.output, "output")
        items.append(image(f"a.{['png', 'webp', 'bmp'][n // 2]}", type=type))
        Image.new("RGB", size).save(folder / items[-1].filename)
    results = jobs.deliver(*items, format="jpeg", zip=zipped)["results"]
    contents = [base64.b64decode(entry.get("image") or entry["data"]) for entry in results]
    if zipped:
        archive = zipfile.ZipFile(io.BytesIO(contents[0]))
        contents = [archive.read(name) for name in archive.namelist()]
        results = results[0]["files"]
    names = [f"a_{MARK}{number}.jpg" for number in ("", "-2", "-3", "-4", "-5", "-6")]
    assert [entry["filename"] for entry in results] == names
    assert [Image.open(io.BytesIO(content)).size for content in contents] == sizes
    assert all(entry["mime_type"] == "image/jpeg" for entry in results)


def test_a_jpeg_without_its_workflow_has_the_same_name_in_the_warning_and_in_the_reply(
    jobs: Jobs, work: WorkDir
) -> None:
    info = PngInfo()
    info.add_text("workflow", "x" * 70_000)
    Image.new("RGB", (8, 8)).save(work.output / "a_00001_.png", pnginfo=info)
    answer = jobs.deliver(image("a_00001_.png"), format="jpeg")
    (entry,) = answer["results"]
    assert answer["warnings"][0].startswith(f"{entry['filename']} lacks its workflow")


@pytest.mark.parametrize("name", ["x" * 251 + ".png", "ж" * 125 + ".png", "a." + "y" * 253])
def test_a_name_as_long_as_a_disk_takes_is_kept_twice(
    jobs: Jobs, work: WorkDir, layout: Layout, name: str
) -> None:
    for content in (b"one", b"two"):
        put(work.output, name, content)
        entry = jobs.entry(image(name), delivery="volume")
        assert (layout.root / entry["path"]).read_bytes() == content
        assert MARK in entry["filename"] and entry["filename"].startswith(name[0])


@pytest.mark.parametrize("zipped", [False, True])
def test_a_name_that_is_not_utf8_is_one_that_the_reply_can_state(
    work: WorkDir, layout: Layout, server: S3Server, zipped: bool
) -> None:
    put(work.output / "b\udcfe", "a\udcff.png")
    jobs = Jobs(work, layout, **server.env)
    answer = jobs.deliver(image("a\udcff.png", "b\udcfe"), zip=zipped)
    (entry,) = answer["results"]
    assert "warnings" not in answer and entry["url"]
    (kept,) = entry["files"] if zipped else [entry]
    assert kept["path"] == f"ComfyUI/output/b?/a?_{MARK}.png"
    assert (layout.root / kept["path"]).read_bytes() == PNG


def test_without_a_volume_a_file_is_sent_with_a_warning(work: WorkDir, tmp_path: Path) -> None:
    put(work.output, "a_00001_.png")
    jobs = Jobs(work, Layout(tmp_path / "nowhere", False, None))
    answer = jobs.deliver(image())
    assert "path" not in answer["results"][0] and answer["results"][0]["image"]
    assert "there is no volume" in answer["warnings"][0]
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("way", ["base64", "volume"])
def test_a_volume_that_takes_nothing_is_a_warning(
    jobs: Jobs, work: WorkDir, layout: Layout, way: str
) -> None:
    layout.output.write_text("a file where the folder should be")
    put(work.output, "a_00001_.png")
    answer = jobs.deliver(image(), delivery=way)
    assert answer["results"][0]["image"] and "could not be kept" in answer["warnings"][0]


def test_a_volume_that_is_full_costs_no_result_and_has_nothing_half(
    work: WorkDir, tmp_path: Path
) -> None:
    with mounted(tmp_path / "full", "-o", "size=1m") as root:
        layout = Layout(root, True, root / "ComfyUI")
        put(work.output, "film.mp4", b"x" * 3_000_000)
        answer = Jobs(work, layout).deliver(image("film.mp4"))
        assert len(answer["results"][0]["data"]) == 4_000_000
        assert "No space left" in answer["warnings"][0]
        assert kept_files(layout) == [] and not list(layout.output.glob(".*.part"))


@pytest.fixture
def tight(tmp_path: Path) -> Iterator[WorkDir]:
    """A work folder on a disk of 1 MB."""
    with mounted(tmp_path / "tight", "-o", "size=1m") as disk:
        made = make_workdir(disk)
        assert isinstance(made, WorkDir)
        yield made
        made.remove()


def test_a_full_local_disk_costs_no_result(tight: WorkDir, layout: Layout) -> None:
    """There is no room for the zip, nor for what pictures are converted into."""
    noise = Image.effect_noise((850, 850), 90)
    noise.save(tight.output / "a.png")
    size = (tight.output / "a.png").stat().st_size
    jobs = Jobs(tight, layout)
    answer = jobs.deliver(image("a.png"), zip=True)
    assert [entry["size"] for entry in answer["results"]] == [size]
    assert "not in one zip" in answer["warnings"][0] and "No space left" in answer["warnings"][0]
    items = (image("a.png"), ProducedText("3", "x" * 60_000))
    answer = Jobs(tight, layout, **LIMIT).deliver(*items, zip=True, mark="text")
    assert all(entry["path"] for entry in answer["results"]), "there is room for the text again"
    put(tight.output, "filler", b"x" * (1_000_000 - size))
    answer = jobs.deliver(image("a.png"), format="webp", quality=100, mark="other")
    assert [entry["size"] for entry in answer["results"]] == [size]
    assert "a.png" in answer["results"][0]["filename"].replace("_other", "")
    assert "returned as it was saved" in answer["warnings"][0]


def test_a_large_text_that_no_disk_takes_is_an_error_with_the_reason(
    tight: WorkDir, layout: Layout
) -> None:
    with pytest.raises(JobError) as caught:
        Jobs(tight, layout, **LIMIT).deliver(ProducedText("3", "ü" * 1_500_000))
    assert caught.value.code == "reply.too_large" and "No space left" in caught.value.message
    assert caught.value.details["size"] == 3_000_000


def test_delivery_to_the_volume_names_the_path_alone(jobs: Jobs, work: WorkDir) -> None:
    put(work.output, "a_00001_.png")
    put(work.temp, "p.png")
    for entry in jobs.deliver(image(), image("p.png", type="temp"), delivery="volume")["results"]:
        assert "image" not in entry and entry["path"].startswith("ComfyUI/output/")


def test_without_keep_outputs_only_what_goes_nowhere_else_is_kept(
    work: WorkDir, layout: Layout
) -> None:
    jobs = Jobs(work, layout, KEEP_OUTPUTS="false")
    put(work.output, "a_00001_.png")
    put(work.output, "unreported.bin")
    answer = jobs.deliver(image())
    assert "path" not in answer["results"][0]
    assert answer["also_kept"] == [f"ComfyUI/output/unreported_{MARK}.bin"]
    assert kept_files(layout) == [f"unreported_{MARK}.bin"]


# --- the worker's own folder ------------------------------------------------------------------


def test_files_that_were_not_reported_are_kept_once(
    jobs: Jobs, work: WorkDir, layout: Layout
) -> None:
    put(work.output, "a_00001_.png")
    put(work.output / "checkpoints", "merged.safetensors")
    answer = jobs.deliver(image())
    assert answer["also_kept"] == [f"ComfyUI/output/checkpoints/merged_{MARK}.safetensors"]
    assert jobs.kept_from_failed("other") == []
    assert kept_files(layout) == [f"a_00001_{MARK}.png", f"checkpoints/merged_{MARK}.safetensors"]


def test_files_that_are_claimed_too_late_for_their_job_are_kept_with_the_next_one(
    jobs: Jobs, work: WorkDir, layout: Layout
) -> None:
    """Where claiming takes longer than ten seconds, the job goes on without it."""
    late = jobs.delivery.begin(DeliveryOptions(MARK, Deadline(60)))
    jobs.run(jobs.delivery.keep_rest(late))
    put(work.output, "a_00001_.png")
    jobs.delivery.files.claim(late.claim, time.time())
    assert jobs.kept_from_failed("next") == ["ComfyUI/output/a_00001_next.png"]


def test_of_a_job_that_is_over_only_what_it_reported_stays_for_the_next_one(
    jobs: Jobs, work: WorkDir
) -> None:
    put(work.output, "a_00001_.png")
    put(work.output, "unreported.bin")
    put(work.temp, "p.png")
    jobs.deliver(image(), image("p.png", type="temp"))
    assert os.listdir(work.output) == ["a_00001_.png"] and os.listdir(work.temp) == ["p.png"]
    jobs.deliver(ProducedText("1", "x"))
    assert os.listdir(work.output) == [] == os.listdir(work.temp)


def test_what_could_not_be_kept_is_tried_again(jobs: Jobs, work: WorkDir, layout: Layout) -> None:
    layout.output.write_text("in the way")
    put(work.output, "model.bin")
    assert "could not be kept" in jobs.deliver(ProducedText("1", "x"))["warnings"][0]
    layout.output.unlink()
    assert jobs.deliver(ProducedText("1", "x"), mark="next")["also_kept"] == [
        "ComfyUI/output/model_next.bin"
    ]
    assert os.listdir(work.output) == []


def test_what_is_kept_but_cannot_be_removed_fails_no_job(
    jobs: Jobs, work: WorkDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove = Path.unlink

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if path.is_relative_to(os.path.realpath(work.output)):
            raise OSError(errno.EBUSY, "busy")
        remove(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    put(work.output, "a_00001_.png")
    put(work.output, "model.bin")
    answer = jobs.deliver(image())
    assert answer["results"][0]["path"] and answer["also_kept"] and "warnings" not in answer
    for _ in range(3):
        later = jobs.deliver(ProducedText("1", "a later job"))
        assert later["status"] == "completed" and "also_kept" not in later, "not kept again"
    put(work.output, "model.bin", b"another one")
    assert jobs.deliver(ProducedText("1", "x"), mark="new")["also_kept"]
    monkeypatch.undo()
    jobs.deliver(ProducedText("1", "removed after a later job"))
    assert os.listdir(work.output) == []


def test_a_removal_that_hangs_costs_no_reply(
    jobs: Jobs, work: WorkDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove, hangs = Path.unlink, threading.Event()

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if path.name == "model.bin":
            hangs.wait(10)
        remove(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    monkeypatch.setattr("handler.outputs.delivery.GRACE_SECONDS", 0.5)
    put(work.output, "a_00001_.png")
    put(work.output, "model.bin")
    options = DeliveryOptions(MARK, Deadline(0.1))
    claimed = jobs.claimed(options, [image()])
    answer = jobs.run(jobs.delivery.deliver([image()], claimed))
    assert answer["results"][0]["image"] and answer["also_kept"]
    then = time.monotonic()
    assert "also_kept" not in jobs.deliver(ProducedText("1", "x"), mark="later")
    assert time.monotonic() - then < 0.4, "it is not tried again meanwhile"
    hangs.set()


def test_an_unreported_file_is_kept_again_if_it_was_still_being_written(
    jobs: Jobs, work: WorkDir, layout: Layout
) -> None:
    with open(work.output / "model.bin", "wb", buffering=0) as writing:
        writing.write(b"half")
        assert jobs.deliver(ProducedText("1", "x"))["also_kept"]
        assert "also_kept" not in jobs.deliver(ProducedText("1", "x"), mark="same")
        writing.write(b" and half")
    jobs.deliver(ProducedText("1", "x"), mark="next")
    assert (layout.output / "model_next.bin").read_bytes() == b"half and half"
    assert os.listdir(work.output) == []


@pytest.mark.parametrize("seconds", [0.5, 99.0])
def test_a_result_that_is_still_being_written_is_waited_for(
    jobs: Jobs, work: WorkDir, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    """By a child process, as some nodes encode video; not beyond the limit. Another job's presence
    does not make it that one's file."""
    other = jobs.delivery.begin(DeliveryOptions("other", Deadline(60)))
    monkeypatch.setattr("handler.outputs.delivery._WRITING_SECONDS", 2.0)
    path = put(work.output, "a_00001_.png")
    script = f"echo written; for i in $(seq {seconds * 10:.0f}); do printf .; sleep 0.1; done >&3"
    with subprocess.Popen(["sh", "-c", f"exec 3>>{path}; {script}"], stdout=subprocess.PIPE) as it:
        assert it.stdout is not None and it.stdout.readline()
        time.sleep(0.02)
        answer = jobs.deliver(image())
        it.kill()
    assert other.claim.rest == []
    (entry,) = answer["results"]
    if seconds < 1:
        assert base64.b64decode(entry["image"]) == PNG + b"....." and "warnings" not in answer
    else:
        assert answer["warnings"][0] == "a_00001_.png was still being written"


def test_a_writer_that_forgot_to_close_is_not_waited_for(jobs: Jobs, work: WorkDir) -> None:
    path = put(work.output, "a_00001_.png")
    with open(path, "ab"):
        then = time.monotonic()
        assert jobs.deliver(image())["results"][0]["size"] == len(PNG)
        assert time.monotonic() - then < 4


def test_files_of_the_job_that_runs_meanwhile_are_left_alone(
    jobs: Jobs, work: WorkDir, layout: Layout
) -> None:
    put(work.output, "a_00001_.png")
    ended = time.time()
    time.sleep(0.05)
    put(work.output, "half-written.bin")
    assert "also_kept" not in jobs.deliver(image(), until=ended)
    assert sorted(os.listdir(work.output)) == ["a_00001_.png", "half-written.bin"]
    assert kept_files(layout) == [f"a_00001_{MARK}.png"]


def test_a_cached_result_is_good_only_as_long_as_it_is_the_last_jobs(
    jobs: Jobs, work: WorkDir
) -> None:
    files, (item,) = jobs.delivery.files, [image()]
    start = time.time()
    assert files.stale_nodes([item], start) == ["9"], "not there at all"
    path = put(work.output, "a_00001_.png")
    assert files.stale_nodes([item], start) == []
    jobs.deliver(item)
    time.sleep(0.1)
    later = time.time()
    assert files.stale_nodes([item], later) == [], "the last job's, answered from the cache"
    path.write_bytes(b"another job's")
    os.utime(path)
    time.sleep(0.1)
    assert files.stale_nodes([item], time.time()) == ["9"], "overwritten by another job"


@pytest.mark.parametrize("slow", ["the first", "the second"])
def test_jobs_delivered_side_by_side_take_nothing_from_each_other(
    jobs: Jobs, work: WorkDir, layout: Layout, slow: str
) -> None:
    """The second job ran while the first was delivered; either may finish first."""
    first, second = [image("a_00001_.png")], [image("b_00001_.png")]
    put(work.output, "a_00001_.png", PNG + b"first")
    put(work.output, "a.bin")
    one = jobs.claimed(DeliveryOptions("one", Deadline(60)), first)
    time.sleep(0.05)
    put(work.output, "b_00001_.png", PNG + b"second")
    put(work.output, "b.bin")
    parts = [(first, one), (second, jobs.claimed(DeliveryOptions("two", Deadline(60)), second))]
    for items, parcel in reversed(parts) if slow == "the first" else parts:
        answer = jobs.run(jobs.delivery.deliver(items, parcel))
        assert len(answer["results"]) == 1
        kept = f"{items[0].filename[0]}_{parcel.options.job_tag}.bin"
        assert answer["also_kept"] == [f"ComfyUI/output/{kept}"]
    assert kept_files(layout) == ["a_00001_one.png", "a_one.bin", "b_00001_two.png", "b_two.bin"]
    assert os.listdir(work.output) == ["b_00001_.png"], "for ComfyUI's cache, the last job's only"


def begun(jobs: Jobs, mark: str, *items: Produced, **options: Any) -> JobOutputs:
    """A job that ended a moment ago, with its files claimed for it."""
    wanted = DeliveryOptions(mark, Deadline(60), OutputOptions(**options), jobs.bucket)
    job = jobs.claimed(wanted, items)
    time.sleep(0.03)
    return job


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("way", ["base64", "volume"])
def test_what_the_next_job_overwrites_is_not_delivered_for_the_one_before(
    jobs: Jobs, work: WorkDir, layout: Layout, way: str, zipped: bool
) -> None:
    """A node that saves under a fixed name; `model.bin` it does not report."""
    same, own = image("same.png"), image("own.png")
    for name in ("same.png", "own.png", "model.bin"):
        put(work.output, name, PNG + b"of the first")
    first = begun(jobs, "first", same, own, delivery=way, zip=zipped)
    wanted = DeliveryOptions("second", Deadline(60), OutputOptions(delivery=way), jobs.bucket)
    second = jobs.delivery.begin(wanted)
    for name in ("same.png", "model.bin"):
        put(work.output, name, PNG + b"of the second one")
    answer = jobs.run(jobs.delivery.deliver([same, own], first))
    assert "also_kept" not in answer
    (entry,) = answer["results"]
    assert "same_first.png was overwritten" in answer["warnings"][0]
    content = base64.b64decode(entry.get("image") or entry.get("data") or "")
    assert b"of the second" not in content and (b"of the first" in content or way == "volume")
    jobs.delivery.files.claim(second.claim, time.time(), jobs.delivery.files.found([same]))
    answer = jobs.run(jobs.delivery.deliver([same], second))
    assert answer["also_kept"] == ["ComfyUI/output/model_second.bin"]
    kept = {name: (layout.output / name).read_bytes() for name in kept_files(layout)}
    of_second = [name for name, content in kept.items() if content.endswith(b"the second one")]
    assert of_second == ["model_second.bin", "same_second.png"]
    assert "same_first.png" not in kept


def test_a_result_that_is_overwritten_while_it_is_delivered_is_taken_back(
    jobs: Jobs, work: WorkDir, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(work.output, "same.png")
    first = begun(jobs, "first", image("same.png"))
    jobs.delivery.begin(DeliveryOptions("second", Deadline(60)))

    def overwritten(local: Path) -> Content:
        put(work.output, "same.png", PNG + b"of the second one")
        return encoded(local)

    monkeypatch.setattr("handler.outputs.delivery.encoded", overwritten)
    with pytest.raises(JobError) as caught:
        jobs.run(jobs.delivery.deliver([image("same.png")], first))
    assert caught.value.code == "job.result_missing" and "overwritten" in str(caught.value)
    assert kept_files(layout) == []
    assert (work.output / "same.png").read_bytes() == PNG + b"of the second one"


def test_many_files_take_each_as_long_as_few(tmp_path: Path) -> None:
    """In the event loop, which serves other jobs meanwhile: the calls that it makes are counted.
    Each file is reported by its own node; half of them only while the job runs."""

    def calls(count: int) -> int:
        root = tmp_path / str(count)
        (root / "ComfyUI").mkdir(parents=True)
        work = make_workdir(root)
        assert isinstance(work, WorkDir)
        jobs = Jobs(work, Layout(root, True, root / "ComfyUI"), MAX_REPLY_MB="0.15")
        items = [image(f"{count}-{n}.bin") for n in range(count)]
        for item in items:
            put(work.output, item.filename)

        async def deliver() -> dict[str, Any]:
            job = jobs.claimed(DeliveryOptions(MARK, Deadline(60)), items)
            for item in items:
                job.eager.on_output({"9": {"images": [{"filename": item.filename}]}})
            return await jobs.delivery.deliver(items[::2], job)

        profile = cProfile.Profile()
        answer = profile.runcall(jobs.run, deliver())
        assert len(answer["results"]) == len(answer["also_kept"]) == count / 2
        work.remove()
        stats: Any = pstats.Stats(profile)
        return int(stats.total_calls)

    assert calls(800) < 10 * calls(100)


def test_what_is_not_a_file_is_not_kept(jobs: Jobs, work: WorkDir) -> None:
    (work.output / "broken.png").symlink_to("/nowhere")
    os.mkfifo(work.output / "pipe")
    assert jobs.kept_from_failed() == []


# --- the bucket -------------------------------------------------------------------------------


def test_with_a_bucket_results_come_as_urls_and_are_kept_too(
    work: WorkDir, layout: Layout, server: S3Server
) -> None:
    jobs = Jobs(work, layout, BUCKET_PREFIX="out", **server.env)
    put(work.output / "sub", "a.png")
    put(work.output, "v.mp4", b"film")
    put(work.temp, "p.png")
    items = [image("a.png", "sub"), image("v.mp4"), image("p.png", type="temp")]
    answer = jobs.deliver(*items, ProducedText("1", "x"))
    *files, text = answer["results"]
    assert text["text"] == "x" and "warnings" not in answer
    for entry in files:
        assert entry["url"].startswith(f"{server.url}/{BUCKET}/out/")
        assert "image" not in entry and "data" not in entry
        assert ("path" in entry) is (entry["type"] == "output")
    stored = [f"out/p_{MARK}.png", f"out/sub/a_{MARK}.png", f"out/v_{MARK}.mp4"]
    assert set(stored) <= set(server.stored())
    head = server.client.head_object(Bucket=BUCKET, Key=stored[2])
    assert (head["ContentType"], head["ContentLength"]) == ("video/mp4", 4)


def test_base64_may_be_asked_for_although_there_is_a_bucket(
    work: WorkDir, layout: Layout, server: S3Server
) -> None:
    put(work.output, "b64.png")
    entry = Jobs(work, layout, **server.env).entry(image("b64.png"), delivery="base64")
    assert entry["image"] and "url" not in entry


def test_a_bucket_that_refuses_costs_no_result(work: WorkDir, layout: Layout) -> None:
    with bad_s3_server(Misbehaviour(403)) as url:
        jobs = Jobs(
            work,
            layout,
            BUCKET_ENDPOINT_URL=url,
            BUCKET_ACCESS_KEY_ID=KEY_ID,
            BUCKET_SECRET_ACCESS_KEY=SECRET,
            BUCKET_NAME=BUCKET,
        )
        put(work.output, "a_00001_.png")
        answer = jobs.deliver(image())
    assert answer["results"][0]["image"] and "403" in answer["warnings"][0]


# --- the size of the reply --------------------------------------------------------------------

LIMIT = {"MAX_REPLY_MB": "0.05"}


def test_the_largest_files_are_named_instead_of_sent(work: WorkDir, layout: Layout) -> None:
    put(work.output, "small.png")
    put(work.output, "large.mp4", b"x" * 60_000)
    answer = Jobs(work, layout, **LIMIT).deliver(image("small.png"), image("large.mp4"))
    small, large = answer["results"]
    assert "image" in small and "data" not in large
    (warning,) = answer["warnings"]
    assert f"(60000 bytes) is on the volume at {large['path']}" in warning
    assert "MAX_REPLY_MB=0.05" in warning and "BUCKET_ENDPOINT_URL" in warning
    assert len(json.dumps(answer)) < 50_000


def test_a_large_file_goes_to_the_bucket_where_there_is_one(
    work: WorkDir, layout: Layout, server: S3Server
) -> None:
    put(work.output, "huge.mp4", b"x" * 60_000)
    jobs = Jobs(work, layout, **LIMIT, **server.env)
    answer = jobs.deliver(image("huge.mp4"), delivery="base64")
    assert f"huge_{MARK}.mp4" in answer["results"][0]["url"]
    assert "was uploaded" in answer["warnings"][0]


def test_a_large_file_is_kept_even_when_nothing_shall_be(work: WorkDir, layout: Layout) -> None:
    put(work.output, "large.mp4", b"x" * 60_000)
    entry = Jobs(work, layout, **LIMIT, KEEP_OUTPUTS="false").entry(image("large.mp4"))
    assert (layout.root / entry["path"]).stat().st_size == 60_000


@pytest.mark.parametrize("ahead", [True, False], ids=["while it is kept", "at the end"])
def test_a_file_that_grows_while_it_is_delivered_makes_no_reply_too_large(
    work: WorkDir, layout: Layout, monkeypatch: pytest.MonkeyPatch, ahead: bool
) -> None:
    """The platform would take none of it; what is in the reply has the size that it states."""

    def grown(local: Path) -> Content:
        wait_until(lambda: bool(kept_files(layout)) or not ahead)
        with open(local, "ab") as file:
            file.write(b"x" * (60_000 if local.name == "grows.bin" else 300))
        return encoded(local)

    monkeypatch.setattr("handler.outputs.delivery.encoded", grown)
    names = ["a.bin", "grows.bin"] + ([] if ahead else ["large.bin"])
    for name in names:
        put(work.output, name, b"x" * (50_000 if name == "large.bin" else 100))
    answer = Jobs(work, layout, **LIMIT).deliver(*map(image, names))
    assert len(json.dumps(answer)) < 50_000
    small, grows, *_ = answer["results"]
    assert len(base64.b64decode(small["data"])) == small["size"] == 400
    assert "data" not in grows and grows["size"] == 60_100
    assert (layout.root / grows["path"]).stat().st_size == 60_100
    assert (layout.root / small["path"]).stat().st_size == 400
    assert len(kept_files(layout)) == len(names)
    assert "(60100 bytes) is on the volume" in "".join(answer["warnings"])


def test_a_large_text_becomes_a_file(work: WorkDir, layout: Layout) -> None:
    answer = Jobs(work, layout, **LIMIT).deliver(ProducedText("3", "ü" * 60_000))
    (entry,) = answer["results"]
    assert "text" not in entry and entry["mime_type"] == "text/plain"
    assert (layout.root / entry["path"]).read_text("utf-8") == "ü" * 60_000


def test_large_texts_of_one_node_are_different_files_in_the_bucket(
    work: WorkDir, layout: Layout, server: S3Server
) -> None:
    put(work.output, "text_3.txt", b"saved")
    texts = [ProducedText("3", letter * 60_000) for letter in "abc"]
    answer = Jobs(work, layout, **LIMIT, **server.env).deliver(image("text_3.txt"), *texts)
    keys = [f"text_3_{MARK}{number}.txt" for number in ("", "-2", "-3", "-4")]
    assert [entry["filename"] for entry in answer["results"]] == keys
    stored = [server.client.get_object(Bucket=BUCKET, Key=key)["Body"].read(5) for key in keys]
    assert stored == [b"saved", b"aaaaa", b"bbbbb", b"ccccc"]


def test_a_large_file_without_bucket_and_volume_is_an_error(work: WorkDir, tmp_path: Path) -> None:
    put(work.output, "large.mp4", b"x" * 60_000)
    with pytest.raises(JobError) as caught:
        Jobs(work, Layout(tmp_path / "nowhere", False, None), **LIMIT).deliver(image("large.mp4"))
    assert caught.value.code == "reply.too_large"
    assert "60000 bytes" in caught.value.message and "no volume" in caught.value.message


def test_too_many_small_results_are_an_error(work: WorkDir, layout: Layout) -> None:
    texts = [ProducedText("1", "x" * 900) for _ in range(60)]
    with pytest.raises(JobError) as caught:
        Jobs(work, layout, **LIMIT).deliver(*texts)
    assert caught.value.code == "reply.too_large"


@pytest.mark.parametrize("sizes", [[37_000], [37_300], [18_000] * 2, [3000] * 14, [100] * 80])
def test_a_reply_is_never_above_its_limit(work: WorkDir, layout: Layout, sizes: list[int]) -> None:
    items: list[Produced] = []
    for number, size in enumerate(sizes):
        put(work.output, f"f{number}.bin", b"x" * size)
        items.append(image(f"f{number}.bin"))
    answer = Jobs(work, layout, **LIMIT).deliver(*items)
    assert len(json.dumps(answer)) <= 50_000
    for entry, size in zip(answer["results"], sizes, strict=True):
        assert entry["size"] == size and ("data" in entry or "path" in entry)


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
    assert tagged(name, "M") == expected
