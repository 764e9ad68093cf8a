"""A volume that is gone is the reason for a job's error, whatever the error is."""

from __future__ import annotations

from pathlib import Path

from bootstrap.volume import Layout
from handler.common.errors import JobError, VolumeSilentError
from handler.jobs.workflow_job import volume_fault


def test_a_volume_that_is_gone_explains_an_error_once(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "gone", True, None)
    cause = JobError("input.missing", "a.png is missing.", field="x")
    fault = volume_fault(layout, cause)
    assert fault is not None and fault.code == "volume.gone" and "a.png is missing." in str(fault)
    assert fault.details == {"cause": "input.missing", "field": "x"}
    assert volume_fault(layout, VolumeSilentError("It does not answer.")) is None
    assert volume_fault(Layout(tmp_path, True, None), cause) is None
