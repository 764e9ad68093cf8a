"""A volume whose mount answers nothing any more, and is back later."""

from __future__ import annotations

import time

from tests.prove.outcome import Outcome, completed, refused
from tests.prove.patient import Patient
from tests.prove.places import CannotInject, Mount
from tests.test_faults import through
from tests.test_worker import plain

_RUNS_ON = 1.0
_MAX_WAIT = 5.0


def silent_in_a_job(patient: Patient) -> Outcome:
    """What was staged runs on, and the picture comes in the reply; so does the next one."""
    job = patient.begun(_RUNS_ON)
    with _mount_of(patient).silent():
        since = time.monotonic() + _RUNS_ON
        first = completed(patient.answered(job, since), "does not answer")
        second = completed(patient.answered(patient.submit(plain())), "does not answer")
    return Outcome(first.right and second.right, first.seconds, f"{first.said} {second.said}")


def silent_and_needed(patient: Patient) -> Outcome:
    """The job names a picture that lies there."""
    nodes = plain()
    nodes["5"] = {"class_type": "LoadImage", "inputs": {"image": "on-the-volume.png"}}
    nodes["6"] = {"class_type": "PreviewImage", "inputs": {"images": ["5", 0]}}
    with _mount_of(patient).silent():
        return refused(patient.answered(patient.submit(nodes)), "volume.silent")


def silent_under_comfyui(patient: Patient) -> Outcome:
    """ComfyUI itself waits for it, as when it loads a model: until the job's time is over."""
    mount = _mount_of(patient)
    nodes = through("TestAskVolume", folder=str(mount.path), seconds=60.0)
    lines = len(patient.worker.lines)
    job = patient.submit(nodes, max_wait=_MAX_WAIT)
    patient.worker.wait_for_line("got prompt", 60, after=lines)
    since = patient.plane.wait_for("take", job).at + _MAX_WAIT
    with mount.silent():
        return refused(patient.answered(job, since), "volume.silent", "job.timeout")


def _mount_of(patient: Patient) -> Mount:
    if patient.mount is None:
        raise CannotInject("the patient's volume is no mount")
    return patient.mount
