"""Tens of thousands of symbolic links, made by processes of their own.

Each takes the kernel some 25 µs; made by threads, they and everything else that threads do at the
time would wait for each other at the interpreter's lock.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial

from bootstrap.core.concurrency import Crew

_MOST_PROCESSES = 4
# Below this a process would take longer to start.
_WORTH_A_PROCESS = 2000
# Ends with the number of the error, if there is one, and the path that it is about.
_PROGRAM = """
import os, sys
source, place = map(os.fsencode, sys.argv[1:3])
os.nice(int(sys.argv[3]))
for path in sys.stdin.buffer.read().split(b"\\0"):
    try:
        os.symlink(source + path, place + path)
    except OSError as problem:
        print(problem.errno)
        break
"""


def make_links(
    paths: Sequence[str], source: str, place: str, timeout: float, nice: int = 0
) -> bool:
    """Link each path below `place` to that below `source`; False if `timeout` seconds were not
    enough. The processes' priority is `nice` lower. Raises OSError."""
    most = min(_MOST_PROCESSES, len(os.sched_getaffinity(0)))
    count = max(1, min(most, len(paths) // _WORTH_A_PROCESS))
    shares = [paths[i::count] for i in range(count)]
    tasks = [partial(_make_share, share, source, place, timeout, nice) for share in shares if share]
    return Crew(count).run(tasks, timeout)


def _make_share(paths: Sequence[str], source: str, place: str, timeout: float, nice: int) -> None:
    if len(paths) < _WORTH_A_PROCESS:
        for path in paths:
            os.symlink(f"{source}/{path}", f"{place}/{path}")
        return
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _PROGRAM, f"{source}/", f"{place}/", str(nice)],
            input=b"\0".join(map(os.fsencode, paths)),
            stdout=subprocess.PIPE,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return  # whoever waits for the share has noticed
    code = int(done.stdout) if done.stdout.strip().isdigit() else 0
    if code or done.returncode:
        raise OSError(code or errno.EIO, os.strerror(code or errno.EIO), place)
