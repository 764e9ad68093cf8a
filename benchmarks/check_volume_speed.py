"""How long the checker takes for a volume, compared with a serial walk of the same files.

    python3 -m benchmarks.check_volume_speed [--files 20000] [--folders 300] [--rounds 3]

On a simulated network volume (see `benchmarks/simulated_volume`) with 1.5 ms a metadata call, it
times in turn: os.walk with a stat of each file; our walk; our inventory with a limited number of
headers (the default check), and with all. Prints medians and their ratios to the serial walk.
"""

from __future__ import annotations

import argparse
import os
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # also when run as a file

from benchmarks.document import table
from benchmarks.simulated_volume import CannotSimulate, Delays, mounted
from bootstrap.doctor.facts import LIGHT_HEADERS
from bootstrap.doctor.facts.inventory import gather_models
from bootstrap.doctor.facts.walk import walk

BAR = 0.10
CHECK = "check"
CATEGORIES = ("checkpoints", "loras", "vae", "controlnet", "embeddings", "clip_vision")
HEADER = b'{"weight":{"dtype":"F16","shape":[32],"data_offsets":[0,64]}}'


@dataclass
class Contender:
    """A way to list all files; `look` returns how many it found."""

    name: str
    look: Callable[[Path], int]
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Median of its rounds, in seconds."""
        return statistics.median(self.seconds)


def furnish(models: Path, files: int, folders: int) -> None:
    """Write small valid safetensors files, spread evenly over folders two levels deep."""
    for i in range(folders):
        folder = models / CATEGORIES[i % len(CATEGORIES)] / f"pack{i:03d}"
        folder.mkdir(parents=True)
        for j in range(i, files, folders):
            data = struct.pack("<Q", len(HEADER)) + HEADER + struct.pack("<Q", j) * 8
            (folder / f"model{j:05d}.safetensors").write_bytes(data)


def serial_walk(models: Path) -> int:
    """What a simple checker does."""
    count = 0
    for folder, _, names in os.walk(models, followlinks=True):
        for name in names:
            os.stat(os.path.join(folder, name))
            count += 1
    return count


def parallel_walk(models: Path) -> int:
    """Names, sizes and links."""
    return sum(entry.is_file for entry in walk([models]).entries)


def light_check(models: Path) -> int:
    """The checker's default: a limited number of headers."""
    return len(gather_models([models], most_headers=LIGHT_HEADERS).files)


def deep_check(models: Path) -> int:
    """Names, sizes, links and the header of each file."""
    return sum(file.state.value == "good" for file in gather_models([models]).files)


def measure(models: Path, files: int, rounds: int, delays: Delays) -> list[Contender]:
    """Every contender in turn, `rounds` times, each on a fresh mount: nothing is cached."""
    contenders = [
        Contender("os.walk + stat, serial", serial_walk),
        Contender("walk", parallel_walk),
        Contender(CHECK, light_check),
        Contender("check --deep, every header", deep_check),
    ]
    for number in range(rounds):
        for contender in contenders:
            with mounted(models.parent, models.parent.with_name("mnt"), delays) as volume:
                started = time.monotonic()
                found = contender.look(volume.mountpoint / models.name)
                contender.seconds.append(time.monotonic() - started)
            if found != files:
                raise AssertionError(f"{contender.name} found {found} of {files} files")
            print(f"round {number + 1}: {contender.name}: {contender.seconds[-1]:.2f} s")
    return contenders


def medians(contenders: list[Contender]) -> str:
    """The medians as a Markdown table, with all rounds in the last column."""
    serial = contenders[0].median
    rows = []
    for c in contenders:
        rounds = ", ".join(f"{seconds:.2f}" for seconds in c.seconds)
        rows.append([c.name, f"{c.median:.2f} s", f"{c.median / serial:.3f}", rounds])
    return table(["", "median", "of serial", "rounds"], rows)


def main() -> int:
    """Exit status 0 if the target is met, 1 if not or if no volume can be simulated."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--folders", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--metadata-ms", type=float, default=1.5)
    given = parser.parse_args()
    delays = Delays(metadata_ms=given.metadata_ms)
    with tempfile.TemporaryDirectory(prefix="check-volume-speed-") as folder:
        models = Path(folder) / "volume" / "models"
        furnish(models, given.files, given.folders)
        try:
            contenders = measure(models, given.files, given.rounds, delays)
        except CannotSimulate as problem:
            print(f"Cannot simulate a volume here: {problem}.", file=sys.stderr)
            return 1
    print("\n" + medians(contenders))
    (check,) = [c for c in contenders if c.name == CHECK]
    ratio = check.median / contenders[0].median
    print(f"\nThe check takes {ratio:.3f} of the serial walk's time; target: ≤ {BAR:.2f}.")
    return 0 if ratio <= BAR else 1


if __name__ == "__main__":
    sys.exit(main())
