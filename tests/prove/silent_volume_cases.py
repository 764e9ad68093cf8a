"""A volume whose mount stops responding, and later comes back."""

from __future__ import annotations

import time

from tests.end_to_end.test_faults import through
from tests.end_to_end.test_worker import plain
from tests.prove.outcome import Outcome, completed, refused
from tests.prove.patient import Patient
from tests.prove.places import CannotInject, Mount

_RUNS_ON = 1.0
_MAX_WAIT = 5.0


def silent_in_a_job(patient: Patient) -> Outcome:
    """Staged code keeps running, and the picture comes in the reply; so does the next one."""
    job = patient.begun(_RUNS_ON)
    with _mount_of(patient).silent():
        since = time.monotonic() + _RUNS_ON
        first = completed(patient.answered(job, since), "does not respond")
        second = completed(patient.answered(patient.submit(plain())), "does not respond")
    return Outcome(first.right and second.right, first.seconds, f"{first.said} {second.said}")


def silent_and_needed(patient: Patient) -> Outcome:
    """The job names a picture on the volume."""
    nodes = plain()
    nodes["5"] = {"class_type": "LoadImage", "inputs": {"image": "on-the-volume.png"}}
    nodes["6"] = {"class_type": "PreviewImage", "inputs": {"images": ["5", 0]}}
    with _mount_of(patient).silent():
        return refused(patient.answered(patient.submit(nodes)), "volume.silent")


def silent_under_comfyui(patient: Patient) -> Outcome:
    """ComfyUI itself waits for it, as when it loads a model: long before the job's time is over."""
    mount = _mount_of(patient)
    job = _asks_the_volume(patient, mount)
    with mount.silent():
        return refused(patient.answered(job, time.monotonic()), "volume.silent")


def silent_to_the_end(patient: Patient) -> Outcome:
    """The same, and the job's time is over before it is noticed."""
    mount = _mount_of(patient)
    job = _asks_the_volume(patient, mount, max_wait=_MAX_WAIT)
    since = patient.plane.wait_for("take", job).at + _MAX_WAIT
    with mount.silent():
        return refused(patient.answered(job, since), "volume.silent", "job.timeout")


def _asks_the_volume(patient: Patient, mount: Mount, **more: float) -> str:
    """A running job with a node that keeps looking up files on the volume."""
    lines = len(patient.worker.lines)
    job = patient.submit(through("TestAskVolume", folder=str(mount.path), seconds=60.0), **more)
    patient.worker.wait_for_line("got prompt", 60, after=lines)
    return job


def _mount_of(patient: Patient) -> Mount:
    if patient.mount is None:
        raise CannotInject("the patient's volume is not a mount")
    return patient.mount
