"""ComfyUI as a child process: start, log, end, restart. For whether it answers see readiness.

Its start writes a hundred lines that are the same on every worker, a traceback for each optional
node whose packages are missing, and a banner about an unused front end. These are kept for
diagnostics and shown with COMFY_LOG_LEVEL=debug. Unknown lines are always shown.
"""

from __future__ import annotations

import logging
import os
import re
import select
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bootstrap.comfyui import run_main
from bootstrap.comfyui.exits import Exit, explain_exit
from bootstrap.comfyui.launch import Folders, arguments
from bootstrap.core import child_guard
from bootstrap.core.findings import Finding, host_error
from bootstrap.core.redact import masked

_log = logging.getLogger("comfyui")

# ComfyUI's main.py, nodes.py, server.py, model_management.py, app/, and alembic, 2023 to v0.38.
_ROUTINE = re.compile(
    r"""Adding\ (?:extra\ search\ path|.*\ to\ sys\.path)
    | Setting\ \w+\ directory\ to:
    | Checkpoint\ files\ will\ always\ be\ loaded\ safely
    | Total\ VRAM | pytorch\ version: | xformers\ version: | Set\ vram\ state\ to: | Device:
    | Using\ .*attention | Enabled\ pinned\ memory | Using\ async\ weight\ offloading
    | VAE\ dtype: | Disabling\ smart\ memory | working\ around\ nvidia | Found\ comfy_kitchen
    | torchaudio\ missing | comfy-aimdo | DynamicVRAM
    | Python\ version: | ComfyUI\ (?:version|frontend\ version): | \*\*\ | Prestartup\ times
    | \[Prompt\ Server\] | Import\ times\ for\ custom\ nodes | \ +\d+\.\d+\ seconds:
    | WARNING:\ some\ comfy_(?:extras|api_nodes)/\ nodes\ did\ not\ import
    | IMPORT\ FAILED:\ nodes_ | This\ issue\ might\ be\ caused\ by\ new\ missing\ dependencies
    | Please\ do\ a:\ pip\ install
    | setup\ plugin\ alembic | Context\ impl\ SQLiteImpl | Will\ assume\ non-transactional
    | Revision\ ID: | Revises: | Create\ Date: | Change\ preview_id\ FK
    | Using\ (?:RAM\ pressure|LRU)\ cache | comfy-kitchen | No\ OpenGL_accelerate
    | No\ target\ revision | (?:Will\ assume|Running)\ .*upgrade | Database\ (?:is|upgraded)
    | INFO\ +\[alembic | comfyui-(?:embedded-docs|workflow-templates)\ .*(?:not\ found|version)
    | Starting\ server | To\ see\ the\ GUI\ go\ to: | Asset\ seeder | \[ComfyUI-Manager\]\ network
    """,
    re.VERBOSE,
)
_TRACEBACK = "Traceback (most recent call last):"
_CHAINED = ("During handling of the above exception", "The above exception was the direct cause")
# This line has the reason, which is enough for ComfyUI's own nodes.
_OPTIONAL = re.compile(r"Cannot import \S*/comfy_(?:extras|api_nodes)/")
_BANNER = re.compile(r"_{20,}|\*+ ERROR \*+")
_FRONT_END = re.compile(r"front-?end|workflow-templates|embedded-docs")
# Since May 2026 (app/logger.py), to pipes too: a coloured level, then the message.
_LEVEL = re.compile(r"(?:\x1b\[1m)?\x1b\[3\dm\[([A-Z]+)\]\x1b\[0m ")
_SERIOUS = {
    "WARNING": logging.WARNING,
    "ERROR": logging.ERROR,
    "CRITICAL": logging.CRITICAL,
}
# Colours and cursor movements, ComfyUI's and its nodes'.
_TERMINAL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_MOST_HELD = 100
_KEPT_EXITS = 5
_KEPT_LINES = 2000  # custom nodes log while they are imported
_LINE_END = re.compile(rb"[\r\n]+")
_PROMPT_ENDED = "Prompt executed in"  # logged after each prompt, however it ended
_HELD_SECONDS = 0.3  # how long a line is held until the next one shows its meaning
_STOP_SECONDS = child_guard.GRACE_SECONDS + 3
# faulthandler writes at once, in small pieces.
_STACKS_SECONDS, _STACKS_PAUSE = 3.0, 0.2
CODES = {"comfyui.not_startable": "The operating system refused to start ComfyUI"}


@dataclass(frozen=True)
class Launch:
    """Everything needed to start ComfyUI. `display_root` is its place on the volume; its log names
    files there, where they can be fixed, and not in the running copy at `comfyui`. `label` prefixes
    its log lines if there are several ComfyUIs.
    """

    python: Path
    comfyui: Path
    folders: Folders
    known_flags: frozenset[str]
    extra_args: tuple[str, ...]
    env: Mapping[str, str]
    port: int
    display_root: Path | None = None
    label: str = ""


class ComfyUI:
    """One ComfyUI with all its restarts. Thread-safe. `exits` says how the last five processes
    ended, oldest first; the port may change with a restart. `was_ready` is set by the caller that
    has seen the current process answer. `prompts_ended` is counted from its log.
    """

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self.port = 0
        self.was_ready = False
        self.prompts_ended = 0
        self.exits: tuple[Exit, ...] = ()
        self._ended = 0
        self._lines = 0
        self._lock = threading.RLock()  # held briefly: the event loop takes it too
        self._changing = threading.Lock()  # while it is started or stopped
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._started = 0.0
        self._log: deque[str] = deque(maxlen=_KEPT_LINES)
        self._own_log: deque[str] = deque(maxlen=_KEPT_LINES)

    @property
    def url(self) -> str:
        """Where it listens, without a trailing slash."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def started_at(self) -> float:
        """When the current process was started, by `time.monotonic()`."""
        return self._started

    @property
    def generation(self) -> int:
        """How often it was started; changes with each new process."""
        return self._ended + (self._process is not None)

    def log_tail(self, lines: int = 30) -> list[str]:
        """The last lines it wrote, across restarts."""
        return list(self._log)[-lines:]

    def start(self) -> bool:
        """Start the process if none runs; True if it did. Raises OSError if it cannot be
        started."""
        with self._changing, self._lock:
            if self._process is not None and self.ended() is None:
                return False
            self._collect()
            # A port that was taken once may be taken again, so use any free one.
            taken = bool(self.exits) and explain_exit(self.exits[-1]).port_taken
            self.port = _free_port(0 if taken else self.launch.port)
            self.was_ready = False
            self._process = self._spawn()
            self._started = time.monotonic()
            # One per process, so that an earlier one's last lines do not explain a later one's end.
            self._own_log = deque(maxlen=_KEPT_LINES)
            self._reader = threading.Thread(
                target=self._read,
                args=(self._process.stdout, self._own_log),
                name="comfyui-log",
                daemon=True,
            )
            self._reader.start()
            return True

    def ended(self) -> Exit | None:
        """How the process ended; None while it runs."""
        with self._lock:
            if self._process is None:
                return self.exits[-1] if self.exits else None
            code = self._process.poll()
            if code is None:
                return None
            self._collect()
            return self.exits[-1]

    def cpu_seconds(self) -> float | None:
        """CPU time used by the process behind the guard; None if unknown."""
        try:
            ticks = Path(f"/proc/{self._pid()}/stat").read_text().rpartition(")")[2].split()[11:13]
        except (OSError, ValueError):
            return None
        return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")

    def stacks(self, seconds: float = _STACKS_SECONDS) -> list[str]:
        """The stacks of all its threads, as faulthandler writes them, innermost call first; empty
        if nothing comes within `seconds`."""
        before = self._lines
        try:
            pid = self._pid()
            if not _catches(pid, run_main.ASK_STACKS):
                return []
            os.kill(pid, run_main.ASK_STACKS)
        except (OSError, ValueError):
            return []
        end, seen = time.monotonic() + seconds, before
        while time.monotonic() < end:
            time.sleep(_STACKS_PAUSE)
            if seen == self._lines != before:
                break
            seen = self._lines
        return self.log_tail(self._lines - before) if self._lines > before else []

    def _pid(self) -> int:
        """ComfyUI's own process id, behind the guard. Raises OSError or ValueError."""
        with self._lock:
            guard_pid = self._process.pid if self._process is not None else 0
        (pid, *_) = Path(f"/proc/{guard_pid}/task/{guard_pid}/children").read_text().split()
        return int(pid)

    def stop(self) -> None:
        """Stop the process and its children; returns when they are gone."""
        with self._changing:
            process = self._process
            if process is None:
                return
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()  # the guard; its child dies with it
                process.wait()
            self.ended()

    def _spawn(self) -> subprocess.Popen[bytes]:
        args, _ = arguments(
            self.launch.known_flags, self.launch.folders, self.port, self.launch.extra_args
        )
        guarded = [sys.executable, "-I", "-S", child_guard.__file__, str(os.getpid())]
        watched = [str(self.launch.python), run_main.__file__, "main.py"]
        return subprocess.Popen(
            [*guarded, *watched, *args],
            cwd=self.launch.comfyui,
            env=dict(self.launch.env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def _collect(self) -> None:
        """Record an ended process in `exits`, with its last lines."""
        if self._process is None or self._process.poll() is None:
            return
        if self._reader is not None:
            self._reader.join(1)
        seconds = time.monotonic() - self._started
        code = self._process.returncode
        ended = Exit(code, tuple(self._own_log), self.launch.python, seconds)
        self.exits = (*self.exits, ended)[-_KEPT_EXITS:]
        self._ended += 1
        self._process = None

    def _read(self, pipe: IO[bytes], own_log: deque[str]) -> None:
        """Pass the log on line by line; a progress bar's `\\r` ends a line too."""
        rest, lines = b"", LogLines()
        while chunk := self._next_chunk(pipe, lines):
            *ended, rest = _LINE_END.split(rest + chunk)
            if len(rest) > 65536:
                ended, rest = [*ended, rest], b""
            for line in ended:
                self._keep(line, own_log, lines)
        self._keep(rest, own_log, lines)
        self._show(lines.flush())
        pipe.close()

    def _keep(self, line: bytes, own_log: deque[str], lines: LogLines) -> None:
        text, level = read_line(line)
        text = masked(text)
        if self.launch.display_root is not None:
            text = text.replace(str(self.launch.comfyui), str(self.launch.display_root))
        if text:
            self.prompts_ended += text.startswith(_PROMPT_ENDED)
            self._lines += 1
            own_log.append(text)
            self._log.append(text)
            self._show(lines.feed(text, level))

    def _next_chunk(self, pipe: IO[bytes], lines: LogLines) -> bytes:
        """The next output; empty at the end. Held lines do not wait for it."""
        if lines.holds:
            poll = select.poll()
            poll.register(pipe, select.POLLIN)
            if not poll.poll(1000 * _HELD_SECONDS):
                self._show(lines.flush())
        return os.read(pipe.fileno(), 65536)

    def _show(self, lines: list[tuple[int, str]]) -> None:
        for level, text in lines:
            _log.log(level, "%s%s", self.launch.label, text)


def read_line(line: bytes) -> tuple[str, int]:
    """A line of output without colours, and the level that ComfyUI gives it: WARNING and above;
    INFO for all others, and for all of an older ComfyUI."""
    text = line.decode("utf-8", "replace")
    named = _LEVEL.search(text)
    text = _TERMINAL.sub("", _LEVEL.sub("", text)).rstrip()
    return text, _SERIOUS.get(named[1], logging.INFO) if named else logging.INFO


def _catches(pid: int, number: int) -> bool:
    """Does that process handle the signal? Otherwise it would die of it. Raises OSError."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, mask = line.partition(":")
        if name == "SigCgt":
            return bool(int(mask, 16) >> (number - 1) & 1)
    return False


def _free_port(wanted: int) -> int:
    """`wanted` if nothing listens there, else any free port (0: any)."""
    for port in dict.fromkeys((wanted, 0)):
        with socket.socket() as probe:
            # As ComfyUI binds, so that leftover connections to the previous process do not matter.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise OSError("no free port on 127.0.0.1")


def not_startable(problem: OSError) -> Finding:
    """The operating system would not run ComfyUI's Python."""
    return host_error(
        "comfyui.not_startable",
        f"ComfyUI could not be started: {problem}.",
        "Nothing to do if Runpod uses another machine; if it stays, choose a larger worker.",
    )


class LogLines:
    """Tells the routine lines of one process (DEBUG) from those to be shown (at their own level).

    Lines whose meaning is clear only at their end (a traceback, a banner) are held until then: call
    `flush` if nothing follows for a moment, and at the end.
    """

    def __init__(self) -> None:
        self._held: list[str] = []
        self._level = logging.INFO  # the highest of those held
        self._raised = False  # a traceback's last line was seen

    @property
    def holds(self) -> bool:
        """Is anything held?"""
        return bool(self._held)

    def feed(self, line: str, level: int) -> list[tuple[int, str]]:
        """Lines that can be judged now, with their level."""
        if not self._held:
            if line == _TRACEBACK or _BANNER.fullmatch(line):
                self._raised = False
                self._hold(line, level)
                return []
            return [(logging.DEBUG if _ROUTINE.match(line) else level, line)]
        in_banner = self._held[0] != _TRACEBACK
        return self._in_banner(line, level) if in_banner else self._in_traceback(line, level)

    def flush(self) -> list[tuple[int, str]]:
        """The held lines, to be shown."""
        return self._released(self._level)

    def _in_banner(self, line: str, level: int) -> list[tuple[int, str]]:
        self._hold(line, level)
        if _BANNER.fullmatch(line):
            harmless = any(_FRONT_END.search(held) for held in self._held)
            return self._released(logging.DEBUG) if harmless else self.flush()
        return self.flush() if len(self._held) > _MOST_HELD else []

    def _in_traceback(self, line: str, level: int) -> list[tuple[int, str]]:
        if not self._raised or line.startswith((" ", *_CHAINED)):
            self._raised = not line.startswith((" ", _TRACEBACK, *_CHAINED))
            self._hold(line, level)
            return self.flush() if len(self._held) > _MOST_HELD else []
        if _OPTIONAL.match(line):
            return [*self._released(logging.DEBUG), (level, line)]
        return [*self.flush(), *self.feed(line, level)]

    def _hold(self, line: str, level: int) -> None:
        self._held.append(line)
        self._level = max(self._level, level)

    def _released(self, level: int) -> list[tuple[int, str]]:
        held, self._held, self._level = self._held, [], logging.INFO
        return [(level, line) for line in held]
