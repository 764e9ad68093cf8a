"""Weights in the real kernel's page cache: read into it, within memory, stoppable."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from bootstrap.core import page_cache
from bootstrap.core.page_cache import BLOCK, residence_of
from bootstrap.models import prefetch
from bootstrap.models.prefetch import ReadAhead, Request, memory_for_weights
from tests.support.waiting import wait_until

T = TypeVar("T")
PLENTY = 1 << 40


class AnyPlace:
    """Equal to whatever mmap answers."""

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0


def missing_in(path: Path) -> list[int]:
    """Offsets of the blocks that are not cached."""
    with open(path, "rb") as file:
        return residence_of(file.fileno()).missing


def forget(path: Path) -> None:
    """Drop a file from the page cache."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def stays(path: Path, read: Callable[[], T]) -> T:
    """What `read` returns, once all it reads of the file has stayed in the page cache: the kernel
    may drop a page at any time, a reader that leaves one out does so each time."""
    for _ in range(20):
        result = read()
        if not missing_in(path):
            return result
    raise AssertionError(f"never all of {path.name} was in memory")


def read_ahead(*paths: Path) -> Request:
    request = ReadAhead(lambda: PLENTY).start(paths)
    assert request.wait(30)
    return request


def open_files(path: Path) -> int:
    """How often this process has it open."""
    names = (f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd"))
    return sum(os.path.realpath(name) == str(path) for name in names)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Three blocks and a bit, not in the page cache."""
    path = tmp_path / "m.safetensors"
    path.write_bytes(os.urandom(3 * BLOCK + 1000))
    forget(path)
    if not missing_in(path):
        pytest.skip("this file system keeps its files in memory")
    return path


def test_a_forgotten_file_misses_its_blocks_and_a_read_one_none(model: Path) -> None:
    assert missing_in(model) == [0, BLOCK, 2 * BLOCK, 3 * BLOCK]
    stays(model, model.read_bytes)


def test_asking_reads_nothing(model: Path) -> None:
    assert missing_in(model) == missing_in(model) != []


def test_a_file_is_asked_for_by_name_once(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time costs a round trip to a network volume."""
    asked: list[str] = []
    for name in ("open", "stat", "lstat", "access"):
        real = getattr(os, name)

        def counting(path: object, *rest: object, real: Any = real, **more: object) -> Any:
            if str(path) == str(model):
                asked.append(str(path))
            return real(path, *rest, **more)

        monkeypatch.setattr(os, name, counting)
    request = prefetch.Request([model], lambda: PLENTY, 0)
    request.start()
    assert request.wait(10)
    assert asked == [str(model)]


def test_an_empty_file_misses_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert missing_in(tmp_path / "empty") == []


def test_if_the_kernel_cannot_tell_everything_counts_as_missing(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.read_bytes()
    monkeypatch.setattr(page_cache, "_resident", lambda *_: None)
    assert len(missing_in(model)) == 4


@pytest.mark.parametrize("kernel", ["as it is", "that cannot populate", "that cannot map"])
def test_files_are_read_ahead(model: Path, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux before 5.14 does not know MADV_POPULATE_READ; some file systems cannot be mapped."""

    def read() -> Request:
        forget(model)
        with monkeypatch.context() as this_kernel:
            if kernel == "that cannot populate":
                this_kernel.setattr(page_cache, "_MADV_POPULATE_READ", 9999)
            if kernel == "that cannot map":
                this_kernel.setattr(page_cache, "_NO_PLACE", AnyPlace())
            return read_ahead(model)

    request = stays(model, read)
    assert (request.reading.files, request.reading.read) == (1, model.stat().st_size)


def test_what_is_cached_is_not_read_again(model: Path) -> None:
    def read() -> Request:
        model.read_bytes()
        return read_ahead(model)

    for _ in range(20):  # the kernel may drop a page in between
        reading = read().reading
        assert reading.read + reading.cached == model.stat().st_size
        if not reading.read:
            return
    pytest.fail("what was cached was read again each time")


def test_never_more_than_there_is_room_for(model: Path, tmp_path: Path) -> None:
    small = tmp_path / "small.safetensors"
    small.write_bytes(b"s" * BLOCK)
    forget(small)
    request = ReadAhead(lambda: 2 * BLOCK).start([model, small])
    assert request.wait(30)
    assert len(missing_in(model)) == 4
    assert request.reading.read == small.stat().st_size
    assert request.reading.left_out == model.stat().st_size
    assert "left out for lack of memory" in request.reading.in_words()


def held(path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Set when a block of this file is to be read; to be set so that it is."""
    begun, go_on = threading.Event(), threading.Event()
    really_read = page_cache.read_block

    def slow(descriptor: int, offset: int, size: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}") == str(path):
            begun.set()
            go_on.wait(30)
        really_read(descriptor, offset, size)

    monkeypatch.setattr(prefetch, "read_block", slow)
    return begun, go_on


def test_a_job_takes_the_place_of_what_was_being_read(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = held(model, monkeypatch)
    wanted = tmp_path / "wanted.safetensors"
    wanted.write_bytes(b"w" * BLOCK)
    forget(wanted)
    ahead = ReadAhead(lambda: PLENTY, threads=1)
    first = ahead.start([model])
    assert begun.wait(10)
    second = ahead.start([wanted])
    assert second.wait(30), "a job does not wait for what is still being read"
    go_on.set()
    assert first.wait(30)
    assert first.reading.read <= BLOCK
    assert second.reading.read == wanted.stat().st_size


def test_the_next_jobs_files_are_read_after_those_of_the_job_that_runs(
    model: Path, tmp_path: Path
) -> None:
    go_on = threading.Event()

    def found_late() -> Iterator[Path]:
        go_on.wait(30)
        yield model

    waiting = tmp_path / "waiting.safetensors"
    waiting.write_bytes(b"w" * BLOCK)
    forget(waiting)
    ahead = ReadAhead(lambda: PLENTY, threads=1)
    running = ahead.start(found_late(), in_turn=True)
    second = ahead.start([waiting], in_turn=True)
    assert not second.wait(0.2)
    go_on.set()
    assert second.wait(30) and running.reading.read > 0 and second.reading.read == BLOCK
    assert running.reading.files == second.reading.files == 1


@pytest.fixture
def interrupted(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[ReadAhead, list[Request]]]:
    """A boot's reading of `model`, cut by two jobs which have read nothing of it."""
    begun, go_on = held(model, monkeypatch)
    ahead = ReadAhead(lambda: PLENTY, threads=1)
    likely = ahead.start([model])
    assert begun.wait(10)
    jobs = [ahead.start([tmp_path / "none"], in_turn=True) for _ in range(2)]
    go_on.set()
    assert likely.wait(30) and all(job.wait(30) for job in jobs)
    assert likely.reading.read < model.stat().st_size
    forget(model)  # the kernel's read-ahead may have read the rest
    yield ahead, jobs
    ahead.stop()


def test_what_jobs_interrupted_is_read_on_after_the_last_of_them(
    model: Path, interrupted: tuple[ReadAhead, list[Request]]
) -> None:
    ahead, jobs = interrupted
    ahead.end(jobs[0])
    time.sleep(0.2)
    assert missing_in(model), "a job still runs"
    ahead.end(jobs[1])
    wait_until(lambda: not missing_in(model))


def test_once_stopped_nothing_is_read_on(
    model: Path, interrupted: tuple[ReadAhead, list[Request]]
) -> None:
    ahead, jobs = interrupted
    ahead.stop()
    for job in jobs:
        ahead.end(job)
    time.sleep(0.2)
    assert missing_in(model)


def test_what_was_read_to_its_end_is_not_read_again(model: Path, tmp_path: Path) -> None:
    ahead = ReadAhead(lambda: PLENTY)
    assert ahead.start([model]).wait(30)
    job = ahead.start([tmp_path / "none"], in_turn=True)
    assert job.wait(30)
    forget(model)
    ahead.end(job)
    time.sleep(0.2)
    assert missing_in(model)


def test_a_missing_file_is_reported_and_the_others_are_read(model: Path, tmp_path: Path) -> None:
    request = stays(model, lambda: read_ahead(tmp_path / "gone.safetensors", model))
    assert "gone.safetensors" in request.reading.in_words()


def test_a_search_that_fails_ends_the_request_and_closes_what_is_open(model: Path) -> None:
    def search() -> Iterator[Path]:
        yield model
        raise OSError(107, "Transport endpoint is not connected")

    request = ReadAhead(lambda: PLENTY).start(search())
    assert request.wait(30)
    assert "Transport endpoint" in request.reading.problem
    assert open_files(model) == 0


def test_a_worker_at_rest_holds_no_thread_and_no_file(model: Path) -> None:
    before = set(threading.enumerate())
    read_ahead(model)
    wait_until(lambda: set(threading.enumerate()) <= before)
    assert open_files(model) == 0


def test_room_is_half_of_what_is_left_beside_what_comfyui_needs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Facts:
        available = 10 << 30

    monkeypatch.setattr(prefetch, "gather_memory", Facts)
    assert memory_for_weights() == ((10 << 30) - (1536 << 20)) // 2
    Facts.available = 1 << 30
    assert memory_for_weights() == 0
