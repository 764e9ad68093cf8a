"""Copies of results in `ComfyUI/output/` on the volume: complete or not there, and for good."""

from __future__ import annotations

import threading
import uuid
from contextlib import suppress
from pathlib import Path

from bootstrap.config import Settings
from bootstrap.core.files import publish_copy
from bootstrap.volume import Layout
from handler.blocking import TimeUp
from handler.volume_record import VolumeRecord
from handler.volume_watchdog import VolumeWatchdog

_RECORD_SECONDS = 30.0


class NotSaved(Exception):
    """A file is not on the volume; `str()` is the reason."""


class VolumeStore:
    """Saves files for one worker. Paths it gives are relative to the volume, which is mounted
    elsewhere on a Pod."""

    def __init__(self, settings: Settings, layout: Layout, volume: VolumeWatchdog) -> None:
        self._layout = layout
        self._volume = volume
        self._record = VolumeRecord(
            layout.output, uuid.uuid4().hex, settings.keep_outputs_days, settings.keep_outputs_gb
        )
        self._lock = threading.Lock()
        self._new: list[Path] = []

    async def save(self, local: Path, subfolder: Path, name: str, seconds: float) -> str:
        """Copy a file to `subfolder`/`name`; its path on the volume. Raises NotSaved, after
        `seconds` at the latest."""
        folder = self._layout.output
        try:
            path = await self._volume.call(
                lambda: self._publish(local, folder / subfolder, name), seconds
            )
        except OSError as problem:
            why = problem.strerror or str(problem)
        except TimeUp:
            why = f"that took more than {seconds:.0f} s"
        else:
            return str(path.relative_to(self._layout.root))
        raise NotSaved(f"{local.name} could not be kept in {folder}: {why}")

    async def delete(self, path: str) -> None:
        """Remove a file that `save` has just saved. One that cannot be removed stays."""
        saved = self._layout.root / path
        with self._lock:
            self._new = [new for new in self._new if new != saved]
        with suppress(OSError, TimeUp):
            await self._volume.call(lambda: saved.unlink(missing_ok=True), _RECORD_SECONDS)

    async def flush_record(self) -> None:
        """Record what was saved since the last time, and enforce the limits. A volume that fails
        now only means that these files are never removed."""
        with self._lock:
            new, self._new = self._new, []
        with suppress(OSError, TimeUp):
            await self._volume.call(lambda: self._record.add(new), _RECORD_SECONDS)
            self._record.sweep_if_due()

    def _publish(self, local: Path, folder: Path, name: str) -> Path:
        if not self._layout.root.is_dir():
            raise FileNotFoundError(f"there is no volume at {self._layout.root}")
        path = publish_copy(local, folder, name)
        with self._lock:
            self._new.append(path)
        return path


def place_of(local: Path, output: Path, mark: str) -> tuple[Path, str]:
    """(subfolder, name) of a file in ComfyUI's own `output` folder once it is kept."""
    return local.parent.relative_to(output), marked(local.name, mark)


def marked(name: str, mark: str) -> str:
    """`name` with the job's mark before its extension: `a_00001_.png` → `a_00001_MARK.png`."""
    path = Path(name)
    stem, suffix = path.stem, path.suffix
    return f"{stem}{'' if stem.endswith('_') else '_'}{mark}{suffix}"
