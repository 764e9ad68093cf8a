"""A container whose memory is at its limit: a real control group around a whole worker."""

from __future__ import annotations

from dataclasses import replace

from tests.end_to_end.test_faults import through
from tests.end_to_end.test_worker import plain
from tests.prove.outcome import Outcome, completed, refused
from tests.prove.patient import Patient
from tests.prove.places import CannotInject

CONTAINER_BYTES = 2_000_000_000


def killed_by_the_kernel(patient: Patient) -> Outcome:
    """A node allocates memory without end."""
    job = patient.submit(through("TestMemory", way="without end", megabytes=0))
    outcome = refused(patient.answered(job), "comfyui.died", "comfyui.killed")
    said = patient.plane.result(job)["error"]
    return Outcome(outcome.right and "memory" in said, outcome.seconds, said)


def near_the_limit_and_freed(patient: Patient) -> Outcome:
    """Memory in ComfyUI's caches: ComfyUI frees it and keeps running."""
    before = patient.comfyui.pid
    outcome = _after_filling(patient, "cached", 93.0, "asking ComfyUI to free")
    room = patient.container is not None and patient.container.megabytes_until(90.0) > 0
    return replace(outcome, right=outcome.right and room and patient.comfyui.pid == before)


def near_the_limit_for_good(patient: Patient) -> Outcome:
    """Memory that a node never frees: only a restart helps."""
    before = patient.comfyui.pid
    outcome = _after_filling(patient, "for good", 96.5, "still in use; restarting ComfyUI")
    return replace(outcome, right=outcome.right and patient.comfyui.pid != before)


def _after_filling(patient: Patient, way: str, percent: float, said: str) -> Outcome:
    """The outcome of a job after one that filled memory to `percent`; `said` must be logged."""
    if patient.container is None:
        raise CannotInject("the patient has no container")
    missing = patient.container.megabytes_until(percent)
    filling = patient.answer(patient.submit(through("TestMemory", way=way, megabytes=missing)))
    lines = len(patient.worker.lines)
    outcome = completed(patient.answered(patient.submit(plain())))
    patient.worker.wait_for_line(said, 15, after=lines)
    right = outcome.right and filling.get("status") == "completed"
    return Outcome(right, outcome.seconds, f"{missing} MB; {outcome.said}")
