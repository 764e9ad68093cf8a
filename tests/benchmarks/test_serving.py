"""Short versions of the hot workers' benchmarks, without targets: they must run and report
correctly."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks import boot_overhead, busy_gpu, job_overhead, thousand_jobs, two_comfyuis
from benchmarks.job_overhead import Side, Size, Took
from benchmarks.serving.contenders import WORKER_COMFYUI, Contender
from benchmarks.serving.hot import Hot, Span, serving
from benchmarks.serving.site import Site, furnished
from benchmarks.serving.workflows import work
from benchmarks.thousand_jobs import Sample
from demo.volume import DemoVolume

OURS = job_overhead.OURS


@pytest.fixture(scope="module")
def site(demo: DemoVolume) -> Iterator[Site]:
    with furnished(demo) as site:
        yield site
    assert not site.folder.exists()


@pytest.fixture(scope="module")
def sides(site: Site) -> Iterator[dict[str, tuple[Hot, Path]]]:
    """Our worker and the peer, and the files with their handlers' times."""
    with ExitStack() as stack, ThreadPoolExecutor(2) as pool:

        def start(contender: Contender) -> tuple[Hot, Path]:
            times = site.folder / f"times-{contender.key}"
            return stack.enter_context(serving(contender, site, times, warming=())), times

        both = [OURS, WORKER_COMFYUI]
        yield {c.name: found for c, found in zip(both, pool.map(start, both), strict=True)}


def rows(text: str) -> list[list[str]]:
    """The cells of all tables, each of which must be well-formed."""
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1, table
    lines = (line for line in text.splitlines() if line.startswith("| "))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_a_handlers_time_is_between_the_execution_and_the_post(
    sides: dict[str, tuple[Hot, Path]],
) -> None:
    size = Size(512, 2)
    each = [Side(name, hot, times) for name, (hot, times) in sides.items()]
    found = job_overhead.interleaved(each, [size], 1)
    assert list(found[size]) == [OURS.name, WORKER_COMFYUI.name]
    for (took,) in found[size].values():
        assert 0 < took.executed < took.handler < took.posted
    text = job_overhead.section("Here.", found)
    assert ["2 × 512²", OURS.name] in [row[:2] for row in rows(text)]
    for hot, _ in sides.values():
        pictures_differ_and_compress_like_generated_ones(hot.plane.select("done")[-1].body)


def pictures_differ_and_compress_like_generated_ones(body: dict[str, Any]) -> None:
    items = body["output"].get("results") or body["output"]["images"]
    found = [base64.b64decode(item.get("image") or item["data"]) for item in items]
    assert len(set(found)) == 2
    for content in found:
        assert Image.open(io.BytesIO(content)).size == (512, 512)
        assert 0.4 < len(content) / (512 * 512 * 3) < 0.65  # 1.5 of 3.1 MB at 1024²


def test_busy_is_measured_for_each_and_comfyui_alone(sides: dict[str, tuple[Hot, Path]]) -> None:
    load = busy_gpu.Load(jobs=2, seconds=0.3, post=0.5)
    hots = {name: hot for name, (hot, _) in sides.items()}
    found = {name: [busy] for name, busy in busy_gpu.one_round(hots, load, 100)}
    assert list(found) == [OURS.name, WORKER_COMFYUI.name, busy_gpu.ALONE]
    for (busy,) in found.values():
        assert 0 < busy.executing < busy.busy + 0.01, "executing is part of busy"
        assert busy.busy <= 1
    (alone,), (other,) = found[busy_gpu.ALONE], found[WORKER_COMFYUI.name]
    assert alone.busy > other.busy, "the peer's queue was empty while its result was posted"
    assert len(rows(busy_gpu.section("Here.", load, found))) == 4


def test_everything_is_sampled_between_jobs(sides: dict[str, tuple[Hot, Path]], site: Site) -> None:
    (hot, _), local = sides[OURS.name], site.work(OURS.key)
    samples = thousand_jobs.in_a_row(hot, local, site.kept, [200], 1)
    assert [s.jobs for s in samples] == [0, 1]
    for sample in samples:
        assert sample.worker_rss > sample.worker_own > 5
        assert sample.comfyui_own > 2 * sample.worker_own, "torch is in there"
        assert min(sample.worker_files, sample.comfyui_files, sample.local_files) > 3
    assert len(rows(thousand_jobs.section("Here.", samples))) == 1 + len(thousand_jobs.PARTS)
    with pytest.raises(RuntimeError, match="only 0 of 1 results are on the volume"):
        thousand_jobs.in_a_row(hot, local, site.peer_results / "none", [201], 1)


def test_waiting_counts_only_within_the_window() -> None:
    spans = [Span(10, 11), Span(12, 13), Span(13.5, 20)]
    waits = [Span(5, 10.0), Span(11, 11.5), Span(13, 13.25), Span(19.9, 30)]
    busy = busy_gpu.Busy.of(spans, waits)
    assert busy.busy == pytest.approx(1 - (0.5 + 0.25 + 0.1) / 10)
    assert busy.executing == pytest.approx(0.85)
    assert busy.per_minute == pytest.approx(18)


def test_the_ratio_is_of_medians_without_the_execution() -> None:
    ours = [Took(1.01, 1.1, 1.0), Took(2.03, 2.1, 2.0), Took(9.0, 9.1, 1.0)]
    other = [Took(1.06, 1.2, 1.0)] * 3
    took = {OURS.name: ours, WORKER_COMFYUI.name: other}
    assert job_overhead.ratio(took, job_overhead.IN_HANDLER) == 0.50
    text = job_overhead.section("Here.", {Size(64, 1): took})
    assert ["1 × 64²", "0.50", "≤ 0.50", "met", "0.50"] in rows(text)
    slower = {**took, OURS.name: [Took(1.01, 1.11, 1.0)]}
    assert "**missed**" in job_overhead.section("Here.", {Size(64, 1): slower})


def test_the_gain_of_a_second_comfyui_is_the_ratio_of_the_median_paces() -> None:
    one, two = two_comfyuis.ONE.name, two_comfyuis.TWO.name
    found: two_comfyuis.Paces = {}
    for load in two_comfyuis.LOADS:
        found |= {(load, one): [30.0, 20.0, 99.0], (load, two): [50.0, 57.0, 60.0]}
    assert two_comfyuis.gain(found, next(iter(two_comfyuis.LOADS))) == 1.9
    cells = rows(two_comfyuis.section("Here.", found, 24))[1]
    assert cells[-3:] == ["1.90", "≥ 1.8", "met"]
    slower = {key: [30.0] for key in found}
    assert "**missed**" in two_comfyuis.section("Here.", slower, 24)


def test_a_boots_overhead_is_the_median_difference_of_the_pairs() -> None:
    """Not the difference of the medians: a slow minute slows down both runs of a pair."""
    pairs = [(4.0, 4.3), (9.0, 9.9), (5.0, 5.4)]
    assert boot_overhead.overhead(pairs) == 0.4
    text = boot_overhead.section("Here.", pairs)
    assert ["the worker with it", "5.40", "4.30, 9.90, 5.40"] in rows(text)
    assert "adds **0.40 s**; target ≤ 0.5 s: met." in text
    assert "is ready **1.00 s sooner**; " in boot_overhead.section("Here.", [(4.0, 3.0)])
    assert "**missed**" in boot_overhead.section("Here.", [(4.0, 4.51)])


def test_a_job_can_use_a_core_instead_of_sleeping(
    sides: dict[str, tuple[Hot, Path]],
) -> None:
    hot, _ = sides[OURS.name]
    hot.run([work(300, 0.5, burn=True)])
    assert hot.spans()[300].seconds >= 0.5


LEVEL = Sample(0, 80.0, 30.0, 18, 8, 470.0, 450.0, 9, 5, 3, 887)


def test_a_leak_is_found_but_not_in_a_warm_up_or_an_outlier() -> None:
    flat = [replace(LEVEL, jobs=100 * n) for n in range(11)]
    flat[0] = replace(flat[0], worker_rss=20.0, worker_threads=1)
    flat[5] = replace(flat[5], worker_rss=200.0, worker_files=60)
    assert thousand_jobs.growing(flat) == []
    assert "Everything is flat." in thousand_jobs.section("Here.", flat)
    leaking = [replace(s, worker_files=18 + s.jobs // 200) for s in flat]
    assert thousand_jobs.growing(leaking) == ["worker_files"]
    assert "**Not flat: worker, descriptors.**" in thousand_jobs.section("Here.", leaking)


@pytest.mark.parametrize(
    ("main", "arguments", "said"),
    [
        (boot_overhead.main, ["--rounds", "0"], "--rounds: 1 or more"),
        (busy_gpu.main, ["--jobs", "0"], "--jobs and --rounds: 1 or more"),
        (job_overhead.main, ["--rounds", "0"], "--rounds 0: 1 or more"),
        (two_comfyuis.main, ["--rounds", "0"], "--jobs and --rounds: 1 or more"),
        (thousand_jobs.main, ["--jobs", "5"], "--every 100: from 1 to --jobs, 5"),
    ],
)
def test_the_command_lines_say_what_is_wrong(
    main: Callable[[list[str]], int],
    arguments: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2 and said in capsys.readouterr().err
