"""`python -m bootstrap.healthcheck`: ask the worker how it is. The image's HEALTHCHECK.

Exit 0 when the worker does its work, 1 when it does not or there is none; one line says why.
Standard library only and nothing of the project, so that asking costs little.
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
    """Where a worker listens, and where it is looked for: the system's temp folder."""
    return Path(tempfile.gettempdir()) / _NAME.format(name)


def socket_paths() -> list[Path]:
    """Where workers listen, those included that were killed and left their sockets behind."""
    return sorted(socket_path("x").parent.glob(_NAME.format("*")))


def connected(path: Path) -> socket.socket | None:
    """A connection to the worker that listens there; None when nothing does."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(_ANSWER_SECONDS)
    try:
        connection.connect(str(path))
    except OSError:
        connection.close()
        return None
    return connection


def main() -> int:
    """Print what each worker says of itself; 0 when there is one and all are well."""
    answers = [_answer(c) for path in socket_paths() if (c := connected(path)) is not None]
    for _, text in answers:
        print(text)
    if not answers:
        print("no worker is running here, or it has only just started")
    return 0 if answers and all(healthy for healthy, _ in answers) else 1


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
