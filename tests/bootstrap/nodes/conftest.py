"""What the tests of node packs share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.pack_server import PackServer


@pytest.fixture
def server() -> Iterator[PackServer]:
    with PackServer() as running:
        yield running
