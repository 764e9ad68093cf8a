"""What this endpoint used last, remembered on the volume for the next cold start.

    .comfyui-worker/recent/<endpoint>.json   {"version": 1, "models": ["checkpoints/a.ckpt"]}

Several workers write it: each whole, by rename, the last one wins; it is advice, nothing more.
Paths are below `models/`, so that they mean the same on a Pod.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bootstrap.core.files import write_whole
from bootstrap.volume.layout import OWN_FOLDER

_VERSION = 1
_MOST_MODELS = 32
_MOST_BYTES = 4 * 1024 * 1024


class Recent:
    """The record of one endpoint (`default` where there is no id). Nothing here raises."""

    def __init__(self, root: Path, endpoint: str | None) -> None:
        name = re.sub(r"[^A-Za-z0-9_-]", "_", endpoint or "default")[:64]
        self._path = root / OWN_FOLDER / "recent" / f"{name}.json"
        self._written: Mapping[str, Any] | None = None

    def models(self) -> list[str]:
        """Paths below `models/`, the last used first."""
        models = self._read().get("models")
        named = models if isinstance(models, list) else []
        return [m for m in named if isinstance(m, str) and _is_below(m)][:_MOST_MODELS]

    def likely(self, wanted: str) -> list[str]:
        """What to read ahead, by the text of PREFETCH_MODELS: `last`, `none`, or paths below
        `models/`, separated by commas."""
        if wanted.lower() == "last":
            return self.models()
        listed = "" if wanted.lower() == "none" else wanted
        return [name.strip() for name in listed.split(",") if name.strip()]

    def workflow(self) -> Mapping[str, Any] | None:
        """The last workflow that succeeded, where one was kept."""
        workflow = self._read().get("workflow")
        return workflow if isinstance(workflow, Mapping) else None

    def note(self, models: Sequence[str], workflow: Mapping[str, Any] | None = None) -> None:
        """Remember a job's models, before those of earlier ones, and its workflow if given.

        Written only where it says something new.
        """
        merged = list(dict.fromkeys([*models, *self.models()]))[:_MOST_MODELS]
        record: dict[str, Any] = {"version": _VERSION, "models": merged}
        if workflow is not None:
            record["workflow"] = workflow
        if record == (self._written or self._read()):
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._path, json.dumps(record))
            self._written = record
        except (OSError, ValueError):
            pass  # a volume that is full or gone is reported elsewhere

    def _read(self) -> Mapping[str, Any]:
        try:
            if os.stat(self._path).st_size > _MOST_BYTES:
                return {}
            record = json.loads(self._path.read_text("utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return record if isinstance(record, dict) and record.get("version") == _VERSION else {}


def _is_below(path: str) -> bool:
    """A relative path that stays where it begins."""
    return not path.startswith("/") and ".." not in path.split("/") and "\0" not in path
