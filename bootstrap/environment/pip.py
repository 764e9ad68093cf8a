"""pip of another interpreter, run as a child: its network settings, its deadline, its last words.

It dies with the worker (guard.py), and no password of an index address gets into the log.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote

from bootstrap.core import guard
from bootstrap.core.log import say
from bootstrap.core.redact import LOGIN, child_environment, masked
from bootstrap.environment.pip_text import build_output, is_passing, reason_in

# Where packages go and which ones is ours to say, whatever the image or the endpoint sets.
_NOT_PASSED = frozenset(
    "PIP_TARGET PIP_PREFIX PIP_ROOT PIP_USER PIP_REQUIREMENT PIP_EDITABLE PIP_NO_DEPS PIP_DRY_RUN "
    "PIP_REPORT PIP_UPGRADE PIP_FORCE_REINSTALL PIP_IGNORE_INSTALLED PIP_REQUIRE_VIRTUALENV "
    "PIP_QUIET PIP_VERBOSE PIP_LOG PIP_PYTHON PIP_NO_CLEAN PIP_COMPILE PIP_NO_COMPILE".split()
)
_SAID_TOO_OFTEN = ("Requirement already satisfied", "Looking in indexes")
_MOST_LOG = 4 << 20


class PipFailed(Exception):
    """pip ended with an error; the message is its reason. `passing`: another try may go well,
    since not the packages were at fault but the way to them."""

    def __init__(self, reason: str, passing: bool) -> None:
        super().__init__(reason)
        self.passing = passing


class Pip:
    """pip of `python`, with what `env` says of the network, until `deadline` (monotonic).

    `scratch` is a folder on local disk for its temporary files and downloads.
    """

    def __init__(
        self, python: Path, env: Mapping[str, str], scratch: Path, deadline: float
    ) -> None:
        self._python = python
        self._env = pip_environment(env, python, scratch)
        self._secrets = _secrets_in(env)
        self._deadline = deadline
        self._log = scratch / "pip.log"

    def run(self, *arguments: str, module: str = "pip") -> None:
        """`python -m pip arguments…`, each line to the log. Raises PipFailed."""
        self._log.unlink(missing_ok=True)
        guarded = [sys.executable, "-I", "-S", guard.__file__, str(os.getpid())]
        command = [*guarded, str(self._python), "-m", module, *arguments]
        try:
            process = subprocess.Popen(
                command,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        except OSError as problem:
            raise PipFailed(f"pip could not be started: {problem}", True) from problem
        left = max(0.0, self._deadline - time.monotonic())
        timer = threading.Timer(left, process.terminate)
        timer.start()
        with process:
            assert process.stdout is not None
            lines = [self._heard(line) for line in process.stdout]
        timer.cancel()
        if process.returncode and time.monotonic() >= self._deadline:
            raise PipFailed("it was not done in the time it may take", True)
        if process.returncode < 0:
            raise PipFailed(f"pip was ended by signal {-process.returncode}", True)
        if process.returncode:
            raise self._failure(lines)

    def _failure(self, lines: Sequence[str]) -> PipFailed:
        log = ""
        if self._log.is_file():
            with open(self._log, encoding="utf-8", errors="replace") as file:
                log = file.read(_MOST_LOG)
        output = [self._heard(line) for line in build_output(log)]
        return PipFailed(reason_in(lines, output), is_passing("\n".join([*lines, log])))

    def _heard(self, line: str) -> str:
        text = masked(line.rstrip())
        for secret in self._secrets:
            text = text.replace(secret, "***")
        if text and not text.lstrip().startswith(_SAID_TOO_OFTEN):
            say(text, "pip")
        return text


def pip_environment(env: Mapping[str, str], python: Path, scratch: Path) -> dict[str, str]:
    """As ComfyUI's, with pip's own settings back in it but for those that would lead it astray."""
    child = child_environment(env, (), python)
    child |= {n: v for n, v in env.items() if n.startswith("PIP_") and n not in _NOT_PASSED}
    for name in _NOT_PASSED & set(child):
        del child[name]
    defaults = {"PIP_CACHE_DIR": str(scratch / "cache"), "PIP_RETRIES": "2"}
    ours = {
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_INPUT": "1",
        "PIP_PROGRESS_BAR": "off",
        "PIP_NO_COLOR": "1",
        "PIP_ROOT_USER_ACTION": "ignore",
        "PIP_LOG": str(scratch / "pip.log"),
        "TMPDIR": str(scratch),
    }
    return {**defaults, **child, **ours}


def _secrets_in(env: Mapping[str, str]) -> list[str]:
    """Passwords in addresses, as they stand there and as they are meant; longest first."""
    found = set()
    for value in env.values():
        for match in LOGIN.findall(value):
            user, colon, password = match[:-1].partition(":")
            found |= {password if colon else user, unquote(password if colon else user)}
    return sorted((secret for secret in found if len(secret) > 3), key=len, reverse=True)
