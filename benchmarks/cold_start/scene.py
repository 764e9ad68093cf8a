"""The scene: volumes with ComfyUI, node packs and a model, and ComfyUI in an image.

volume-sd15/ComfyUI, volume-sd15/models/checkpoints/sd15.safetensors     (linked, not copied)
image/ComfyUI      the same code and packs on local disk, as if built into an image
seen/              where the current run's volume is mounted
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cold_start import pages
from benchmarks.cold_start.loads import Load
from benchmarks.machine import put_aside, scratch
from benchmarks.node_packs import write_node_packs
from benchmarks.simulated_volume import Delays, mounted
from demo.environment import REPOSITORY
from demo.volume import DemoVolume

CHECKPOINTS = Path("models") / "checkpoints"


@dataclass(frozen=True)
class Scene:
    """`delays` None: nothing is measured, the volume is a plain folder and the page cache is left
    alone."""

    folder: Path
    demo: DemoVolume
    delays: Delays | None

    @property
    def image(self) -> Path:
        """ComfyUI on local disk."""
        return self.folder / "image" / "ComfyUI"

    @property
    def work(self) -> Path:
        """Local disk for a worker; empty before each run."""
        return self.folder / "work"

    def volume(self, load: Load) -> Path:
        """The folder that is the volume of this load."""
        return self.folder / f"volume-{load.key}"

    @contextmanager
    def seen(self, load: Load, through_network: bool = True) -> Iterator[Path]:
        """The volume as a worker sees it: freshly mounted, nothing that a start reads in memory."""
        put_aside(self.work, self.folder)
        self.work.mkdir()
        if self.delays is not None:
            self._forget(load)
        if not through_network or self.delays is None:
            yield self.volume(load)
            return
        with mounted(self.volume(load), self.folder / "seen", self.delays) as volume:
            yield volume.mountpoint

    def _forget(self, load: Load) -> None:
        comfyui_env, worker_env = self.demo.python.parent.parent, Path(sys.prefix)
        code = [REPOSITORY / "handler", REPOSITORY / "bootstrap", comfyui_env, worker_env]
        pages.forget([self.volume(load), self.image, *code])
        if load.file and (left := pages.share_in_memory(load.file)) > 0.01:
            raise RuntimeError(f"{left:.0%} of {load.file} could not be dropped from memory")

    def add_copies(self, load: Load, count: int) -> list[str]:
        """More names for the load's model; seen through the mount, each is a separate file."""
        assert load.file is not None
        folder = self.volume(load) / CHECKPOINTS
        names = [f"{load.key}-{i}{load.file.suffix}" for i in range(count)]
        for name in names:
            _link(load.file, folder / name)
        return names


@contextmanager
def furnished(
    demo: DemoVolume, loads: Sequence[Load], delays: Delays | None, packs: int, files: int
) -> Iterator[Scene]:
    """A scene, removed at the end."""
    with scratch() as folder:
        scene = Scene(folder, demo, delays)
        for load in loads:
            _furnish(scene.volume(load), demo, [load.file] if load.file else [], packs, files)
        _furnish(scene.image.parent, demo, [], packs, files)
        yield scene


def _furnish(
    volume: Path, demo: DemoVolume, checkpoints: Iterable[Path], packs: int, files: int
) -> None:
    demo.copy_to(volume)
    write_node_packs(volume / "ComfyUI" / "custom_nodes", packs, files)
    (volume / CHECKPOINTS).mkdir(parents=True)
    for path in checkpoints:
        _link(path, volume / CHECKPOINTS / path.name)
    for name in ("checkpoints", "vae_approx"):
        # As the worker links them, so that ComfyUI finds the models without a worker.
        place = volume / "ComfyUI" / "models" / name
        shutil.rmtree(place, ignore_errors=True)  # holds an empty file that says what goes there
        place.symlink_to(Path("..", "..", "models", name))


def _link(source: Path, place: Path) -> None:
    try:
        os.link(source, place)
    except OSError:  # another file system
        shutil.copyfile(source, place)
