"""Produced files -> entries of the reply, and copies on the volume that nobody can overwrite.

ComfyUI numbers its files by listing its output folder, so two workers that share one overwrite
each other's `ComfyUI_00001_.png`. It therefore writes to local disk; each job's files are copied
to `ComfyUI/output/` on the volume under names that carry the job's mark, and appear there complete
or not at all.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from bootstrap.publish import publish_copy
from bootstrap.volume import Layout
from bootstrap.workdir import WorkDir
from handler.errors import JobError
from handler.outputs import Produced, ProducedFile, ProducedText


class Delivery:
    """Delivers the results of one worker's jobs; paths in replies are relative to the volume,
    which is mounted elsewhere on a Pod. Calls block on disk; use them in a thread."""

    def __init__(self, work: WorkDir, layout: Layout) -> None:
        self._work = work
        self._layout = layout
        self._output = Path(os.path.realpath(work.output))
        self._seen: dict[Path, tuple[int, int] | None] = {}

    def deliver(
        self, produced: Iterable[Produced], mark: str
    ) -> tuple[list[dict[str, Any]], list[str]]:
        """Reply entries for what a job produced, in order, and warnings.

        Raises JobError when files were reported and not one of them is on disk.
        """
        entries: list[dict[str, Any]] = []
        warnings: list[str] = []
        missing: list[str] = []
        for item in produced:
            if isinstance(item, ProducedText):
                entries.append({"node_id": item.node_id, "kind": "text", "text": item.text})
                continue
            local = self._local(item)
            if local is None:
                missing.append(item.filename)
                continue
            entries.append(self._entry(item, local, mark, warnings))
        if missing and not entries:
            raise _missing(missing)
        warnings += [f"{name} was reported by ComfyUI but is not on disk" for name in missing]
        return entries, warnings

    def keep_rest(self, mark: str) -> tuple[list[str], list[str]]:
        """Copy files that nodes wrote without reporting them (saved models, say) to the volume.

        Returns their paths on the volume, and warnings.
        """
        kept: list[str] = []
        warnings: list[str] = []
        for local in _files_below(self._output):
            if self._seen.get(local) == _stamp(local):
                continue
            path = self._keep(local, mark, warnings)
            if path is not None:
                kept.append(path)
        return kept, warnings

    def _entry(
        self, item: ProducedFile, local: Path, mark: str, warnings: list[str]
    ) -> dict[str, Any]:
        content = local.read_bytes()
        entry: dict[str, Any] = {
            "filename": marked(item.filename, mark),
            "node_id": item.node_id,
            "kind": item.kind,
            "type": item.type,
            "mime_type": item.mime_type,
            "size": len(content),
        }
        if item.type == "output":
            path = self._keep(local, mark, warnings)
            if path is not None:
                entry.update(filename=Path(path).name, path=path)
        field = "image" if item.kind == "image" else "data"
        entry[field] = base64.b64encode(content).decode("ascii")
        return entry

    def _keep(self, local: Path, mark: str, warnings: list[str]) -> str | None:
        """Copy one file of our output folder to the same place in the volume's; its path there,
        or None with a warning."""
        kept = self._layout.output
        subfolder = local.parent.relative_to(self._output)
        try:
            if not self._layout.root.is_dir():
                raise FileNotFoundError(f"there is no volume at {self._layout.root}")
            path = publish_copy(local, kept / subfolder, marked(local.name, mark))
        except OSError as problem:
            why = problem.strerror or problem
            warnings.append(f"{local.name} could not be kept in {kept}: {why}")
            return None
        self._seen[local] = _stamp(local)
        return str(path.relative_to(self._layout.root))

    def _local(self, item: ProducedFile) -> Path | None:
        """The file ComfyUI reported; None when it is gone or lies outside ComfyUI's folders."""
        folders = {"output": self._work.output, "temp": self._work.temp, "input": self._work.input}
        base = folders.get(item.type)
        if base is None:
            return None
        root = Path(os.path.realpath(base))
        path = Path(os.path.realpath(root / item.subfolder / item.filename))
        return path if path.is_relative_to(root) and path.is_file() else None


def marked(name: str, mark: str) -> str:
    """`name` with the job's mark before its extension: `a_00001_.png` → `a_00001_MARK.png`."""
    stem, suffix = os.path.splitext(name)
    return f"{stem}{'' if stem.endswith('_') else '_'}{mark}{suffix}"


def _files_below(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        for name in sorted(names):
            path = Path(parent) / name
            if path.is_file():  # no sockets, no links that lead nowhere
                yield path


def _stamp(path: Path) -> tuple[int, int] | None:
    """What changes when the file does; None when it is gone."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _missing(names: list[str]) -> JobError:
    return JobError(
        "job.result_missing",
        f"ComfyUI reported {', '.join(names[:5])}, but no such file is on disk.",
        "Send the job again; if it stays, a custom node saves somewhere else than it says.",
        files=names,
    )
