"""The memory of a large delivery, in the short version of its benchmark."""

from __future__ import annotations

from pathlib import Path

from benchmarks import s3_memory


def test_a_large_video_is_not_held_in_memory(tmp_path: Path) -> None:
    assert s3_memory.main(["--megabytes", "120", "--folder", str(tmp_path)]) == 0
