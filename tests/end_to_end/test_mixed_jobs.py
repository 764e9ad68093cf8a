"""Jobs as people send them, many at once, on a busy machine: each is answered exactly once with
exactly its files. `python -m tests.prove.mixed_jobs` does the same with 5,000."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest

from demo.volume import DemoVolume
from tests.prove.mixed_jobs import DELIVERIES, run, serving
from tests.support.burden import burden
from tests.support.mixed_jobs import mixed_job
from tests.support.s3_server import s3_server

_JOBS = 36


@pytest.mark.timeout(400)
@pytest.mark.parametrize("prefetch", ["0", "1", "4"])
def test_mixed_jobs(demo: DemoVolume, tmp_path: Path, prefetch: str) -> None:
    with (
        s3_server() as server,
        serving(demo, tmp_path, JOB_PREFETCH=prefetch, **server.env) as scene,
        burden() if prefetch == "1" else nullcontext(),  # else as busy as the other tests make it
    ):
        first = int(prefetch) * 1000
        tally = run(scene, range(first, first + _JOBS), DELIVERIES)
        assert tally.faults == [] and tally.twice == 0 and tally.answered == _JOBS
        scene.worker.terminate()
        assert scene.worker.wait(30) == 0


def test_the_jobs_of_a_test_are_of_every_kind() -> None:
    kinds = {job.files[0].split("-")[1] for job in map(mixed_job, range(_JOBS))}
    assert kinds >= {"batch_", "saver0_", "film_", "anim_", "beside_", "late", "change"}


def test_mixed_jobs_in_the_form_of_worker_comfyui(demo: DemoVolume, tmp_path: Path) -> None:
    with serving(demo, tmp_path, RESPONSE_FORMAT="worker-comfyui") as scene:
        jobs = [mixed_job(number) for number in range(5000, 5012)]
        names = [scene.plane.submit({"workflow": job.workflow}) for job in jobs]
        for job, name in zip(jobs, names, strict=True):
            images = scene.plane.result(name, 120)["output"]["images"]
            found = sorted(entry["filename"] for entry in images)
            wanted = sorted(job.files)
            assert len(found) == len(wanted), found
            assert all(f.startswith(w) for f, w in zip(found, wanted, strict=True)), found
            assert len(scene.plane.select("done", name)) == 1
