"""The faults: what is done to a worker, and the right answer."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from tests.end_to_end.test_worker import plain
from tests.prove import delivery_cases, memory_cases, silent_volume_cases
from tests.prove.outcome import Outcome, completed, refused
from tests.prove.patient import Patient
from tests.prove.places import black_hole
from tests.support.waiting import wait_until

Inject = Callable[[Patient], Outcome]


def killed(patient: Patient) -> Outcome:
    job = patient.begun()
    since = time.monotonic()
    patient.comfyui.kill()
    return refused(patient.answered(job, since), "comfyui.died", "comfyui.killed")


def frozen(patient: Patient) -> Outcome:
    job = patient.begun()
    since = time.monotonic()
    patient.comfyui.send_signal(signal.SIGSTOP)
    return refused(patient.answered(job, since), "comfyui.unreachable")


def killed_between(patient: Patient) -> Outcome:
    patient.comfyui.kill()
    return completed(patient.answered(patient.submit(plain())))


def frozen_between(patient: Patient) -> Outcome:
    patient.comfyui.send_signal(signal.SIGSTOP)
    return completed(patient.answered(patient.submit(plain())))


def system_exit(patient: Patient) -> Outcome:
    answer = patient.run("TestRaise", what="SystemExit")
    return refused(answer, "comfyui.died", "comfyui.prompt_thread_ended")


def os_exit(patient: Patient) -> Outcome:
    return refused(patient.run("TestDie", way="exit 3"), "comfyui.died", "comfyui.exited")


def _not_json(patient: Patient, quietly: bool) -> tuple[dict[str, Any], float]:
    nodes = plain()
    nodes["3"] = {"class_type": "TestNotJson", "inputs": {"image": ["1", 0], "quietly": quietly}}
    return patient.answered(patient.submit(nodes))


def not_json(patient: Patient) -> Outcome:
    return refused(_not_json(patient, False), "comfyui.died", "comfyui.output_not_json")


def unreadable_history(patient: Patient) -> Outcome:
    return refused(_not_json(patient, True), "comfyui.history_unreadable")


def port_taken(patient: Patient) -> Outcome:
    """Another process takes ComfyUI's port before it is back."""
    dying = patient.comfyui
    dying.kill()
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        wait_until(lambda: not _in_use(stranger, patient.port))
        stranger.listen()
        outcome = completed(patient.answered(patient.submit(plain())))
    patient.comfyui.kill()  # the next one is on the port again
    return outcome


def port_taken_late(patient: Patient) -> Outcome:
    """Another process takes the port while ComfyUI starts, after it was found free."""
    dying = patient.comfyui
    dying.kill()
    wait_until(lambda: not dying.is_running())
    job = patient.submit(plain())
    wait_until(lambda: _starts(patient), 30)
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        stranger.bind(("127.0.0.1", patient.port))
        stranger.listen()
        outcome = completed(patient.answered(job))
    patient.comfyui.kill()  # the next one is on the port again
    return outcome


def _starts(patient: Patient) -> bool:
    try:
        return str(patient.port) in patient.comfyui.cmdline()
    except (AssertionError, psutil.NoSuchProcess):
        return False


def _in_use(stranger: socket.socket, port: int) -> bool:
    try:
        stranger.bind(("127.0.0.1", port))
    except OSError:
        return True
    return False


def socket_dropped(patient: Patient) -> Outcome:
    return completed(patient.run("TestSocket", way="drop"))


def socket_silent(patient: Patient) -> Outcome:
    return completed(patient.run("TestSocket", way="silence"))


def connections_dead(patient: Patient) -> Outcome:
    """All of the worker's connections to ComfyUI, socket and requests, lose all packets."""
    job = patient.begun(3.0)
    since = time.monotonic() + 3.0
    with black_hole(patient.worker.pid, patient.port) as count:
        outcome = completed(patient.answered(job, since))
    return Outcome(outcome.right and count > 0, outcome.seconds, f"{count}: {outcome.said}")


def out_of_memory(patient: Patient) -> Outcome:
    return refused(patient.run("TestRaise", what="OutOfMemoryError"), "job.out_of_memory")


def poisoned(patient: Patient) -> Outcome:
    said = "CUDA error: device-side assert triggered"
    answer = patient.run("TestRaise", what="RuntimeError", said=said)
    return refused(answer, "job.cuda_failed")


def cancelled(patient: Patient) -> Outcome:
    """A node that ignores interrupts: ComfyUI is ended long before the node would end. The seconds
    count from when the SDK receives the stop; it pauses for a second between its polls."""
    lines = len(patient.worker.lines)
    job = patient.submit(_stubborn())
    patient.worker.wait_for_line("TestSleep runs", 60, after=lines)
    before = patient.comfyui
    patient.plane.cancel(job)
    heard = patient.worker.wait_for_line(f"{job}.*Stopping job", 15, after=lines)
    wait_until(lambda: not before.is_running(), 60)
    seconds = time.monotonic() - heard.at
    return Outcome(not patient.plane.select("done", job), seconds, "ComfyUI was ended")


def _stubborn() -> dict[str, Any]:
    nodes = plain()
    inputs = {"image": ["1", 0], "seconds": 600.0, "obedient": False}
    nodes["3"] = {"class_type": "TestSleep", "inputs": inputs}
    nodes["2"]["inputs"]["images"] = ["3", 0]
    return nodes


def crash_loop(patient: Patient) -> Outcome:
    """ComfyUI cannot start any more: reported, from the third time at once; then it can again."""
    main = _staged_main(patient)
    text = main.read_text()
    main.write_text("raise SystemExit('broken by the test')\n")
    patient.comfyui.kill()
    try:
        codes = [patient.answer(patient.submit(plain())).get("error_code") for _ in range(3)]
        output, seconds = patient.answered(patient.submit(plain()))
    finally:
        main.write_text(text)
    outcome = refused((output, seconds), "comfyui.keeps_failing", "comfyui.exited")
    right = outcome.right and codes[-1] == "comfyui.keeps_failing"
    time.sleep(max(output.get("details", {}).get("retry_in", 0.0), 0.0) + 1.0)
    return Outcome(right, seconds, f"{codes} {outcome.said}")


def _staged_main(patient: Patient) -> Path:
    """The `main.py` that runs: the copy on local disk."""
    return Path(os.path.realpath(f"/proc/{patient.comfyui.pid}/cwd")) / "main.py"


FAULTS: dict[str, Inject] = {
    "killed in a job": killed,
    "frozen in a job": frozen,
    "killed between jobs": killed_between,
    "frozen between jobs": frozen_between,
    "node raises SystemExit": system_exit,
    "node calls os._exit": os_exit,
    "result is not JSON": not_json,
    "history unreadable": unreadable_history,
    "port taken at restart": port_taken,
    "port taken during start": port_taken_late,
    "socket dropped": socket_dropped,
    "socket silent": socket_silent,
    "connections dead": connections_dead,
    "GPU out of memory": out_of_memory,
    "GPU error that poisons": poisoned,
    "cancel, node ignores it": cancelled,
    "volume full": delivery_cases.volume_full,
    "volume gone and back": delivery_cases.volume_gone,
    "result answered 400": delivery_cases.plane_refuses,
    "result answered 500 once": delivery_cases.plane_recovers,
    "result answered 500": delivery_cases.plane_fails,
    "result not answered": delivery_cases.plane_hangs_up,
    "crash loop": crash_loop,
}
ON_A_MOUNT: dict[str, Inject] = {
    "volume silent in a job": silent_volume_cases.silent_in_a_job,
    "volume silent, ComfyUI too": silent_volume_cases.silent_under_comfyui,
    "volume silent to the end": silent_volume_cases.silent_to_the_end,
    "volume silent and needed": silent_volume_cases.silent_and_needed,
}
IN_A_CONTAINER: dict[str, Inject] = {
    "killed, out of memory": memory_cases.killed_by_the_kernel,
    "memory short, can be freed": memory_cases.near_the_limit_and_freed,
    "memory short for good": memory_cases.near_the_limit_for_good,
}
# Those after which ComfyUI need not restart: seconds each.
QUICK = (
    "socket dropped", "socket silent", "connections dead", "GPU out of memory", "volume full",
    "volume gone and back", "result answered 400", "result answered 500 once",
)  # fmt: skip
