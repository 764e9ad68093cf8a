"""Eight provisioners on one folder, killed at random moments.

    python -m tests.prove.kill_provisioners

Each process fetches the same models from a slow local server; again and again one is killed with
SIGKILL and restarted at once. After each kill every file under its final name is checked: wrong
content, or a good file gone or replaced, is a failure. At the end one more run must complete
everything. Disks: `real`, `no-links` (hard links fail), `no-links-no-rename` (so does renameat2),
`no-locks` (O_EXCL does not protect leases).
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

from bootstrap.core.files import Disk
from bootstrap.models.provision import provision
from tests.support.provisioning import context, options, sha256, spec, tensors
from tests.support.vicious_server import ViciousServer

SIZES = (300_000, 5_000_000, 9_000_000, 13_000_000)
DISKS = ("real", "no-links", "no-links-no-rename", "no-locks")
STALE = 0.6


class FaultyDisk(Disk):
    """A disk that lacks what `kind` says."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def link(self, source: Path, target: Path) -> None:
        if self.kind.startswith("no-links"):
            raise OSError(errno.EOPNOTSUPP, "no hard links")
        super().link(source, target)

    def rename_to_free_name(self, source: Path, target: Path) -> None:
        if self.kind == "no-links-no-rename":
            raise OSError(errno.EINVAL, "no renameat2")
        super().rename_to_free_name(source, target)

    def create(self, path: Path) -> int:
        if self.kind == "no-locks" and path.name.endswith(".lease"):
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        return super().create(path)


@dataclass
class Tally:
    """The results."""

    kills: int = 0
    wrong: int = 0
    lost: int = 0
    missing: int = 0
    seconds: float = 0.0
    seen: dict[Path, tuple[int, int]] = field(default_factory=dict)

    @property
    def good(self) -> bool:
        return not (self.wrong or self.lost or self.missing)

    def __str__(self) -> str:
        return (
            f"{self.kills} kills: {self.wrong} wrong files, {self.lost} lost good ones, "
            f"{self.missing} missing at the end; {self.seconds:.0f} s"
        )


def run(
    kills: int, disk: str, workers: int = 8, seed: int = 0, sizes: Sequence[int] = SIZES
) -> Tally:
    """Kill `kills` times and count."""
    chance = random.Random(seed)
    contents = {f"m{n}.safetensors": tensors(size, n) for n, size in enumerate(sizes)}
    started = time.monotonic()
    tally = Tally()
    with ViciousServer() as server, tempfile.TemporaryDirectory() as folder:
        urls = {
            name: server.serve(f"/{name}", data, bytes_per_second=1.5e6)
            for name, data in contents.items()
        }
        while tally.kills < kills:  # each round ends when all models are there
            with tempfile.TemporaryDirectory(dir=folder) as models:
                _round(Path(models), urls, contents, disk, workers, kills, chance, tally)
    tally.seconds = time.monotonic() - started
    return tally


def _round(
    models: Path,
    urls: dict[str, str],
    contents: dict[str, bytes],
    disk: str,
    workers: int,
    kills: int,
    chance: random.Random,
    tally: Tally,
) -> None:
    tally.seen.clear()
    context = multiprocessing.get_context("fork")

    def begin() -> BaseProcess:
        process = context.Process(target=_provision, args=(models, urls, disk))
        process.start()
        return process

    pool = [begin() for _ in range(workers)]
    while tally.kills < kills and not _all_there(models, contents):
        time.sleep(chance.uniform(0.0, 0.25))
        victim = chance.randrange(workers)
        if pool[victim].is_alive() and pool[victim].pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pool[victim].pid or 0, signal.SIGKILL)
            tally.kills += 1
        pool[victim].join()
        pool[victim] = begin()
        _look(models, contents, tally)
    for process in pool:
        process.join(60)
        if process.is_alive():
            process.kill()
    _provision(models, urls, disk)
    _look(models, contents, tally)
    tally.missing += sum(not (models / "loras" / name).exists() for name in contents)


def _provision(models: Path, urls: dict[str, str], disk: str) -> None:
    wanted = [spec(url, name) for name, url in urls.items()]
    patient = options(disk=FaultyDisk(disk), attempts=20, note_every=0.2, connections=4)
    provision(wanted, context(models, options=patient, stale=STALE, beat=0.1))


def _all_there(models: Path, contents: dict[str, bytes]) -> bool:
    return all((models / "loras" / name).exists() for name in contents)


def _look(models: Path, contents: dict[str, bytes], tally: Tally) -> None:
    """Every file under its final name must be complete, and stay the same file."""
    for name, data in contents.items():
        path = models / "loras" / name
        try:
            facts, found = path.stat(), path.read_bytes()
        except FileNotFoundError:
            tally.lost += path in tally.seen
            continue
        if sha256(found) != sha256(data):
            tally.wrong += 1
            print(f"WRONG {path}", file=sys.stderr)
        identity = (facts.st_ino, facts.st_size)
        tally.lost += tally.seen.setdefault(path, identity) != identity


def main(argv: Sequence[str]) -> int:
    """Print the results for each disk; 0 if nothing was wrong, lost or missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--disk", choices=DISKS, action="append")
    arguments = parser.parse_args(argv)
    good = True
    for disk in arguments.disk or DISKS:
        tally = run(arguments.kills, disk, seed=arguments.seed)
        print(f"{disk}: {tally}", flush=True)
        good = good and tally.good
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
