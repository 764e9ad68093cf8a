"""A few hundred malformed requests to a real worker; ten thousand are in tests/prove."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from tests.conftest import BootedWorker
from tests.end_to_end.test_worker import from_file, plain
from tests.support.malformed import (
    NAMES,
    TOKEN,
    URLS,
    check_answer,
    check_whole,
    elsewhere,
    requests,
)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(given=requests)
def test_every_malformed_request_gets_a_clear_answer(worker: BootedWorker, given: object) -> None:
    check_answer(worker, given)


def test_the_worker_is_well_afterwards(worker: BootedWorker) -> None:
    check_whole(worker)


@pytest.mark.parametrize("url", URLS)
def test_no_private_url_is_fetched_from_a_loader_or_a_file(
    worker: BootedWorker, url: str, capfd: pytest.CaptureFixture[str]
) -> None:
    for sent in (
        {"workflow": from_file(url)},
        {"workflow": from_file("a.png"), "files": [{"name": "a.png", "url": url}]},
        {"workflow": from_file("a.png"), "images": [{"name": "a.png", "image": url}]},
    ):
        assert check_answer(worker, sent) in ("input.url_refused", "input.not_fetched")
    assert TOKEN not in "".join(capfd.readouterr())


@pytest.mark.parametrize("name", NAMES)
def test_no_name_leads_anywhere_else(worker: BootedWorker, shared_volume: Path, name: str) -> None:
    before = elsewhere(worker, shared_volume)
    for field in ("name", "subfolder"):
        file = {"name": "a.bin", "data": "AAEC", field: name}
        check_answer(worker, {"workflow": plain(), "files": [file]})
    check_answer(worker, {"workflow": from_file(name)})
    check_answer(worker, {"workflow_name": name})
    check_answer(worker, {"workflow": plain(), "overrides": {"2": {"filename_prefix": name}}})
    assert elsewhere(worker, shared_volume) == before
