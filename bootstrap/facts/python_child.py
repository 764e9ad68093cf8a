"""What an interpreter says about itself, asked in one short child process."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

# 0.05 s on local disk; on a cold network volume, where starting reads some 100 files, seconds.
ASK_SECONDS = 15.0
_MOST_REASON = 300
# Valid for every Python 3. With -I the user's own site-packages (~/.local) are left out, but
# ComfyUI sees them where its interpreter is no closed-off venv, so they are named here.
# What .pth files print stands before the last line.
_ASK = """
import json, os, platform, site, sys
own = lambda p: p.startswith(sys.base_prefix) and p.endswith("-packages")
user = sys.prefix == sys.base_prefix or any(own(p) for p in sys.path)
info = getattr(sys.implementation, "version", sys.version_info)
said = {
    "version": platform.python_version(), "prefix": sys.prefix, "base_prefix": sys.base_prefix,
    "path": sys.path + ([site.getusersitepackages()] if user else []),
    "stdlib": os.path.dirname(os.__file__), "tag": sys.implementation.cache_tag or "",
    "managed": sys.prefix == sys.base_prefix
    and os.path.exists(os.path.join(os.path.dirname(os.__file__), "EXTERNALLY-MANAGED")),
    "markers": {
        "os_name": os.name, "sys_platform": sys.platform,
        "platform_machine": platform.machine(), "platform_system": platform.system(),
        "platform_release": platform.release(), "platform_version": platform.version(),
        "platform_python_implementation": platform.python_implementation(),
        "python_version": "%d.%d" % sys.version_info[:2],
        "python_full_version": platform.python_version(),
        "implementation_name": sys.implementation.name,
        "implementation_version": "%d.%d.%d" % tuple(info)[:3],
    },
}
print()
print(json.dumps(said))
"""


class Trouble(str, Enum):
    """Why an interpreter cannot be used."""

    MISSING = "missing"
    LINK_BROKEN = "link_broken"
    NOT_EXECUTABLE = "not_executable"
    NO_LOADER = "no_loader"
    OTHER_MACHINE = "other_machine"
    FAILED = "failed"
    SILENT = "silent"


@dataclass(frozen=True)
class Failure:
    """What kept an interpreter from answering, and the system's or its own words."""

    trouble: Trouble
    reason: str


def ask_python(
    python: Path, env: Mapping[str, str], timeout: float = ASK_SECONDS
) -> dict[str, Any] | Failure:
    """What `python` says of itself (see `_ASK`), or why it says nothing; `timeout` in seconds."""
    if not os.path.exists(python):
        if os.path.islink(python):
            return Failure(Trouble.LINK_BROKEN, f"it leads to {os.path.realpath(python)}")
        return Failure(Trouble.MISSING, "there is no such file")
    try:
        child = subprocess.run(
            [str(python), "-I", "-c", _ASK],
            env=dict(env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
    except OSError as problem:
        return _not_started(problem)
    except subprocess.TimeoutExpired:
        return Failure(Trouble.SILENT, f"no answer in {timeout:g} s")
    if child.returncode != 0:
        return Failure(Trouble.FAILED, _last_words(child.stderr, child.returncode))
    return _understood(child.stdout)


def _not_started(problem: OSError) -> Failure:
    reason = problem.strerror or str(problem)
    if problem.errno == errno.ENOENT:
        # The file is there, so what is not is its loader (glibc's on Alpine), or the interpreter
        # that its first line names: execve(2).
        return Failure(Trouble.NO_LOADER, reason)
    if problem.errno == errno.ENOEXEC:
        return Failure(Trouble.OTHER_MACHINE, reason)
    if problem.errno in (errno.EACCES, errno.EPERM):
        return Failure(Trouble.NOT_EXECUTABLE, reason)
    return Failure(Trouble.FAILED, reason)


def _last_words(stderr: bytes, code: int) -> str:
    lines = [line.strip() for line in stderr.decode("utf-8", "replace").splitlines()]
    # After a failed start Python adds lines about threads and an empty stack.
    telling = [line for line in lines if "rror" in line or "not found" in line]
    words = (telling or [line for line in lines if line] or [f"exit code {code}"])[-1]
    return words[:_MOST_REASON]


def _understood(stdout: bytes) -> dict[str, Any] | Failure:
    lines = stdout.decode("utf-8", "surrogateescape").splitlines()
    try:
        said = json.loads(lines[-1])
    except (IndexError, ValueError):
        return Failure(Trouble.FAILED, "it answered something that is not understood")
    if not isinstance(said, dict) or not isinstance(said.get("path"), list):
        return Failure(Trouble.FAILED, "it answered something that is not understood")
    return said
