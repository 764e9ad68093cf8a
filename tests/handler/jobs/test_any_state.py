"""Diagnostics are answered in any state, however they are requested."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import BootedWorker


@pytest.mark.parametrize("form", [dict, json.dumps], ids=["object", "text"])
def test_a_volume_that_does_not_respond_does_not_keep_diagnostics_from_being_answered(
    boot_worker: Callable[[Mapping[str, str]], BootedWorker],
    tmp_path: Path,
    form: Callable[[dict[str, Any]], object],
) -> None:
    env = {"VOLUME_PATH": str(tmp_path), "WORK_DIR": str(tmp_path / "work")}
    booted = boot_worker({**env, "PACKAGES": "report", "LINK_OTHER_MOUNT": "false"})
    booted.worker.calls.volume._asked = Future()  # a check that is never answered
    wanted = {"type": "diagnostics", "sections": ["environment"]}
    assert booted.ask(form(wanted))["status"] == "completed"
