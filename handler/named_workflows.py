"""Workflows that lie on the volume, asked for by name."""

from __future__ import annotations

import os
from pathlib import Path

from handler.errors import JobError
from handler.rejection import nearest
from handler.words import short

FOLDER = "workflows"
_MAX_BYTES = 20_000_000
_LISTED = 200


class NamedWorkflows:
    """The `.json` files in `workflows/` at the volume's root, subfolders included."""

    def __init__(self, root: Path) -> None:
        self._folder = root / FOLDER

    def read(self, name: str) -> str:
        """The text of the file of that name, with or without `.json`. Blocks on the volume. Raises
        JobError."""
        file = self._file(name)
        if file is None:
            raise self._unknown(name)
        try:
            if file.stat().st_size > _MAX_BYTES:
                raise OSError(f"it is larger than {_MAX_BYTES / 1e6:.0f} MB")
            return file.read_text("utf-8", "replace")
        except OSError as problem:
            raise JobError(
                "workflow.name_unknown",
                f"{FOLDER}/{file.name} on the volume cannot be read: {problem}.",
                "Export it from ComfyUI again: Workflow → Export (API).",
            ) from None

    def _file(self, name: str) -> Path | None:
        """Inside the folder, wherever links lead; None when there is none."""
        relative = name if name.lower().endswith(".json") else f"{name}.json"
        try:
            root = Path(os.path.realpath(self._folder))
            file = Path(os.path.realpath(root / relative))
            return file if file.is_relative_to(root) and file.is_file() else None
        except (OSError, ValueError):
            return None

    def _unknown(self, name: str) -> JobError:
        there = self._names()
        close = nearest(name, there)
        hint = f"nearest: {', '.join(close)}" if close else f"there are: {', '.join(there[:10])}"
        return JobError(
            "workflow.name_unknown",
            f"There is no workflow {short(name)} in {self._folder} ({hint if there else 'empty'}).",
            "Export it from ComfyUI (Workflow → Export (API)) into that folder, or name one that "
            "is there.",
            nearest=close,
        )

    def _names(self) -> list[str]:
        found: list[str] = []
        for parent, _, names in os.walk(self._folder):
            for name in names:
                if name.lower().endswith(".json"):
                    path = os.path.relpath(os.path.join(parent, name), self._folder)
                    found.append(os.path.splitext(path)[0])
            if len(found) >= _LISTED:
                break
        return sorted(found)[:_LISTED]
