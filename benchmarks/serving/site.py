"""Where workers run, all on local disk.

volume/            the demo volume, with these benchmarks' nodes
work-NAME/         local disk of one of our workers, which runs a copy of the volume's ComfyUI
peer-results/      results of the peer, which runs ComfyUI in place
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import scratch
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
        """Where our workers keep results."""
        return self.comfyui / "output"

    @property
    def peer_results(self) -> Path:
        """Where the peer's ComfyUI writes."""
        return self.folder / "peer-results"

    def work(self, name: str) -> Path:
        """Local disk for the worker of this name."""
        return self.folder / f"work-{name}"


@contextmanager
def furnished(demo: DemoVolume) -> Iterator[Site]:
    """A site, removed at the end."""
    with scratch() as folder:
        site = Site(folder, demo)
        demo.copy_to(site.volume)
        shutil.copytree(NODES, site.comfyui / "custom_nodes" / "benchmark_nodes")
        yield site
