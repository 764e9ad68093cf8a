"""The guard with real processes: it exits like its child, and nothing outlives it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from bootstrap.core import child_guard
from tests.support.waiting import wait_until

PYTHON = sys.executable
# Stands between the test and the guard, as the worker does; a test kills it.
PARENT = (
    "import os, subprocess, sys\n"
    "guard = subprocess.Popen([sys.executable, '-I', '-S', sys.argv[1], str(os.getpid()),\n"
    "                          *sys.argv[2:]])\n"
    "print(guard.pid, flush=True)\n"
    "guard.wait()\n"
)
# A child with a grandchild in a session of its own, which has started one likewise.
FAMILY = (
    "import os, sys, time, pathlib\n"
    "folder = pathlib.Path(sys.argv[1])\n"
    "def note(name):\n"
    "    part = folder / f'.{name}'; part.write_text(str(os.getpid()))\n"
    "    part.rename(folder / name)\n"
    "def descend(names):\n"
    "    if names and os.fork() == 0:\n"
    "        os.setsid(); descend(names[1:]); note(names[0]); time.sleep(60); os._exit(0)\n"
    "descend(['one', 'two', 'three'])\n"
    "if os.fork() == 0: note('near'); time.sleep(60); os._exit(0)\n"
    "note('child')\n"
    "time.sleep(60)\n"
)
NAMES = ("child", "near", "one", "two", "three")


@pytest.fixture
def started() -> Iterator[list[int]]:
    """Process ids that are killed after the test in any case."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def guarded(*command: str, parent: int | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [PYTHON, "-I", "-S", child_guard.__file__, str(parent or os.getpid()), *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def pids_in(folder: Path, started: list[int], names: tuple[str, ...] = NAMES) -> list[int]:
    wait_until(lambda: all((folder / name).exists() for name in names))
    pids = [int((folder / name).read_text()) for name in names]
    started += pids
    return pids


@pytest.mark.parametrize("code", [0, 1, 2, 137, 255])
def test_the_exit_code_is_the_childs(code: int) -> None:
    process = guarded(PYTHON, "-c", f"print('said'); raise SystemExit({code})")
    output, _ = process.communicate(timeout=30)
    assert (process.returncode, output) == (code, "said\n")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM, signal.SIGINT])
def test_the_signal_that_ended_the_child_ends_the_guard(number: signal.Signals) -> None:
    script = (
        f"import os, signal; signal.signal({int(number)}, signal.SIG_DFL)"
        if number is not signal.SIGKILL
        else "import os"
    )
    process = guarded(PYTHON, "-c", f"{script}; os.kill(os.getpid(), {int(number)})")
    assert process.wait(30) == -number


def test_a_command_that_is_not_there_is_an_error_that_says_so() -> None:
    process = guarded("/no/such/python")
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 1 and "/no/such/python" in output


def test_the_child_hears_sigterm_and_may_end_by_itself() -> None:
    script = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
        "print('ready', flush=True); time.sleep(60)"
    )
    process = guarded(PYTHON, "-c", script)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.terminate()
    assert process.wait(30) == 7


def test_a_child_that_ignores_sigterm_is_killed_after_the_grace() -> None:
    script = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('ready', flush=True); time.sleep(60)"
    )
    process = guarded(PYTHON, "-c", script)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    asked = time.monotonic()
    process.terminate()
    assert process.wait(30) == -signal.SIGKILL
    assert time.monotonic() - asked >= child_guard.GRACE_SECONDS


def test_when_the_parent_is_killed_all_its_processes_end(
    tmp_path: Path, started: list[int]
) -> None:
    parent = subprocess.Popen(
        [PYTHON, "-c", PARENT, child_guard.__file__, PYTHON, "-c", FAMILY, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    pids = [int(parent.stdout.readline()), *pids_in(tmp_path, started)]
    assert all(map(alive, pids))
    parent.kill()
    parent.wait()
    wait_until(lambda: not any(map(alive, pids)))


def test_what_the_child_leaves_behind_goes_with_it(tmp_path: Path, started: list[int]) -> None:
    process = guarded(PYTHON, "-c", FAMILY, str(tmp_path))
    pids = pids_in(tmp_path, started)
    os.kill(pids[0], signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL
    wait_until(lambda: not any(map(alive, pids)))


def test_when_the_guard_itself_is_killed_the_child_dies(tmp_path: Path, started: list[int]) -> None:
    script = "import os, sys, time; print(os.getpid(), flush=True); time.sleep(60)"
    process = guarded(PYTHON, "-c", script)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    started.append(pid)
    process.kill()
    process.wait()
    wait_until(lambda: not alive(pid))


def test_a_parent_that_died_before_the_guard_started_is_noticed(
    tmp_path: Path, started: list[int]
) -> None:
    stranger = subprocess.Popen([PYTHON, "-c", ""])
    stranger.wait()
    process = guarded(PYTHON, "-c", "import time; time.sleep(60)", parent=stranger.pid)
    assert process.wait(30) == -signal.SIGTERM


def test_orphans_that_end_are_buried_while_the_child_lives(
    tmp_path: Path, started: list[int]
) -> None:
    script = (
        "import os, time\n"
        "if os.fork() == 0:\n"
        "    if os.fork() == 0: os.setsid(); time.sleep(0.1)\n"
        "    os._exit(0)\n"
        "os.wait(); print('ready', flush=True); time.sleep(60)"
    )
    process = guarded(PYTHON, "-c", script)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    me = psutil.Process(process.pid)
    wait_until(lambda: len(me.children()) == 1)
    process.kill()
    process.wait()


def test_a_guard_that_was_frozen_goes_on_guarding(started: list[int]) -> None:
    """CPython's sigtimedwait returns nonsense after a stop that outlasts its timeout."""
    process = guarded(PYTHON, "-c", "import time; print('up', flush=True); time.sleep(60)")
    started.append(process.pid)
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    for _ in range(3):
        process.send_signal(signal.SIGSTOP)
        time.sleep(2 * child_guard.POLL_SECONDS)
        process.send_signal(signal.SIGCONT)
        time.sleep(2 * child_guard.POLL_SECONDS)
        assert process.poll() is None
    process.terminate()
    assert process.wait(30) == -signal.SIGTERM
