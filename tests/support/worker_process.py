"""A worker as a real child process, whose log is collected and whose end is guaranteed.

with WorkerProcess.module("handler", env=plane.worker_env()) as worker:
    worker.wait_for_line(r"Jobs in progress", timeout=30)
    worker.terminate()
    assert worker.wait(30) == 0
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.plane_records import now
from tests.support.process_tree import LiveProcess, family, kill_family

_MARK = "WORKER_PROCESS_MARK"
_POLL_SECONDS = 0.05
# How long lines of an exited process may take to arrive; children that it left hold its pipe open.
_LAST_LINES_SECONDS = 3.0


def free_port() -> int:
    """Below the ephemeral range, like ComfyUI's real port: no process takes it by chance."""
    while True:
        port = random.randint(20_000, 30_000)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


@dataclass(frozen=True)
class Line:
    """One line of stdout or stderr; `at` is time.monotonic() when it was read."""

    at: float
    text: str


class WorkerFailure(AssertionError):
    """The worker did not do what the test waited for; the message ends with its log."""


class WorkerProcess:
    """Runs `command` in a session of its own between enter and exit of a with-block.

    `env` is merged over this process's environment without its RUNPOD_* variables, so that tests
    run on a Runpod machine as anywhere else. At the end of the block the process group and
    everything that escaped it is killed.
    """

    def __init__(
        self, command: Sequence[str | Path], *, env: Mapping[str, str], cwd: Path | None = None
    ) -> None:
        self.command = [str(part) for part in command]
        self._mark = f"{_MARK}={uuid.uuid4().hex}"
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("RUNPOD_")}
        name, _, value = self._mark.partition("=")
        self._env = {**inherited, "PYTHONUNBUFFERED": "1", **env, name: value}
        self._cwd = cwd
        self._changed = threading.Condition()
        self._lines: list[Line] = []
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._returncode: int | None = None

    @classmethod
    def module(
        cls,
        name: str,
        *arguments: str,
        env: Mapping[str, str],
        cwd: Path | None = None,
        python: Path | str = sys.executable,
    ) -> WorkerProcess:
        """`python -m name arguments…`"""
        return cls([python, "-m", name, *arguments], env=env, cwd=cwd)

    def __enter__(self) -> WorkerProcess:
        self._process = subprocess.Popen(
            self.command,
            env=self._env,
            cwd=self._cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        process = self._started()
        kill_family(self.pid, self._mark)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        kill_family(self.pid, self._mark)  # what was forked between the first look and the kill
        if self.returncode is None:  # it was alive until a moment ago
            self._returncode = process.wait()
        process.wait()
        if self._reader is not None:
            self._reader.join(timeout=5)
        if process.stdout is not None and not (self._reader and self._reader.is_alive()):
            process.stdout.close()

    @property
    def pid(self) -> int:
        return self._started().pid

    @property
    def returncode(self) -> int | None:
        """The exit code, -N after signal N, None while it runs.

        Looks without reaping: while the zombie exists, its PID, which is also the process group's,
        cannot be reused, so __exit__ cannot kill another process.
        """
        if self._returncode is None:
            state = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if state is not None:
                exited = state.si_code == os.CLD_EXITED
                self._returncode = state.si_status if exited else -state.si_status
        return self._returncode

    @property
    def lines(self) -> list[Line]:
        with self._changed:
            return list(self._lines)

    @property
    def log(self) -> str:
        return "\n".join(line.text for line in self.lines)

    def tail(self, count: int = 40) -> str:
        return "\n".join(line.text for line in self.lines[-count:]) or "(no output)"

    def terminate(self) -> None:
        """SIGTERM to the process alone, as the container runtime sends it."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to the process alone: what it started keeps running."""
        self._signal(signal.SIGKILL)

    def living(self) -> list[LiveProcess]:
        """This worker's other living processes: children, and orphans it left."""
        return family(self.pid, self._mark)

    def wait(self, timeout: float = 30) -> int:
        """The exit code, once all it wrote is in the log; WorkerFailure if it still runs after
        `timeout` seconds."""
        deadline = now() + timeout
        while (code := self.returncode) is None:
            if now() >= deadline:
                raise self._failure(f"still running after {timeout} s")
            with self._changed:
                self._changed.wait(_POLL_SECONDS)
        if self._reader is not None:
            self._reader.join(_LAST_LINES_SECONDS)
        return code

    def wait_for_line(self, pattern: str, timeout: float = 30, *, after: int = 0) -> Line:
        """The first line, from number `after` on, in which `pattern` is found.

        WorkerFailure at the deadline, and at once when the process has ended without it.
        """
        wanted = re.compile(pattern)
        deadline = now() + timeout
        next_line = after
        while True:
            for line in self.lines[next_line:]:
                next_line += 1
                if wanted.search(line.text):
                    return line
            if now() >= deadline:
                raise self._failure(f"no line like {pattern!r} within {timeout} s")
            if self.returncode is not None:
                deadline = min(deadline, now() + _LAST_LINES_SECONDS)
            with self._changed:
                self._changed.wait(_POLL_SECONDS)

    def _read(self) -> None:
        process = self._started()
        assert process.stdout is not None
        for text in process.stdout:
            with self._changed:
                self._lines.append(Line(now(), text.rstrip("\n")))
                self._changed.notify_all()

    def _signal(self, number: signal.Signals) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None:
            raise RuntimeError("enter the WorkerProcess first")
        return self._process

    def _failure(self, what: str) -> WorkerFailure:
        code = self.returncode
        state = "it still runs" if code is None else f"it exited with {code}"
        command = " ".join(self.command)
        return WorkerFailure(f"{what}; {state}\n{command}\n--- its log ends:\n{self.tail()}")
