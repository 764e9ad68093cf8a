"""What the tests of models share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.vicious_server import ViciousServer


@pytest.fixture
def server() -> Iterator[ViciousServer]:
    with ViciousServer() as running:
        yield running
