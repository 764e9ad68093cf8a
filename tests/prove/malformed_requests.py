"""Ten thousand malformed requests to one worker with a real ComfyUI.

    python -m tests.prove.malformed_requests [--requests 10000] [--seed N]

Each gets a reply that is JSON, matches docs/reply.schema.json, has a listed code and says what to
do; none makes the worker fail, shows a secret, or leaves a file where none belongs. Now and then a
good request must be served, and ComfyUI must never restart. Prints the number of replies by code.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings

from bootstrap.boot import Boot
from bootstrap.config import Settings
from demo.volume import ensure
from tests.conftest import BootedWorker, environment, furnished
from tests.support.malformed import check_answer, check_whole, elsewhere, requests

_WHOLE_EVERY = 250


def hurl(worker: BootedWorker, volume: Path, count: int, first: int) -> Counter[str]:
    """Ask `count` times; replies by code. Raises AssertionError at the first that is not right."""
    codes: Counter[str] = Counter()
    files = elsewhere(worker, volume)

    @seed(first)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(given=requests)
    def ask(given: object) -> None:
        codes[check_answer(worker, given)] += 1
        if codes.total() % _WHOLE_EVERY == 0:
            check_whole(worker)
            assert elsewhere(worker, volume) == files

    ask()
    check_whole(worker)
    return codes


def main(argv: Sequence[str]) -> int:
    """Print the results; 0 if ComfyUI never restarted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        demo = ensure()
        volume = furnished(demo, Path(folder) / "volume")
        env = environment(demo, volume, Path(folder) / "work")
        given_settings, problems = Settings.from_env(env)
        worker = BootedWorker(Boot(given_settings, problems, env))
        try:
            return _report(worker, volume, arguments.requests, arguments.seed)
        finally:
            worker.boot.stop()


def _report(worker: BootedWorker, volume: Path, count: int, first: int) -> int:
    start, life = time.monotonic(), worker.serving.comfyui.generation
    codes: Counter[str] = Counter()
    while codes.total() < count:  # one run ends early when it finds nothing new
        codes += hurl(worker, volume, count - codes.total(), first + codes.total())
    for code, number in codes.most_common():
        print(f"{number:6}  {code}")
    alive = worker.serving.comfyui.generation == life
    print(
        f"{codes.total()} requests in {time.monotonic() - start:.0f} s (seed {first}), "
        f"{len(codes)} kinds of reply, ComfyUI {'never restarted' if alive else 'RESTARTED'}"
    )
    return 0 if alive else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
