"""What the tests of the doctor share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.volumes import healthy


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return healthy(tmp_path / "volume")
