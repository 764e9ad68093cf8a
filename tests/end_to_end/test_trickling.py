"""Servers that trickle: no job is held past its deadline, and no worker runs out of threads."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from bootstrap.comfyui import WorkDir, make_workdir
from bootstrap.config import Settings
from bootstrap.config.bucket import bucket_of
from bootstrap.volume import Layout
from handler.common.blocking import Calls, gather_all
from handler.common.errors import Deadline, JobError
from handler.inputs import Fetcher
from handler.inputs.fetch import RemoteFile
from handler.outputs import Delivery, DeliveryOptions
from handler.outputs import delivery as delivery_module
from handler.outputs.produced import ProducedFile
from tests.conftest import BootedWorker
from tests.end_to_end.test_worker import plain
from tests.support.s3_server import BUCKET, KEY_ID, SECRET
from tests.support.trickling_server import PARTS, TricklingServer, trickling
from tests.support.waiting import wait_until

PNG = b"\x89PNG\r\n\x1a\n content"
LIMIT = 1.0
GRACE = 5.0  # enough to save a file on a busy machine
# Far more than the limit, far less than a server takes that sends a byte every 0.2 s.
SOON = 40.0


@pytest.mark.parametrize("part", PARTS)
def test_a_fetch_ends_with_its_time_wherever_the_server_trickles(part: str, tmp_path: Path) -> None:
    calls = Calls.on(tmp_path)
    settings = Settings(allow_private_urls=True, input_timeout=LIMIT)
    with trickling(part) as server:
        began = time.monotonic()
        fetcher = Fetcher(settings, Deadline(60), calls.network)
        with pytest.raises(JobError, match="was not there within 1 s") as caught:
            asyncio.run(fetcher.fetch([RemoteFile(server.url + "/x.png", tmp_path / "x.png")]))
        assert time.monotonic() - began < SOON and caught.value.code == "input.not_fetched"
        wait_until(lambda: calls.network.hanging == 0)
        wait_until(lambda: server.open == 0)
    assert os.listdir(tmp_path) == []


@pytest.fixture
def trickler(
    boot_worker: Callable[[Mapping[str, str]], BootedWorker], worker_env: dict[str, str]
) -> BootedWorker:
    env = {"ALLOW_PRIVATE_URLS": "true", "INPUT_TIMEOUT": "2", "JOB_PREFETCH": "1"}
    return boot_worker(worker_env | env)


def test_jobs_whose_inputs_trickle_are_answered_and_the_next_one_runs(
    trickler: BootedWorker,
) -> None:
    replies: list[dict[str, Any]] = []

    async def ask(given: dict[str, Any]) -> None:
        replies.append(await trickler.worker.handle({"id": "t", "input": given}))

    def from_there(server: TricklingServer, number: int) -> dict[str, Any]:
        nodes = plain()
        inputs = {"image": f"{server.url}/{number}.png"}
        nodes["1"] = {"class_type": "LoadImage", "inputs": inputs}
        return {"workflow": nodes, "max_wait": 20}

    async def all_at_once(server: TricklingServer) -> None:
        await gather_all([ask(from_there(server, n)) for n in range(20)])

    with trickling("status line") as server:
        began = time.monotonic()
        asyncio.run(all_at_once(server))
        assert time.monotonic() - began < 20 + SOON
    assert [reply["error_code"] for reply in replies] == ["input.not_fetched"] * 20
    assert trickler.ask({"workflow": plain(color=77)})["status"] == "completed"
    assert trickler.worker.fault() is None


@pytest.fixture
def work(tmp_path: Path) -> Iterator[WorkDir]:
    made = make_workdir(tmp_path / "work")
    assert isinstance(made, WorkDir)
    yield made
    made.remove()


@pytest.mark.parametrize("part", ["status line", "headers", "100 continue"])
def test_a_bucket_that_trickles_costs_no_result_and_no_thread(
    part: str, work: WorkDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery_module, "GRACE_SECONDS", GRACE)
    threads = set(threading.enumerate())
    root = tmp_path / "volume"
    (root / "ComfyUI").mkdir(parents=True)
    with trickling(part) as server:
        env = {
            "BUCKET_ENDPOINT_URL": server.url,
            "BUCKET_ACCESS_KEY_ID": KEY_ID,
            "BUCKET_SECRET_ACCESS_KEY": SECRET,
            "BUCKET_NAME": BUCKET,
        }
        settings, problems = Settings.from_env(env)
        assert not problems
        calls = Calls.on(root)
        delivery = Delivery(settings, work, Layout(root, True, root / "ComfyUI"), calls)

        async def job(number: int) -> dict[str, Any]:
            options = DeliveryOptions(f"mark{number}", Deadline(LIMIT), bucket=bucket_of(settings))
            outputs = delivery.begin(options)
            names = [f"j{number}-{n}.png" for n in range(3)]
            items = [ProducedFile("9", name, "", "output") for name in names]
            for name in names:
                (work.output / name).write_bytes(PNG + name.encode())
            return await delivery.deliver(items, outputs)

        async def jobs() -> list[dict[str, Any]]:
            return await gather_all([job(n) for n in range(6)])

        began = time.monotonic()
        answers = asyncio.run(jobs())
        assert time.monotonic() - began < SOON
        for answer in answers:
            assert len(answer["results"]) == 3 and len(answer["warnings"]) == 3
            assert "took more than 5 s" in answer["warnings"][0]
            assert all(entry["path"] and entry["image"] for entry in answer["results"])
        wait_until(lambda: calls.network.hanging == 0, 30)
    new = set(threading.enumerate()) - threads
    assert not any(thread.name.startswith("ThreadPoolExecutor") for thread in new)


def test_a_file_that_becomes_a_fifo_is_named_and_costs_no_other_result(
    worker: BootedWorker,
) -> None:
    nodes = plain(color=4711)
    oddly = {"name": "becomes-a-fifo.txt", "content": "x", "how": "fifo"}
    nodes["3"] = {"class_type": "TestSaveOddly", "inputs": oddly}
    nodes["4"] = {"class_type": "TestSleep", "inputs": {"image": ["1", 0], "seconds": 1.0}}
    nodes["2"]["inputs"]["images"] = ["4", 0]
    reply = worker.ask({"workflow": nodes, "max_wait": 30})
    assert reply["status"] == "completed", reply
    assert [entry["kind"] for entry in reply["results"]] == ["image"]
    assert "becomes-a-fifo.txt" in reply["warnings"][0]
