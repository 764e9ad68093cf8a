"""Where workers run, all on local disk.

volume/            the demo volume, with these benchmarks' nodes
work-NAME/         local disk of a worker of ours, which runs a copy of the volume's ComfyUI
peer-results/      of the worker compared with, which runs ComfyUI where it lies
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
    def comfyui(self) -> Path:
        return self.volume / "ComfyUI"

    @property
    def kept(self) -> Path:
        """Where workers of ours keep results."""
        return self.comfyui / "output"

    @property
    def peer_results(self) -> Path:
        """Where the other one's ComfyUI writes."""
        return self.folder / "peer-results"

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
        demo.copy_to(site.volume)
        shutil.copytree(NODES, site.comfyui / "custom_nodes" / "benchmark_nodes")
        yield site
    finally:
        shutil.rmtree(site.folder, ignore_errors=True)
