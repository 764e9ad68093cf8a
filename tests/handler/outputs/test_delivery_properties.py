"""Deliveries of many jobs at once, with random file counts, delays, failures and cancels: every job
is answered exactly once, in time, with exactly its files, and no file is lost."""

from __future__ import annotations

import asyncio
import base64
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bootstrap.comfyui import WorkDir, make_workdir
from bootstrap.config import Settings
from bootstrap.core.files import publish_copy
from bootstrap.volume import Layout
from handler.common.blocking import Calls
from handler.common.errors import Deadline
from handler.outputs import delivery as delivery_module
from handler.outputs.delivery import Delivery
from handler.outputs.job_outputs import DeliveryOptions
from handler.outputs.local_files import LocalFiles, encoded
from handler.outputs.produced import produced
from handler.request.fields import OutputOptions

# No example takes as long, unless something waits for itself.
_HUNG_SECONDS = 20.0
_DELAYS = st.sampled_from((0.0, 0.0, 0.01, 0.03))


@dataclass(frozen=True)
class File:
    """How one file fares: `reported_early` while the job runs, saved in so many seconds or not."""

    reported_early: bool
    look: float
    save: float
    fails: bool
    encode: float


@dataclass(frozen=True)
class Job:
    files: tuple[File, ...]
    destination: str
    cancelled_after: float | None
    runs: float


_files = st.builds(
    File, st.booleans(), _DELAYS, _DELAYS, st.sampled_from((False,) * 5 + (True,)), _DELAYS
)
_jobs = st.builds(
    Job,
    st.lists(_files, max_size=8).map(tuple),
    st.sampled_from(("base64", "base64", "volume")),
    st.sampled_from((None, None, None, 0.0, 0.02)),
    _DELAYS,
)


@contextmanager
def faring(files: dict[str, File]) -> Iterator[None]:
    """Looks, copies and encodings take the time, and fail, as each file is to fare."""
    find = LocalFiles.find

    def slow_find(self: LocalFiles, item: Any) -> Path | None:
        time.sleep(files[item.filename].look)
        return find(self, item)

    def slow_publish(source: Path, folder: Path, name: str) -> Path:
        time.sleep(files[source.name].save)
        if files[source.name].fails:
            raise OSError(5, "scripted")
        return publish_copy(source, folder, name)

    def slow_encoded(local: Path) -> Any:
        time.sleep(files[local.name].encode)
        return encoded(local)

    with (
        patch.object(LocalFiles, "find", slow_find),
        patch("handler.outputs.volume_store.publish_copy", slow_publish),
        patch("handler.outputs.job_outputs.encoded", slow_encoded),
        patch.object(delivery_module, "encoded", slow_encoded),
    ):
        yield


def outputs_of(names: list[str]) -> dict[str, Any]:
    items = [{"filename": name, "subfolder": "", "type": "output"} for name in names]
    return {"9": {"images": items}}


class Scene:
    """One worker's delivery, and what each job came to."""

    def __init__(self, folder: Path) -> None:
        work = make_workdir(folder / "work")
        assert isinstance(work, WorkDir)
        self.work = work
        self.root = folder / "volume"
        (self.root / "ComfyUI").mkdir(parents=True)
        self.layout = Layout(self.root, True, self.root / "ComfyUI")
        self.calls = Calls.on(self.root)
        self.delivery = Delivery(Settings.from_env({})[0], work, self.layout, self.calls)
        self.claims = asyncio.Lock()

    async def job(self, number: int, job: Job) -> dict[str, Any] | None:
        output = OutputOptions(delivery=job.destination)
        options = DeliveryOptions(f"mark{number}", Deadline(10), output)
        outputs = self.delivery.begin(options)
        names = [name_of(number, n) for n in range(len(job.files))]
        for name, file in zip(names, job.files, strict=True):
            (self.work.output / name).write_bytes(content_of(name))
            if file.reported_early:
                outputs.eager.on_output(outputs_of([name]))
                await asyncio.sleep(0)
        await asyncio.sleep(job.runs)
        items = produced(outputs_of(names))[0] if names else []
        paths = [self.work.output / name for name in names]
        self.delivery.files.claim(outputs.claim, 0.0, [path.resolve() for path in paths])
        delivering = asyncio.ensure_future(self.delivery.deliver(items, outputs))
        if job.cancelled_after is not None:
            await asyncio.sleep(job.cancelled_after)
            delivering.cancel()
        await asyncio.wait({delivering})
        return None if delivering.cancelled() else delivering.result()

    async def run(self, jobs: list[Job]) -> list[dict[str, Any] | None]:
        answers = await asyncio.gather(*(self.job(n, job) for n, job in enumerate(jobs)))
        await self.calls.background.finish(10)
        return list(answers)


def name_of(job: int, file: int) -> str:
    return f"j{job}f{file}_00001_.png"


def content_of(name: str) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + name.encode()


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(_jobs, min_size=1, max_size=6))
def test_every_job_is_answered_once_in_time_with_exactly_its_files(jobs: list[Job]) -> None:
    files = {name_of(j, f): file for j, job in enumerate(jobs) for f, file in enumerate(job.files)}
    answers: list[dict[str, Any] | None] = []
    # A cancelled job's copy may still be on its way.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, faring(files):
        scene = Scene(Path(folder))
        running = threading.Thread(
            target=lambda: answers.extend(asyncio.run(scene.run(jobs))), daemon=True
        )
        running.start()
        running.join(_HUNG_SECONDS)
        assert not running.is_alive(), "a delivery hangs"
        assert len(answers) == len(jobs)
        for number, (job, answer) in enumerate(zip(jobs, answers, strict=True)):
            if answer is None:
                assert job.cancelled_after is not None
            else:
                judge(scene, number, job, answer)
        kept = [path.name for path in scene.layout.output.glob("*.png")]
        assert len(kept) == len(set(kept))
        scene.work.remove()


def judge(scene: Scene, number: int, job: Job, answer: dict[str, Any]) -> None:
    entries = answer["results"]
    assert len(entries) == len(job.files)
    for n, (entry, file) in enumerate(zip(entries, job.files, strict=True)):
        name, content = name_of(number, n), content_of(name_of(number, n))
        assert entry["filename"].startswith(name[: -len(".png")])
        assert ("path" in entry) is not file.fails
        if "path" in entry:
            assert (scene.root / entry["path"]).read_bytes() == content
        if job.destination == "base64" or file.fails:
            assert base64.b64decode(entry["image"]) == content
    lost = sum(file.fails for file in job.files)
    assert len(answer.get("warnings", [])) == lost
