"""Runs a command as a child, and ends its whole process group when its own parent dies.

Started as a script, `python -I -S child_guard.py PARENT_PID COMMAND…`, between the worker and
ComfyUI. A worker that is killed with SIGKILL cannot clean up; this process notices that its parent
has changed and ends ComfyUI and its children. A pipe would not do: the SDK forks a process for its
pings, which holds every pipe of the worker open. Exits like its child: with the same exit code or
signal. Standard library only; knows nothing of the project.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
import time

POLL_SECONDS = 0.2
GRACE_SECONDS = 3.0
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_ASK_TO_END = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
_WATCHED = {signal.SIGCHLD, *_ASK_TO_END}


def main(parent: int, command: list[str]) -> int:
    """Run `command` until it ends or `parent` does; its exit code, negative for a signal."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    # This process has one thread, as preexec_fn requires.
    child = subprocess.Popen(
        command,
        start_new_session=True,
        preexec_fn=_before_exec,  # noqa: PLW1509
    )
    asked: list[int] = []
    for number in _ASK_TO_END:
        signal.signal(number, lambda number, _: asked.append(number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ASK_TO_END)
    while child.poll() is None:
        # Its result is ignored: in a process that was stopped for longer than the poll, CPython
        # returns a struct that was never filled (signal_sigtimedwait_impl, after EINTR).
        signal.sigtimedwait({signal.SIGCHLD}, POLL_SECONDS)
        _reap_orphans(child.pid)
        if asked or os.getppid() != parent:
            _end(child)
    _kill_group(child.pid, signal.SIGKILL)
    _kill_orphans()
    return child.returncode


def _before_exec() -> None:
    """In the child: die with this guard, and unblock signals."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)


def _end(child: subprocess.Popen[bytes]) -> None:
    _kill_group(child.pid, signal.SIGTERM)
    _kill_group(child.pid, signal.SIGCONT)  # a stopped process hears nothing until it goes on
    deadline = time.monotonic() + GRACE_SECONDS
    while child.poll() is None and time.monotonic() < deadline:
        signal.sigtimedwait({signal.SIGCHLD}, POLL_SECONDS)
    _kill_group(child.pid, signal.SIGKILL)
    child.wait()


def _kill_group(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        pass


def _kill_orphans() -> None:
    """Processes that left the group with their own session are our children by now, and their
    children become ours when they die."""
    while orphans := _children():
        for orphan in orphans:
            os.kill(orphan, signal.SIGKILL)
        for orphan in orphans:
            os.waitpid(orphan, 0)


def _reap_orphans(child: int) -> None:
    """Dead orphans would stay zombies as long as ComfyUI lives."""
    for orphan in _children():
        if orphan != child:
            os.waitpid(orphan, os.WNOHANG)


def _children() -> list[int]:
    """Process ids of all our children, including zombies."""
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            return [int(pid) for pid in file.read().split()]
    except OSError:
        return []


def _prctl(option: int, value: int) -> None:
    """Linux only; elsewhere only the poll for a changed parent works."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _exit_like_child(code: int) -> None:
    """Exit with `code`, or die of the signal that it represents."""
    if code >= 0:
        sys.exit(code)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)
    if -code not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)


if __name__ == "__main__":
    _exit_like_child(main(int(sys.argv[1]), sys.argv[2:]))
