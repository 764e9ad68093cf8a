"""The workflow that is run before the first job: what WARMUP_WORKFLOW may name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from handler.common.errors import JobError
from handler.jobs import warmup


@pytest.mark.timeout(20)
@pytest.mark.parametrize("path", ["{root}/pipe", "/dev/zero", "{root}", "{root}/gone"])
def test_what_is_no_file_is_said_at_once(path: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(JobError, match=r"regular file|No such file") as failed:
        warmup._text_of(Path(path.format(root=tmp_path)))
    assert failed.value.code == "warmup.failed"
