"""Where results go: a volume that is full or gone, a control plane that refuses or fails."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.end_to_end.test_worker import plain
from tests.prove.outcome import Outcome, completed
from tests.prove.patient import Patient
from tests.prove.places import CannotInject


def volume_full(patient: Patient) -> Outcome:
    """`ComfyUI/output` is a separate disk with no space left."""
    output = patient.volume / "ComfyUI" / "output"
    with _small_disk(output):
        filler = output / "filler"
        with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
            while file.write(b"x" * 65536):
                pass
        return completed(patient.answered(patient.submit(plain())), "could not be kept")


@contextlib.contextmanager
def _small_disk(place: Path) -> Iterator[None]:
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(place)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        raise CannotInject("mounting a disk takes root")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def volume_gone(patient: Patient) -> Outcome:
    """The volume disappears: staged code keeps running, and the picture comes in the reply. Then it
    comes back."""
    away = patient.volume.with_name("away")
    patient.volume.rename(away)
    try:
        return completed(patient.answered(patient.submit(plain())), "could not be kept")
    finally:
        away.rename(patient.volume)


def plane_refuses(patient: Patient) -> Outcome:
    """A result answered with 400 is not sent again: it is on the volume, where the log says."""
    patient.plane.faults.answer("done", 400)
    return _only_on_the_volume(patient)


def plane_fails(patient: Patient) -> Outcome:
    """The SDK gives up at its third 500."""
    patient.plane.faults.answer("done", 500, 500, 500)
    return _only_on_the_volume(patient)


def plane_hangs_up(patient: Patient) -> Outcome:
    patient.plane.faults.answer("done", 0)
    return _only_on_the_volume(patient)


def _only_on_the_volume(patient: Patient) -> Outcome:
    lines = len(patient.worker.lines)
    job = patient.submit(plain())
    line = patient.worker.wait_for_line(rf"{job}.*on the volume: ", 60, after=lines)
    seconds = line.at - patient.plane.wait_for("take", job).at
    named = line.text.partition("on the volume: ")[2].split('"')[0].partition(" and ")[0]
    kept = all((patient.volume / path.strip()).is_file() for path in named.split(","))
    patient.lost += not kept
    return Outcome(kept, seconds, line.text)


def plane_recovers(patient: Patient) -> Outcome:
    """The SDK resends a result that was answered with 500."""
    patient.plane.faults.answer("done", 500)
    return completed(patient.answered(patient.submit(plain())))
