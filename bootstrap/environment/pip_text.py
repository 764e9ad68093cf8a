"""Pure: what pip says, understood as far as a reason can be told, and pip commands to type.

What it prints is the same for an index that is down and for a package that is not there, and leaves
out what a build said; its detailed log has both (pip/_internal: index/collector, utils/subprocess).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from bootstrap.core.redact import MASK, masked
from bootstrap.core.text import on_pod, typed
from bootstrap.environment.site_packages import PackagesFacts

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
# Each is built for one torch: pip brings another torch with another version of these.
_BOUND_TO_TORCH = frozenset({"torchvision", "torchaudio", "torchtext", "xformers", "flash-attn"})


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


def pip_install(packages: PackagesFacts, requirements: Iterable[tuple[str, str]]) -> str:
    """The command that installs requirements, given as (normalised name, text).

    It keeps torch as it is where something bound to torch is installed, gets pip first where the
    venv has none, and passes Debian's guard where the interpreter is the system's own.
    """
    wanted = {name: masked(text) for name, text in requirements}
    torch = public_torch(packages)
    if torch and "torch" not in wanted and _BOUND_TO_TORCH & set(wanted):
        wanted["torch"] = f"torch=={torch}"
    flags = ["--break-system-packages"] if packages.managed else []
    command = typed(packages.python, "-m", "pip", "install", *flags, *wanted.values())
    if packages.packages and not packages.versions_of("pip"):
        return f"{typed(packages.python, '-m', 'ensurepip')} && {command}"
    return command


def public_torch(packages: PackagesFacts) -> str | None:
    """The installed torch's version without its local part: `2.9.1` of `2.9.1+cu128`."""
    version = next(iter(packages.versions_of("torch")), None)
    return version.partition("+")[0] if version else None


def where_to_type(command: str, python: str, comfyui: str, then: str = "") -> str:
    """A fix that changes `python`: on a Pod when it lies on ComfyUI's volume, else in the image."""
    if MASK in command:
        login = f"Where it says {MASK}, type the login that the requirements file has."
        then = f"{login} {then}".rstrip()
    volume = comfyui.rstrip("/").rpartition("/")[0]
    if volume and python.startswith(f"{volume}/"):
        return on_pod(command, volume, then)
    fix = f"`{command}`, as a RUN line in the image's Dockerfile (a Pod forgets it when it ends)."
    return f"{fix} {then}".rstrip()
