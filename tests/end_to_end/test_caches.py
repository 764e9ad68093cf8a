"""A repeated job with each of ComfyUI's caches returns its results, unnoticed by its nodes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.volume import DemoVolume
from tests.conftest import BootedWorker, environment, ready_worker
from tests.end_to_end.test_worker import plain

CACHES = ("--cache-classic", "--cache-lru 100", "--cache-none", "--cache-ram 0.1")
COLOURS = itertools.count(1)


@pytest.fixture(scope="module", params=CACHES, ids=lambda flags: flags.split()[0].strip("-"))
def cache(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def worker(
    demo: DemoVolume, shared_volume: Path, tmp_path_factory: pytest.TempPathFactory, cache: str
) -> Iterator[BootedWorker]:
    env = environment(demo, shared_volume, tmp_path_factory.mktemp("work"))
    with ready_worker({**env, "COMFYUI_ARGS": f"--cpu {cache}"}) as booted:
        yield booted


def counted(word: str, **savers: dict[str, Any]) -> dict[str, Any]:
    """EmptyImage → a node that counts → `savers`, whose input `image` is its picture."""
    nodes = plain(color=next(COLOURS))
    del nodes["2"]
    nodes["9"] = {"class_type": "TestCounted", "inputs": {"image": ["1", 0], "word": word}}
    return {**nodes, **savers}


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def results(worker: BootedWorker, workflow: dict[str, Any]) -> list[dict[str, Any]]:
    reply = worker.ask({"workflow": workflow})
    assert reply["status"] == "completed", reply
    assert reply.get("also_kept", []) == [], reply
    return list(reply["results"])


def runs_of(worker: BootedWorker, word: str) -> int:
    (reported,) = results(worker, {"1": node("TestCounts", word=word)})
    return int(reported["text"])


def contents(volume: Path, found: list[dict[str, Any]]) -> list[bytes]:
    return [(volume / each["path"]).read_bytes() for each in found]


def test_a_job_again_after_another_has_all_its_results(
    worker: BootedWorker, shared_volume: Path
) -> None:
    picture = {"images": ["9", 0], "filename_prefix": "again"}
    first = counted("again", a=node("SaveImage", **picture), b=node("SaveImage", **picture))
    before = results(worker, first)
    results(worker, plain(color=next(COLOURS)))
    after = results(worker, first)
    assert sorted(each["node_id"] for each in after) == ["a", "b"]
    assert contents(shared_volume, after) == contents(shared_volume, before)
    assert not {each["path"] for each in after} & {each["path"] for each in before}


def test_only_the_node_that_saves_runs_again(worker: BootedWorker, cache: str) -> None:
    """Its files are gone; what it is linked to, and what is linked to it, comes from the cache."""
    workflow = counted(
        "before",
        s=node("TestSaveAnything", image=["9", 0]),
        t=node("TestCounted", image=["s", 0], word="behind"),
        u=node("SaveImage", images=["t", 0], filename_prefix="behind"),
    )
    for _ in range(3):
        assert len(results(worker, workflow)) == 2
        for file in worker.serving.work.output.glob("*"):
            file.unlink()
    cached = cache != "--cache-none"
    assert (runs_of(worker, "before") == 1) is cached
    assert (runs_of(worker, "behind") == 1) is cached


def test_a_node_that_takes_any_input_is_not_shown_why_it_runs_again(
    worker: BootedWorker, shared_volume: Path
) -> None:
    workflow = counted("any", s=node("TestSaveAnything", image=["9", 0], other=7))
    reported = []
    for _ in range(3):
        reported += contents(shared_volume, results(worker, workflow))
        for file in worker.serving.work.output.glob("*"):
            file.unlink()
        results(worker, plain(color=next(COLOURS)))
    shown = [json.loads(each) for each in reported]
    assert shown == [{"inputs": ["other"], "prompt": workflow, "extra": None}] * 3


@pytest.mark.parametrize("deep", [0, 2])
@pytest.mark.parametrize("between", [False, True], ids=["at once", "after another"])
def test_what_a_node_expands_into_is_there_each_time(
    worker: BootedWorker, cache: str, shared_volume: Path, deep: int, between: bool
) -> None:
    word = f"expanded {deep} {between}"
    workflow = counted(word, x=node("TestExpand", image=["9", 0], word=word, deep=deep))
    first = results(worker, workflow)
    assert [each["node_id"].split(".")[0] for each in first] == ["x"]
    for _ in range(2):
        if between:
            results(worker, plain(color=next(COLOURS)))
        again = results(worker, workflow)
        assert [each["node_id"] for each in again] == [each["node_id"] for each in first]
        assert contents(shared_volume, again) == contents(shared_volume, first)
    keeps = not between and cache == "--cache-classic"
    if keeps or cache in ("--cache-lru 100", "--cache-ram 0.1"):
        assert runs_of(worker, word) == 2 + deep, "what it expands into stays cached"


def test_an_expanding_node_beside_another_saver_loses_nothing(worker: BootedWorker) -> None:
    workflow = counted(
        "beside",
        s=node("SaveImage", images=["9", 0], filename_prefix="beside"),
        x=node("TestExpand", image=["9", 0]),
    )
    for _ in range(3):
        found = results(worker, workflow)
        assert {each["node_id"].split(".")[0] for each in found} == {"s", "x"}
