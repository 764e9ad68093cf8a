"""Pure: what pip says, understood as far as a reason can be told.

What it prints is the same for an index that is down and for a package that is not there, and leaves
out what a build said; its detailed log has both (pip/_internal: index/collector, utils/subprocess).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_MOST_REASON = 500
_MOST_OUTPUT = 20
_STAMP = re.compile(r"^\d{4}-\d\d-\d\dT[\d:,]+ ")
_PASSING = re.compile(
    r"Could not fetch URL \S+: (?!404)|Retrying \(|HTTP error (?:401|403|407|429|5\d\d)|"
    r"No module named pip|no such option: |"  # a pip that cannot do it says nothing of packages
    r"Max retries exceeded|Read timed out|No space left on device|Disk quota exceeded"
)
_BUILD_FAILED = "ERROR: [present-"
_BUILD = "Running command "


def is_passing(text: str) -> bool:
    """Was not a package at fault but the way to it, so that another try may go well?"""
    return bool(_PASSING.search(text))


def reason_in(lines: Sequence[str], output: Sequence[str] = ()) -> str:
    """Why pip failed, in its own words: what conflicts with what, or its first error with the last
    line of the `output` of a build."""
    conflict = [i for i, line in enumerate(lines) if line.startswith("The conflict is caused by")]
    if conflict:
        block = lines[conflict[-1] + 1 :]
        causes = [line.strip() for line in block if line.startswith(" ")]
        return "; ".join(dict.fromkeys(causes))[:_MOST_REASON]
    errors = [line.strip() for line in lines if re.search("[Ee]rror|ERROR|No module", line)]
    first = next((e for e in errors if e.startswith("ERROR: ")), None)
    words = first or (errors or list(lines) or ["it gave no reason"])[-1]
    said = f" ({output[-1].strip()})" if output else ""
    return f"{words.removeprefix('ERROR: ')}{said}"[:_MOST_REASON]


def build_output(log: str) -> list[str]:
    """The last lines of the build that failed, from the detailed log; none where none did."""
    lines = [_STAMP.sub("", line) for line in log.splitlines()]
    ends = [i for i, line in enumerate(lines) if line.lstrip().startswith(_BUILD_FAILED)]
    if not ends:
        return []
    starts = [i for i in range(ends[-1]) if lines[i].lstrip().startswith(_BUILD)]
    output = lines[starts[-1] + 1 : ends[-1]] if starts else []
    return [line for line in output if line.strip()][-_MOST_OUTPUT:]
