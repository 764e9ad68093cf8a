"""Pure: fixes that are commands, about one path or many, and where one makes them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from bootstrap.wording import shown, typed

#: Where people set variables, in a sentence.
IN_ENDPOINT = "in the endpoint's environment variables"
# More commands than this are not typed at once: mend these, then check again.
MOST_AT_ONCE = 20
MOST_PATHS = 50
# The platform's two mount points of one volume.
SERVERLESS, POD = "/runpod-volume", "/workspace"


def quoted(path: str) -> str:
    """`path` as one word of a bash command, whatever characters are in it."""
    return typed(path)


def words(paths: Iterable[str]) -> str:
    """Paths as words of a command, `MOST_AT_ONCE` at most."""
    return typed(*list(paths)[:MOST_AT_ONCE])


def chained(commands: Sequence[str]) -> str:
    """Commands as one line, `MOST_AT_ONCE` at most."""
    return " && ".join(commands[:MOST_AT_ONCE])


def on_pod(command: str, root: str, then: str = "") -> str:
    """A fix that is a command, for a volume seen at `root`."""
    fix = f"On a Pod with this volume: `{command}`."
    if root == SERVERLESS:
        fix += f" There the volume is {POD}: type that for {SERVERLESS}."
    return f"{fix} {then}".rstrip()


def about(paths: Sequence[str], command: str = "") -> dict[str, Any]:
    """Details of a finding about paths, bounded; `command` is the fix as it is typed."""
    details: dict[str, Any] = {"paths": [shown(p) for p in paths[:MOST_PATHS]]}
    details["count"] = len(paths)
    return {**details, "command": command} if command else details
