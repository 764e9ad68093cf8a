"""Copies of results in `ComfyUI/output/` on the volume: complete or not there, and for good."""

from __future__ import annotations

import threading
import uuid
from contextlib import suppress
from pathlib import Path

from bootstrap.config import Settings
from bootstrap.core.files import publish_copy
from bootstrap.volume import Layout
from handler.volume_pulse import Pulse
from handler.volume_record import VolumeRecord


class NotKept(Exception):
    """A file is not on the volume; `str()` is the reason."""


class Keeper:
    """Keeps files for one worker. Paths it gives are relative to the volume, which is mounted
    elsewhere on a Pod. May be used by several threads."""

    def __init__(self, settings: Settings, layout: Layout) -> None:
        self._layout = layout
        self._pulse = Pulse(layout.root)
        self._record = VolumeRecord(
            layout.output, uuid.uuid4().hex, settings.keep_outputs_days, settings.keep_outputs_gb
        )
        self._lock = threading.Lock()
        self._new: list[Path] = []

    def keep(self, local: Path, subfolder: Path, name: str) -> str:
        """Copy a file to `subfolder`/`name`; its path on the volume. Raises NotKept."""
        kept = self._layout.output

        def publish() -> Path:
            if not self._layout.root.is_dir():
                raise FileNotFoundError(f"there is no volume at {self._layout.root}")
            return publish_copy(local, kept / subfolder, name)

        try:
            path = self._pulse.attended(publish)
        except OSError as problem:
            why = problem.strerror or problem
            raise NotKept(f"{local.name} could not be kept in {kept}: {why}") from None
        with self._lock:
            self._new.append(path)
        return str(path.relative_to(self._layout.root))

    def take_back(self, path: str) -> None:
        """Remove a file that `keep` has just kept. One that cannot be removed stays."""
        kept = self._layout.root / path
        with self._lock:
            self._new = [new for new in self._new if new != kept]
        with suppress(OSError):
            self._pulse.attended(lambda: kept.unlink(missing_ok=True))

    def write_down(self) -> None:
        """Record what was kept since the last time, and see to limits. A volume that fails now
        only means that these files are never removed."""
        with self._lock:
            new, self._new = self._new, []
        try:
            self._pulse.attended(lambda: self._record.add(new))
        except OSError:
            return
        self._record.sweep_if_due()


def place_of(local: Path, output: Path, mark: str) -> tuple[Path, str]:
    """(subfolder, name) of a file in ComfyUI's own `output` folder once it is kept."""
    return local.parent.relative_to(output), marked(local.name, mark)


def marked(name: str, mark: str) -> str:
    """`name` with the job's mark before its extension: `a_00001_.png` → `a_00001_MARK.png`."""
    path = Path(name)
    stem, suffix = path.stem, path.suffix
    return f"{stem}{'' if stem.endswith('_') else '_'}{mark}{suffix}"
