"""What the tests of outputs share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bootstrap.comfyui import WorkDir, make_workdir
from bootstrap.volume import Layout
from tests.support.s3_server import S3Server, s3_server


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as running:
        yield running


@pytest.fixture
def work(tmp_path: Path) -> Iterator[WorkDir]:
    """A work folder that is reached by a link, as a `WORK_DIR` may be."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    made = make_workdir(tmp_path / "link")
    assert isinstance(made, WorkDir)
    yield made
    made.remove()


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    root = tmp_path / "volume"
    (root / "ComfyUI").mkdir(parents=True)
    return Layout(root, True, root / "ComfyUI")
