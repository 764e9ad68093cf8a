"""Runs uv as a child: where it is, its index, its time limit, its messages.

It dies with the worker (child_guard.py). pip's settings apply, unless uv has its own. It gets no
secrets except an index's login, and no login reaches the log.
"""

from __future__ import annotations

import ast
import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from shutil import which
from urllib.parse import unquote

from bootstrap.core import child_guard
from bootstrap.core.redact import LOGIN, child_environment, masked

_log = logging.getLogger("uv")

_MOST_REASON = 600
# What the endpoint may set for uv: where packages come from and how they are fetched. What is
# installed, for which Python and where is decided here.
_PASSED = re.compile(
    r"UV_(?:DEFAULT_INDEX|INDEX(?:_URL|_STRATEGY|_[A-Z0-9_]+_(?:USERNAME|PASSWORD))?"
    r"|EXTRA_INDEX_URL|FIND_LINKS|NO_INDEX|KEYRING_PROVIDER|INSECURE_HOST|HTTP_\w+|OFFLINE"
    r"|CONCURRENT_\w+|NATIVE_TLS|SYSTEM_CERTS|CACHE_DIR|CONFIG_FILE|NO_CONFIG|EXCLUDE_NEWER"
    r"|NO_BUILD|NO_BUILD_PACKAGE|NO_BINARY|NO_BINARY_PACKAGE)"
)
_OWN_INDEX = (
    "UV_DEFAULT_INDEX UV_INDEX UV_INDEX_URL UV_EXTRA_INDEX_URL UV_FIND_LINKS UV_NO_INDEX "
    "UV_CONFIG_FILE"
).split()
# Not the packages are at fault but the connection: a retry may succeed.
_PASSING = re.compile(
    r"Request failed after|Failed to fetch|Failed to download|error sending request"
    r"|lack of valid authentication|returned a 403|No space left on device|Disk quota exceeded"
    r"|Connection (?:refused|reset)|timed out|dns error|network (?:was|is) disabled"
    r"|Git operation failed|unexpected argument"
)
_NOT_BUILT = re.compile(r"Failed to (?:download and )?build `(?P<name>[\w.-]+)(?P<at> @ )?")
_TRUE = frozenset({"1", "true", "yes", "on"})


class UvFailed(Exception):
    """uv failed; the message is its reason. `passing`: a retry may succeed. `package` is the one
    that could not be built, if that is the reason."""

    def __init__(self, reason: str, passing: bool, package: str | None = None) -> None:
        super().__init__(reason)
        self.passing = passing
        self.package = package


def find_uv() -> Path | None:
    """uv beside the worker's own Python, where requirements/worker.txt installs it, else on
    PATH."""
    beside = Path(sys.executable).parent / "uv"
    if os.access(beside, os.X_OK):
        return beside
    found = which("uv")
    return Path(found) if found else None


class Uv:
    """uv for the interpreter `python`, until `deadline` (monotonic). `env` is the worker's,
    `scratch` a folder on local disk for downloads and builds."""

    def __init__(
        self, uv: Path, python: Path, env: Mapping[str, str], scratch: Path, deadline: float
    ) -> None:
        self._uv = uv
        self._python = python
        self._scratch = scratch
        self._deadline = deadline
        self._secrets = secrets_in(env)
        pip = {} if any(env.get(name) for name in _OWN_INDEX) else pip_settings(python, env)
        self._env = uv_environment(env, python, scratch, pip)
        self.where = masked(self._env.get("UV_DEFAULT_INDEX") or env.get("UV_INDEX_URL") or "PyPI")
        # uv has no variable for this.
        no_index = pip.get("no-index", env.get("UV_NO_INDEX", "")).lower() in _TRUE
        self._flags = ["--no-index"] if no_index else []
        self.constraint_files = [
            file
            for text in (pip.get("constraint", ""), env.get("UV_CONSTRAINT", ""))
            for file in text.split()
            if os.path.isfile(file)
        ]

    def run(self, *arguments: str) -> str:
        """Run `uv pip arguments…`; returns its stdout. Messages of failures other than conflicts
        are logged.

        Raises UvFailed.
        """
        flags = self._flags if arguments[0] != "uninstall" else []
        command = [str(self._uv), "pip", *arguments, *flags, "--python", str(self._python)]
        code, output, lines = self._communicate(command)
        if code and time.monotonic() >= self._deadline:
            raise UvFailed("it did not finish in time", True)
        if code < 0:
            raise UvFailed(f"uv was killed by signal {-code}", True)
        if code:
            raise self._failure(lines)
        return output

    def _failure(self, lines: Sequence[str]) -> UvFailed:
        text = "\n".join(lines)
        on_the_way = bool(_PASSING.search(text)) or "error: " not in text
        built = _NOT_BUILT.search(text)
        # For an address it is that server's fault; the index may be fine.
        package = built["name"] if built and (built["at"] or not on_the_way) else None
        if package or on_the_way:  # a conflict is a finding, and is often only asked about
            for line in lines:
                _log.info(line)
        return UvFailed(reason_in(lines), on_the_way and package is None, package)

    def python(self, *arguments: str, env: Mapping[str, str]) -> str:
        """Run the interpreter with `env` added; returns its output. Raises UvFailed."""
        code, output, lines = self._communicate(
            [str(self._python), *arguments], {**self._env, **env}
        )
        if code and time.monotonic() >= self._deadline:
            raise UvFailed("it did not finish in time", True)
        if code:
            said = [line for line in lines if line.strip()] or [f"exit code {code}"]
            raise UvFailed(said[-1].strip()[:_MOST_REASON], False)
        return output

    def _communicate(
        self, command: Sequence[str], env: Mapping[str, str] | None = None
    ) -> tuple[int, str, list[str]]:
        guarded = [sys.executable, "-I", "-S", child_guard.__file__, str(os.getpid()), *command]
        output: list[str] = []
        try:
            process = subprocess.Popen(
                guarded,
                env=dict(self._env if env is None else env),
                cwd=self._scratch,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        except OSError as problem:
            raise UvFailed(f"uv could not be started: {problem}", True) from problem
        timer = threading.Timer(max(0.0, self._deadline - time.monotonic()), process.terminate)
        timer.start()
        with process:
            assert process.stdout is not None and process.stderr is not None
            reader = threading.Thread(target=lambda: output.extend(process.stdout or ()))
            reader.start()
            lines = [self._cleaned(line) for line in process.stderr]
            reader.join()
        timer.cancel()
        return process.returncode, "".join(output), lines

    def _cleaned(self, line: str) -> str:
        """Without secrets, and without the scratch folder, which is gone when this is read."""
        text = masked(line.rstrip()).replace(f"{self._scratch}/", "")
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


def reason_in(lines: Sequence[str]) -> str:
    """uv's reason for failing: causes and hints, without its preamble."""
    said = [line.strip() for line in lines if line.strip()]
    _, found, text = " ".join(said).partition("error: ")
    if not found:  # not uv's own message
        return (said or ["it gave no reason"])[-1][:_MOST_REASON]
    text = text.removeprefix("No solution found when resolving dependencies")
    text = " ".join(part.rstrip() for part in text.split("cause: ")).strip()
    text = re.sub(r" @ file://\S*", "", text)
    text = re.sub(r",? we can conclude that your requirements are unsatisfiable\.?", "", text)
    return (text.rstrip(". ") or "it gave no reason")[:_MOST_REASON]


def pip_settings(python: Path, env: Mapping[str, str]) -> dict[str, str]:
    """pip's settings by name (`index-url`), from variables and files, as pip itself reads them."""
    for each in (python, Path(sys.executable)):
        command = [str(each), "-m", "pip", "config", "list"]
        try:
            child = subprocess.run(
                command,
                env=dict(env),
                capture_output=True,
                text=True,
                errors="replace",
                timeout=20,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            continue
        ranks = {"global": 0, "install": 1, ":env:": 2}
        entries = [_setting(line) for line in child.stdout.splitlines()]
        known = [entry for entry in entries if entry is not None and entry[0] in ranks]
        known.sort(key=lambda entry: ranks[entry[0]])
        return {name: value for _, name, value in known}
    return {}


def _setting(line: str) -> tuple[str, str, str] | None:
    key, _, value = line.partition("=")
    section, _, name = key.rpartition(".")
    try:
        return section, name, str(ast.literal_eval(value))
    except (ValueError, SyntaxError):
        return None


def uv_environment(
    env: Mapping[str, str], python: Path, scratch: Path, pip: Mapping[str, str]
) -> dict[str, str]:
    """ComfyUI's environment plus the settings for where packages come from. pip looks for the best
    version in all indexes, so with pip's settings uv does too."""
    child = {n: v for n, v in child_environment(env, (), python).items() if not n.startswith("UV_")}
    child |= {n: v for n, v in env.items() if _PASSED.fullmatch(n)}
    child |= _as_for_uv(pip)
    defaults = {
        "UV_CACHE_DIR": str(scratch / "cache"),
        "UV_HTTP_TIMEOUT": "20",
        "UV_HTTP_RETRIES": "2",
    }
    ours = {
        "UV_NO_PROGRESS": "1",
        "UV_PYTHON_DOWNLOADS": "never",
        "NO_COLOR": "1",
        "TMPDIR": str(scratch),
        "PYC_INVALIDATION_MODE": "UNCHECKED_HASH",
    }
    child.pop("FORCE_COLOR", None)
    return {**defaults, **child, **ours}


def _as_for_uv(pip: Mapping[str, str]) -> dict[str, str]:
    words = {name: " ".join(value.split()) for name, value in pip.items()}
    proxy = words.get("proxy", "")
    if words.get("no-index", "").lower() in _TRUE:
        words = {n: v for n, v in words.items() if n not in ("index-url", "extra-index-url")}
    said = {
        "UV_DEFAULT_INDEX": words.get("index-url", ""),
        "UV_EXTRA_INDEX_URL": words.get("extra-index-url", ""),
        "UV_INDEX_STRATEGY": "unsafe-best-match" if words.get("extra-index-url") else "",
        "UV_FIND_LINKS": words.get("find-links", "").replace(" ", ","),
        "UV_INSECURE_HOST": words.get("trusted-host", ""),
        "UV_HTTP_TIMEOUT": words.get("timeout", words.get("default-timeout", "")),
        "UV_HTTP_RETRIES": words.get("retries", ""),
        "SSL_CERT_FILE": words.get("cert", ""),
        "SSL_CLIENT_CERT": words.get("client-cert", ""),
        "HTTP_PROXY": proxy,
        "HTTPS_PROXY": proxy,
    }
    return {name: value for name, value in said.items() if value}


def secrets_in(env: Mapping[str, str]) -> list[str]:
    """Passwords in addresses, encoded and decoded, and those of named indexes; longest first."""
    found = {v for n, v in env.items() if re.fullmatch(r"UV_INDEX_\w+_PASSWORD", n)}
    for value in env.values():
        for match in LOGIN.findall(value):
            user, colon, password = match[:-1].partition(":")
            found |= {password if colon else user, unquote(password if colon else user)}
    return sorted((secret for secret in found if len(secret) > 3), key=len, reverse=True)
