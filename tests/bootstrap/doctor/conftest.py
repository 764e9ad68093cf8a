"""What the tests of the doctor share."""

from __future__ import annotations

from pathlib import Path

import pytest

from bootstrap.core import concurrency
from tests.support.volumes import healthy
from tests.support.waiting import Clock


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return healthy(tmp_path / "volume")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """By which calls to a volume are given up."""
    clock = Clock()
    monkeypatch.setattr(concurrency, "time", clock)
    return clock
