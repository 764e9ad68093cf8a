"""`python -m bootstrap.healthcheck`: asks for the worker's health. The image's HEALTHCHECK.

Exit 0 when the worker is healthy, 1 when it is not or there is none; one line says why. Standard
library only and nothing of the project, so that asking costs little.
"""

from __future__ import annotations

import json
import socket
import sys
import tempfile
from pathlib import Path

_NAME = "comfyui-health-{}.sock"
_ANSWER_SECONDS = 2.0


def socket_path(name: str) -> Path:
    """Where a worker listens: in the system's temp folder."""
    return Path(tempfile.gettempdir()) / _NAME.format(name)


def socket_paths() -> list[Path]:
    """All workers' sockets, including those that killed workers left behind."""
    return sorted(socket_path("x").parent.glob(_NAME.format("*")))


def connected(path: Path) -> socket.socket | None:
    """A connection to the worker that listens there; None if none does."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(_ANSWER_SECONDS)
    try:
        connection.connect(str(path))
    except OSError:
        connection.close()
        return None
    return connection


def main() -> int:
    """Print each worker's answer; 0 if there is one and all are healthy."""
    found = [c for path in socket_paths() if (c := connected(path)) is not None]
    several = len(found) > 1
    answers = [(_worker(c) if several else "", *_answer(c)) for c in found]
    for worker, _, text in answers:
        print(f"{worker}{text}")
    if not answers:
        print("no worker is running here, or it has only just started")
    return 0 if answers and all(healthy for _, healthy, _ in answers) else 1


def _worker(connection: socket.socket) -> str:
    """The process behind a connection, where the system tells; `ps` shows what it is."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return ""
    pid = int.from_bytes(connection.getsockopt(socket.SOL_SOCKET, option, 12)[:4], sys.byteorder)
    return f"worker with PID {pid}: "


def _answer(connection: socket.socket) -> tuple[bool, str]:
    try:
        with connection, connection.makefile("rb") as stream:
            answer = json.loads(stream.readline())
            return bool(answer["healthy"]), str(answer["text"])
    except OSError:
        return False, f"the worker is alive, but did not answer within {_ANSWER_SECONDS:g} s"
    except (ValueError, TypeError, KeyError):
        return False, "the worker ended before it had answered"


if __name__ == "__main__":
    sys.exit(main())
