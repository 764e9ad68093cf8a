"""A worker frozen for longer than every timeout in the code, several times.

    python -m tests.prove.freeze [--seconds 150] [--rounds 2]

The longest that can be running without a job is 120 s (a slow answer from ComfyUI). The wall clock
is moved by a day and back; see tests/end_to_end/test_thaw.py.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from demo.volume import ensure
from tests.end_to_end.test_thaw import (
    check_first_job_after_a_freeze,
    check_mixed_jobs_after_a_freeze,
    frozen_worker,
)


def main(argv: Sequence[str]) -> int:
    """Freeze, thaw, send a job; raises AssertionError if one is not served."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=150.0)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args(argv)
    folder = tempfile.TemporaryDirectory()
    with folder, frozen_worker(ensure(), Path(folder.name)) as freezer:
        check_mixed_jobs_after_a_freeze(freezer, arguments.seconds)
        for number in range(arguments.rounds):
            days = -1 if number % 2 else 1
            check_first_job_after_a_freeze(freezer, days * 86400, arguments.seconds)
            print(f"frozen {arguments.seconds:g} s, clock moved {days:+} d: served", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
