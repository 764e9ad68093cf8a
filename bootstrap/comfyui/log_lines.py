"""Pure: which of ComfyUI's lines are worth a place in the worker's log.

Its start writes a hundred lines that are the same on every worker, a traceback for each of its own
optional nodes whose packages are absent, and a banner about a front end that is not used here.
They are kept for diagnostics and shown with COMFY_LOG_LEVEL=debug. What is not known is shown.
"""

from __future__ import annotations

import logging
import re

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
    | No\ target\ revision | (?:Will\ assume|Running)\ .*upgrade | Database\ (?:is|upgraded)
    | INFO\ +\[alembic | comfyui-(?:embedded-docs|workflow-templates)\ .*(?:not\ found|version)
    | Starting\ server | To\ see\ the\ GUI\ go\ to: | Asset\ seeder | \[ComfyUI-Manager\]\ network
    """,
    re.VERBOSE,
)
_TRACEBACK = "Traceback (most recent call last):"
_CHAINED = ("During handling of the above exception", "The above exception was the direct cause")
# The reason is in this line: of ComfyUI's own nodes, that is all there is to know.
_OPTIONAL = re.compile(r"Cannot import \S*/comfy_(?:extras|api_nodes)/")
_BANNER = re.compile(r"_{20,}|\*+ ERROR \*+")
_FRONT_END = re.compile(r"front-?end|workflow-templates|embedded-docs")
_MOST_HELD = 100


class LogLines:
    """Sorts the lines of one process into what is shown (INFO) and what is routine (DEBUG).

    Lines whose meaning shows only at their end (a traceback, a banner) are held until then: call
    `flush` where nothing follows for a moment, and at the end.
    """

    def __init__(self) -> None:
        self._held: list[str] = []
        self._raised = False  # a traceback's last line was seen

    @property
    def holds(self) -> bool:
        """Is anything held?"""
        return bool(self._held)

    def feed(self, line: str) -> list[tuple[int, str]]:
        """Lines that can be judged now, with their level."""
        if not self._held:
            if line == _TRACEBACK or _BANNER.fullmatch(line):
                self._held, self._raised = [line], False
                return []
            return [(logging.DEBUG if _ROUTINE.match(line) else logging.INFO, line)]
        in_banner = self._held[0] != _TRACEBACK
        return self._in_banner(line) if in_banner else self._in_traceback(line)

    def flush(self) -> list[tuple[int, str]]:
        """What is held, to be shown."""
        return self._released(logging.INFO)

    def _in_banner(self, line: str) -> list[tuple[int, str]]:
        self._held.append(line)
        if _BANNER.fullmatch(line):
            harmless = any(_FRONT_END.search(held) for held in self._held)
            return self._released(logging.DEBUG if harmless else logging.INFO)
        return self.flush() if len(self._held) > _MOST_HELD else []

    def _in_traceback(self, line: str) -> list[tuple[int, str]]:
        if not self._raised or line.startswith((" ", *_CHAINED)):
            self._raised = not line.startswith((" ", _TRACEBACK, *_CHAINED))
            self._held.append(line)
            return self.flush() if len(self._held) > _MOST_HELD else []
        if _OPTIONAL.match(line):
            return [*self._released(logging.DEBUG), (logging.INFO, line)]
        return [*self.flush(), *self.feed(line)]

    def _released(self, level: int) -> list[tuple[int, str]]:
        held, self._held = self._held, []
        return [(level, line) for line in held]
