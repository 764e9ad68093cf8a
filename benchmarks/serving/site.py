"""Where workers run: a volume, and the same ComfyUI as if built into an image, both on local disk.

volume/            the demo volume, with this benchmark's nodes
image/ComfyUI      the same code and nodes
work-NAME/         local disk of a worker of ours
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from demo.cache import cache_folder
from demo.volume import DemoVolume

NODES = Path(__file__).with_name("nodes")


@dataclass(frozen=True)
class Site:
    """Folders below `folder`, which is removed at the end."""

    folder: Path
    demo: DemoVolume

    @property
    def volume(self) -> Path:
        return self.folder / "volume"

    @property
    def image(self) -> Path:
        """ComfyUI on local disk."""
        return self.folder / "image" / "ComfyUI"

    @property
    def front_end(self) -> Path:
        """What `--front-end-root` needs: ComfyUI's own front end is not installed here."""
        return self.folder / "front-end"

    def work(self, name: str) -> Path:
        """Local disk for the worker of this name."""
        return self.folder / f"work-{name}"


@contextmanager
def furnished(demo: DemoVolume) -> Iterator[Site]:
    """A site in the cache folder, which is on a disk and not in memory."""
    cache = cache_folder(os.environ)
    cache.mkdir(parents=True, exist_ok=True)
    site = Site(Path(tempfile.mkdtemp(prefix="benchmark-", dir=cache)), demo)
    try:
        site.front_end.mkdir()
        (site.front_end / "index.html").write_text("<!doctype html><title>none</title>")
        for place in (site.volume, site.image.parent):
            demo.copy_to(place)
            shutil.copytree(NODES, place / "ComfyUI" / "custom_nodes" / "benchmark_nodes")
        yield site
    finally:
        shutil.rmtree(site.folder, ignore_errors=True)
