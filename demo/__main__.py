"""`python -m demo COMMAND`: what the make targets call."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys

from demo.cache import cache_folder
from demo.console import DemoError, say
from demo.environment import ensure_worker_venv
from demo.volume import ensure


def main(arguments: list[str] | None = None) -> int:
    """Run one command; exit code 1 with an explanation on stderr if it fails."""
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("volume", help="build the demo volume and print its path")
    commands.add_parser("env", help="print shell exports for a worker on the demo volume")
    commands.add_parser("run", help="run the demo workflow on a worker")
    commands.add_parser("models", help="provision a manifest from servers on this machine")
    commands.add_parser("clean-cache", help="remove everything built into the cache")
    made = commands.add_parser("venv", help="make .venv")
    made.add_argument("tools", choices=["worker", "dev"])
    given = parser.parse_args(arguments)
    try:
        return _do(given)
    except DemoError as problem:
        print(f"demo: error: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted; an unfinished build starts over next time", file=sys.stderr)
        return 130


def _do(given: argparse.Namespace) -> int:
    if given.command == "venv":
        ensure_worker_venv(with_dev_tools=given.tools == "dev")
    elif given.command == "volume":
        print(ensure().path)
    elif given.command == "env":
        print(exports())
    elif given.command == "models":
        from demo.models import run_models_demo  # needs the worker's packages

        run_models_demo()
    elif given.command == "clean-cache":
        cache = cache_folder(os.environ)
        say(f"removing {cache}")
        shutil.rmtree(cache, ignore_errors=True)
    else:
        from demo.run import run_demo

        run_demo(ensure())
    return 0


def exports() -> str:
    """Shell lines that point a worker at the demo volume."""
    names = ensure().worker_environment
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in names.items())


if __name__ == "__main__":
    sys.exit(main())
