"""`python3 -m benchmarks.simulated_volume FOLDER MOUNTPOINT`: serve until interrupted."""

from __future__ import annotations

import argparse
import signal
import sys
from dataclasses import fields
from pathlib import Path

from benchmarks.simulated_volume import CannotSimulate, Delays, mounted


def main() -> int:
    """Exit status 0 after an interruption, 1 where no volume can be simulated."""
    parser = argparse.ArgumentParser(description="A folder seen as a slow network volume.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("mountpoint", type=Path)
    for field in fields(Delays):
        flag = f"--{field.name.replace('_', '-')}"
        kind = type(field.default)
        parser.add_argument(flag, type=kind, default=field.default, help=f"default {field.default}")
    given = vars(parser.parse_args())
    delays = Delays(**{field.name: given[field.name] for field in fields(Delays)})
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with mounted(given["folder"], given["mountpoint"], delays):
            print(f"{given['folder']} is at {given['mountpoint']}; Ctrl-C unmounts it.")
            signal.pause()
    except KeyboardInterrupt:
        return 0
    except CannotSimulate as problem:
        print(f"No volume can be simulated here: {problem}.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
