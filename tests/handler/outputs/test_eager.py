"""What nodes save is kept and encoded while the job runs: once, as it is at the end, or not."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bootstrap.comfyui import WorkDir, make_workdir
from bootstrap.config import Settings
from bootstrap.volume import Layout
from handler.common.blocking import Calls
from handler.common.errors import Deadline
from handler.outputs.delivery import Delivery
from handler.outputs.job_outputs import DeliveryOptions
from handler.outputs.local_files import stamp_of
from handler.outputs.produced import produced
from handler.outputs.volume_store import VolumeStore
from handler.request.fields import OutputOptions
from tests.conftest import BootedWorker
from tests.end_to_end.test_faults import through
from tests.support.loop_thread import LoopThread
from tests.support.waiting import wait_until

MARK = "0123456789ab"
KEPT = f"a_00001_{MARK}.png"
PNG = b"\x89PNG\r\n\x1a\n content"
REPORTED = {"9": {"images": [{"filename": "a_00001_.png", "subfolder": "", "type": "output"}]}}


class Job:
    """One job of a worker with given settings, from its first saved file on."""

    def __init__(self, folder: Path, env: dict[str, str], **options: Any) -> None:
        work = make_workdir(folder / "work")
        assert isinstance(work, WorkDir)
        self.work = work
        root = folder / "volume"
        (root / "ComfyUI").mkdir(parents=True)
        self.layout = Layout(root, True, root / "ComfyUI")
        settings, problems = Settings.from_env(env)
        assert not problems
        self.loop = LoopThread()
        self.calls = Calls.on(root)
        self.delivery = Delivery(settings, work, self.layout, self.calls)
        self.options = DeliveryOptions(MARK, Deadline(60), OutputOptions(**options))
        self.begin()

    def begin(self) -> None:
        self.outputs = self.loop.call(lambda: self.delivery.begin(self.options))

    def close(self) -> None:
        self.finish()
        self.loop.close()
        self.work.remove()

    def finish(self) -> None:
        """All that replies do not wait for."""
        self.loop.run(self.calls.background.finish(10))

    def saved(self, outputs: dict[str, Any] = {}) -> None:  # noqa: B006  # read only
        self.loop.call(lambda: self.outputs.eager.on_output(outputs or REPORTED))

    def encoded(self, path: Path) -> str | None:
        return self.loop.run(self.outputs.eager.encoded(path, stamp_of(path), 10))

    def kept_at(self, path: Path) -> str | None:
        return self.loop.run(self.outputs.eager.kept_at(path, stamp_of(path), 10))

    def save(self, content: bytes = PNG, folder: Path | None = None) -> Path:
        path = (folder or self.work.output) / "a_00001_.png"
        path.write_bytes(content)
        return path

    def claim(self, outputs: dict[str, Any]) -> None:
        files = self.delivery.files
        files.claim(self.outputs.claim, 1e12, files.found(produced(outputs)[0]))

    def deliver(self, outputs: dict[str, Any] = REPORTED) -> dict[str, Any]:
        self.claim(outputs)
        return self.loop.run(self.delivery.deliver(produced(outputs)[0], self.outputs))

    def kept(self) -> list[str]:
        found = self.layout.output.rglob("*.png")
        return sorted(path.name for path in found if not path.name.startswith("."))


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Callable[..., Job]]:
    jobs: list[Job] = []

    def make(env: dict[str, str] | None = None, **options: Any) -> Job:
        jobs.append(Job(tmp_path, env or {}, **options))
        return jobs[-1]

    yield make
    for job in jobs:
        job.close()


def begun(job: Job) -> None:
    """All that can be done ahead is begun."""
    job.saved(REPORTED)
    job.encoded(job.work.output / "a_00001_.png")


def test_a_saved_file_is_on_the_volume_before_the_job_ends_and_kept_once(
    made: Callable[..., Job],
) -> None:
    job = made()
    job.save()
    job.saved(REPORTED)
    wait_until(lambda: job.kept() == [KEPT])
    before = (job.layout.output / KEPT).stat()
    (entry,) = job.deliver()["results"]
    assert entry["path"] == f"ComfyUI/output/{KEPT}" and entry["filename"] == KEPT
    assert base64.b64decode(entry["image"]) == PNG
    assert job.kept() == [KEPT]
    assert (job.layout.output / KEPT).stat().st_mtime_ns == before.st_mtime_ns, "not written again"


def test_a_file_that_was_changed_since_is_returned_in_its_new_version(
    made: Callable[..., Job],
) -> None:
    job = made()
    job.save()
    job.saved(REPORTED)
    wait_until(lambda: job.kept() == [KEPT])
    job.save(PNG + b", better")
    (entry,) = job.deliver()["results"]
    assert base64.b64decode(entry["image"]) == PNG + b", better"
    wait_until(lambda: job.kept() == [entry["filename"]])
    assert (job.layout.root / entry["path"]).read_bytes() == PNG + b", better"


def test_a_failed_job_leaves_it_once(made: Callable[..., Job]) -> None:
    job = made()
    job.save()
    begun(job)
    job.claim({})
    paths, lost = job.loop.run(job.delivery.keep_rest(job.outputs))
    assert (paths, lost) == ([f"ComfyUI/output/{KEPT}"], [])
    assert job.kept() == [KEPT] and list(job.work.output.iterdir()) == []


def test_a_file_that_its_node_removed_again_is_taken_back(made: Callable[..., Job]) -> None:
    job = made()
    path = job.save()
    job.saved(REPORTED)
    wait_until(lambda: job.kept() == [KEPT])
    path.unlink()
    job.deliver({"1": {"text": ["done"]}})
    wait_until(lambda: job.kept() == [])


def test_what_could_not_be_kept_ahead_is_tried_at_the_end(
    made: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = made()
    job.save()
    job.layout.output.write_text("in the way")
    begun(job)
    assert "could not be kept" in job.deliver()["warnings"][0]
    job.layout.output.unlink()
    job.begin()
    assert job.deliver()["results"][0]["path"] == f"ComfyUI/output/{KEPT}"


@pytest.mark.parametrize(
    ("env", "options"),
    [({"KEEP_OUTPUTS": "false"}, {}), ({}, {"format": "webp"}), ({}, {"metadata": False})],
)
def test_what_is_not_wanted_as_it_was_saved_is_not_kept_ahead(
    made: Callable[..., Job], env: dict[str, str], options: dict[str, Any]
) -> None:
    job = made(env, **options)
    job.save()
    begun(job)
    job.kept_at(job.work.output / "a_00001_.png")  # all that was begun has ended
    assert job.kept() == []


def test_previews_and_files_elsewhere_are_not_results(made: Callable[..., Job]) -> None:
    job = made()
    job.work.temp.mkdir(exist_ok=True)
    job.save(folder=job.work.temp)
    (job.work.root / "secret.png").write_bytes(PNG)
    shown = {"filename": "a_00001_.png", "subfolder": "", "type": "temp"}
    outside = {"filename": "secret.png", "subfolder": "..", "type": "output"}
    job.saved({"9": {"images": [shown]}, "8": {"images": [outside]}})
    job.kept_at(job.work.output / "a_00001_.png")
    assert job.kept() == [] and job.outputs.eager._pending == {}


def test_no_more_is_encoded_than_the_reply_holds(made: Callable[..., Job]) -> None:
    job = made({"MAX_REPLY_MB": "0.2"})
    large = PNG + bytes(100_000)
    path = job.save(large)
    begun(job)
    assert job.encoded(path) is None
    assert job.kept_at(path) == f"ComfyUI/output/{KEPT}"


def test_reports_of_odd_shapes_do_no_harm(made: Callable[..., Job]) -> None:
    job = made()
    job.save()
    for odd in ({"9": None}, {"9": {"images": 7}}, {"9": {"images": [{"filename": "\0"}]}}, {}):
        job.loop.call(lambda odd=odd: job.outputs.eager.on_output(odd))  # type: ignore[misc]
    (entry,) = job.deliver()["results"]
    assert base64.b64decode(entry["image"]) == PNG


def test_contents_are_not_printed(made: Callable[..., Job]) -> None:
    """The SDK formats each whole result into two log lines, which must not contain this."""
    job = made()
    job.save()
    reply = job.deliver()
    content = base64.b64encode(PNG).decode()
    assert json.loads(json.dumps(reply))["results"][0]["image"] == content
    assert content not in f"{reply}" and f"<{len(content)} characters>" in f"{reply}"


def test_a_kept_file_that_was_taken_back_spoils_no_record(tmp_path: Path) -> None:
    root = tmp_path / "volume"
    (root / "ComfyUI").mkdir(parents=True)
    layout = Layout(root, True, root / "ComfyUI")
    store = VolumeStore(Settings.from_env({})[0], layout, Calls.on(root).volume)
    local = tmp_path / "a.png"
    local.write_bytes(PNG)

    async def save() -> str:
        gone, removed, stays = [await store.save(local, Path(), f"{n}.png", 10) for n in "abc"]
        await store.delete(gone)
        (root / removed).unlink()
        await store.flush_record()
        return stays

    stays = asyncio.run(save())
    (record,) = (root / "ComfyUI" / "output").rglob("*.jsonl")
    (line,) = record.read_text().splitlines()
    assert f'"{Path(stays).name}"' in line


def test_the_first_result_is_on_the_volume_while_comfyui_goes_on(worker: BootedWorker) -> None:
    workflow = through("TestSleep", seconds=4.0)
    early = {"images": ["1", 0], "filename_prefix": "early"}
    workflow["0"] = {"class_type": "SaveImage", "inputs": early}
    layout = worker.serving.layout
    assert layout is not None
    seen: list[str] = []

    def look() -> None:
        wait_until(lambda: any(layout.output.rglob("early_*.png")), 60)
        seen.extend(path.name for path in layout.output.rglob("*.png"))

    looking = threading.Thread(target=look)
    looking.start()
    reply = worker.ask({"workflow": workflow, "max_wait": 60})
    looking.join()
    early_one, late_one = sorted(Path(entry["path"]).name for entry in reply["results"])
    assert early_one in seen and late_one not in seen
    assert (layout.output / early_one).is_file() and (layout.output / late_one).is_file()
    assert len(list(layout.output.rglob("early_*.png"))) == 1
