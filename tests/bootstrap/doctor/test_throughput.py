"""Throughput: limited reads of real files, and findings about the rates."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from bootstrap.core.findings import Severity
from bootstrap.doctor.checks.volume_storage import CODES, EXAMPLE, check_throughput
from bootstrap.doctor.facts import throughput
from bootstrap.doctor.facts.inventory import gather_models
from bootstrap.doctor.facts.throughput import Read, Throughput, measure_throughput
from tests.support.model_folders import healthy, write

MB = 1024**2
GOOD = Throughput(Read(1, 270 * MB, 1.0), Read(8, 720 * MB, 1.0), 0.0016, 0.0019)


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> int:
    """Small blocks, so that small files will do."""
    monkeypatch.setattr(throughput, "BLOCK", 4096)
    monkeypatch.setattr(throughput, "LEAST_BYTES", 8192)
    return 4096


def codes(measured: Throughput | None) -> list[str]:
    return [f.code for f in check_throughput(measured)]


def test_reads_each_block_once_within_bounds(
    tmp_path: Path, blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = write(tmp_path / "a", bytes(100 * blocks))
    second = write(tmp_path / "b", bytes(300 * blocks))
    seen: list[tuple[str, int]] = []
    real = os.preadv

    def preadv(file: int, buffers: list[bytearray], offset: int) -> int:
        seen.append((os.readlink(f"/proc/self/fd/{file}"), offset))
        return real(file, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    monkeypatch.setattr(throughput, "MOST_BYTES", 160 * blocks)
    found = measure_throughput([str(first), str(second)], [str(first)])
    assert found.one is not None and found.many is not None
    assert (found.one.streams, found.one.size) == (1, 160 * blocks)
    assert (found.many.streams, found.many.size) == (8, 160 * blocks)
    assert len(seen) == len(set(seen)) == 320
    assert not found.problem and found.stat_seconds and found.open_seconds


def test_one_stream_reads_in_order(tmp_path: Path, blocks: int) -> None:
    found = measure_throughput([str(write(tmp_path / "a", bytes(9 * blocks)))], [])
    assert found.one is not None and found.one.size == 4 * blocks
    assert found.many is not None and found.many.streams == 4
    assert found.stat_seconds is None


def test_seconds_bound_it(tmp_path: Path, blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block takes one of 2.5."""
    read: list[int] = []

    def preadv(file: int, buffers: list[bytearray], offset: int) -> int:
        read.append(offset)
        return blocks

    monkeypatch.setattr(os, "preadv", preadv)
    monkeypatch.setattr(throughput, "time", SimpleNamespace(monotonic=lambda: float(len(read))))
    path = str(write(tmp_path / "a", bytes(1000 * blocks)))
    monkeypatch.setattr(throughput, "MOST_SECONDS", 2.5)
    found = measure_throughput([path], [])
    assert found.one == Read(1, 3 * blocks, 3.0)


def test_a_volume_that_never_answers(
    tmp_path: Path, blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()

    def preadv(file: int, buffers: list[bytearray], offset: int) -> int:
        released.wait(30)
        return blocks

    monkeypatch.setattr(os, "preadv", preadv)
    monkeypatch.setattr(throughput, "EXTRA_SECONDS", 0.1)
    monkeypatch.setattr(throughput, "MOST_SECONDS", 0.1)
    found = measure_throughput([str(write(tmp_path / "a", bytes(100 * blocks)))], [])
    assert found.one is None and found.many is None
    released.set()


def test_nothing_to_read(tmp_path: Path) -> None:
    found = measure_throughput([str(tmp_path / "gone")], [str(tmp_path / "gone")])
    assert found.problem == os.strerror(2)
    (finding,) = check_throughput(found)
    assert finding.code == "throughput.not_measured" and os.strerror(2) in finding.message
    assert codes(measure_throughput([], [])) == ["throughput.not_measured"]


def test_what_is_chosen_from_an_inventory(tmp_path: Path) -> None:
    inventory = gather_models([healthy(tmp_path / "models")])
    large = throughput.large_files(inventory)
    assert Path(large[0]).name == "sd_xl_base.safetensors" and len(large) == 6
    assert Path(throughput.small_files(inventory)[0]).name == "put_checkpoints_here"


def test_words_for_a_usual_volume() -> None:
    reading, small = check_throughput(GOOD)
    assert "A 6.5 GiB checkpoint: about 25 s read by one stream, 9 s by eight." in reading.message
    assert "283 MB/s by one stream, 755 MB/s by eight streams" in reading.message
    assert "1.6 ms to ask for one, 1.9 ms to open and read it" in small.message
    assert {reading.severity, small.severity} == {Severity.OK}
    assert EXAMPLE / GOOD.one.rate == pytest.approx(24.65, abs=0.01) if GOOD.one else False


def test_nothing_measured_on_purpose_says_nothing() -> None:
    assert codes(None) == []


def test_slow_volumes() -> None:
    slow = Throughput(Read(1, 20 * MB, 1.0), Read(8, 60 * MB, 1.0), 0.02, 0.03)
    findings = check_throughput(slow)
    assert [f.code for f in findings] == ["throughput.slow", "throughput.small_files_slow"]
    assert all(f.severity is Severity.WARNING and f.fix for f in findings)
    assert "about 333 s read by one stream" in findings[0].message


def test_one_slow_stream_is_not_a_slow_volume() -> None:
    assert codes(Throughput(Read(1, 20 * MB, 1.0), Read(8, 400 * MB, 1.0)))[0] == "throughput.read"


def test_memory_is_not_taken_for_the_volume() -> None:
    warm = Throughput(Read(1, 9000 * MB, 1.0), None, cold=False)
    assert "may have come from memory" in check_throughput(warm)[0].message


def test_every_code_is_found_above() -> None:
    slow = Throughput(Read(1, MB, 1.0), None, 1.0, 1.0)
    assert {*codes(GOOD), *codes(slow), *codes(Throughput())} == {
        code for code in CODES if code.startswith("throughput.")
    }
