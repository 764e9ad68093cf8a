"""What ComfyUI runs, the worker runs; `python -m tests.prove.differential` tries 2,000."""

from __future__ import annotations

from tests.conftest import BootedWorker
from tests.prove.differential import differences, direct, generated


def test_the_worker_does_what_comfyui_does(worker: BootedWorker) -> None:
    assert differences(worker, range(60)) == []


def test_some_of_these_are_refused_and_some_run_in_part(worker: BootedWorker) -> None:
    outcomes = [direct(worker.serving.comfyui.url, generated(n)) for n in range(60)]
    assert outcomes.count(None) > 5 and sum(o is not None for o in outcomes) > 20
