"""Old results are removed from the volume: ours, and never anything else."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from handler.outputs.volume_store import FOLDER, VolumeRecord

DAY = 86400.0


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "output"
    folder.mkdir()
    return folder


def put(output: Path, name: str, size: int = 1000) -> Path:
    path = output / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    return path


def record(
    output: Path, worker: str = "w1", days: float | None = None, gb: float | None = None
) -> VolumeRecord:
    return VolumeRecord(output, worker, days, gb)


def aged(output: Path, days: float, worker: str = "w1") -> None:
    """As if all in a record had been kept days ago."""
    file = output / FOLDER / f"{worker}.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps({**x, "at": x["at"] - days * DAY}) + "\n" for x in lines))
    os.utime(file, (time.time() - days * DAY,) * 2)


def left(output: Path) -> list[str]:
    files = (path.relative_to(output) for path in output.rglob("*") if path.is_file())
    return sorted(str(path) for path in files if path.parts[0] != FOLDER)


def test_what_is_too_old_goes_and_what_people_put_there_stays(output: Path) -> None:
    record(output).add([put(output, "sub/old.png")])
    aged(output, 3)
    record(output, "w2").add([put(output, "new.png")])
    old = put(output, "theirs.png")
    os.utime(old, (0, 0))
    assert record(output, "w3", days=2).sweep() == (1, 1000)
    assert left(output) == ["new.png", "theirs.png"]


def test_the_oldest_go_first_when_it_is_too_much(output: Path) -> None:
    for age, name in ((3, "a"), (2, "b"), (1, "c")):
        record(output, name).add([put(output, name, 1_000_000)])
        aged(output, age, name)
    put(output, "theirs", 5_000_000)
    assert record(output, gb=0.002).sweep() == (1, 1_000_000)
    assert left(output) == ["b", "c", "theirs"]


def test_a_file_that_was_changed_or_replaced_is_no_longer_ours(output: Path) -> None:
    kept = [put(output, name) for name in ("edited", "replaced", "linked", "touched")]
    record(output).add(kept)
    aged(output, 9)
    kept[0].write_bytes(b"edited by a person")
    kept[1].unlink()
    put(output, "replaced")
    kept[2].unlink()
    kept[2].symlink_to(put(output, "elsewhere"))
    os.utime(kept[3])
    assert record(output, days=1).sweep() == (0, 0)
    assert len(left(output)) == 5


@pytest.mark.parametrize("path", ["../victim", "/victim", "sub/../../victim", "out/victim"])
def test_a_record_that_was_forged_reaches_nothing_outside(output: Path, path: str) -> None:
    victim = output.parent / "victim"
    victim.write_bytes(b"x" * 10)
    (output / "out").symlink_to(output.parent)
    entry = {
        "path": str(victim) if path.startswith("/") else path,
        "size": 10,
        "modified": victim.stat().st_mtime_ns,
        "at": 0,
    }
    (output / FOLDER).mkdir()
    (output / FOLDER / "x.jsonl").write_text(json.dumps(entry) + "\n")
    assert record(output, days=1).sweep() == (0, 0)
    assert victim.exists()


def test_lines_that_are_broken_are_left_out(output: Path) -> None:
    record(output).add([put(output, "a")])
    aged(output, 9)
    with open(output / FOLDER / "w1.jsonl", "a") as file:
        file.write('{"path": "cut o\n[]\n7\n{"path": 1}\n\xff\n{"path": "b", "size": "x"}')
    assert record(output, days=1).sweep() == (1, 1000)


_LINE = '{{"path": {}, "size": {}, "modified": 0, "at": {}}}'


@pytest.mark.parametrize(
    "line",
    [
        _LINE.format('"a\\u0000b"', 1, 0),
        _LINE.format('"\\ud800"', 1, 0),
        _LINE.format('"b"', "1e999", 0),
        _LINE.format('"b"', 1, "1e999"),
        _LINE.format('"b"', 1, "NaN"),
        _LINE.format('"b"', "9" * 5000, 0),
        "[" * 100_000,
        "\0",
    ],
    ids=["NUL", "surrogate", "infinite size", "infinite time", "NaN", "digits", "brackets", "0"],
)  # fmt: skip
def test_a_bad_line_is_skipped_and_reported_once(
    output: Path, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    record(output).add([put(output, "a"), put(output, "b")])
    aged(output, 9)
    with open(output / FOLDER / "w0.jsonl", "w") as file:
        file.write(line + "\n")
    sweeping = record(output, days=1)
    assert sweeping.sweep() == (2, 2000) and sweeping.sweep() == (0, 0)
    assert capsys.readouterr().err.count("1 line skipped") == 1


def test_a_record_that_cannot_be_read_is_skipped_and_reported_once(
    output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record(output).add([put(output, "a")])
    aged(output, 9)
    os.mkfifo(output / FOLDER / "fifo.jsonl")
    (output / FOLDER / "folder.jsonl").mkdir()
    (output / FOLDER / "link.jsonl").symlink_to("nowhere")
    sweeping = record(output, days=1)
    assert sweeping.sweep() == (1, 1000) and sweeping.sweep() == (0, 0)
    said = capsys.readouterr().err
    assert [said.count(f"{name}.jsonl: ") for name in ("fifo", "folder", "link")] == [1, 1, 1]


def test_a_record_of_nothing_goes_when_its_worker_is_long_gone(output: Path) -> None:
    for worker in ("gone", "alive"):
        record(output, worker).add([put(output, worker)])
        aged(output, 9, worker)
    os.utime(output / FOLDER / "alive.jsonl")
    assert record(output, "w3", days=1).sweep()[0] == 2
    assert os.listdir(output / FOLDER) == ["alive.jsonl"]


def test_without_a_limit_nothing_is_looked_at(output: Path) -> None:
    record(output).add([put(output, "a")])
    aged(output, 900)
    assert record(output).sweep_if_due() is None
    assert left(output) == ["a"]


def test_a_sweep_is_due_once_in_a_while(output: Path) -> None:
    sweeping = record(output, days=1)
    for name, remaining in (("a", []), ("b", ["b"])):
        record(output, name).add([put(output, name)])
        aged(output, 9, name)
        swept = sweeping.sweep_if_due()
        if swept is not None:
            swept.join()
        assert left(output) == remaining


def test_a_volume_that_is_gone_is_survived(tmp_path: Path) -> None:
    swept = record(tmp_path / "nowhere", days=1).sweep_if_due()
    assert swept is not None
    swept.join()
    assert not (tmp_path / "nowhere").exists()
