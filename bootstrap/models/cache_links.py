"""Links to models of the platform's cache, in a folder on this worker's own disk.

The cache is this host's own: a link to it on the volume would lead nowhere elsewhere. How ComfyUI
is told of the folder: volume/extra_model_paths.py.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from bootstrap.models.manifest import canonical_place
from bootstrap.models.manifest_entry import ModelSpec
from bootstrap.volume.categories import category_of

if TYPE_CHECKING:  # what downloads need is imported only where something is wanted
    from bootstrap.models.context import Result


def shown_locally(spec: ModelSpec, folders: Mapping[str, str]) -> bool:
    """Would ComfyUI see this model in a local models folder with `folders`?"""
    category = category_of(PurePosixPath(spec.directory).parts[0])
    return category is not None and category.folders[0] in folders.values()


def link_cached(results: Sequence[Result], models: Path) -> list[Path]:
    """Link models of the platform's cache into the local folder `models`; the links made.

    A link that leads nowhere, since the worker went on at another host, is made anew.
    """
    made = []
    for result in results:
        if result.state != "cached" or result.path is None:
            continue
        place = models / canonical_place(result.spec)
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.is_symlink() and not place.exists():
            place.unlink()
        if not place.is_symlink() and not place.exists():
            place.symlink_to(result.path)
            made.append(place)
    return made


def cached_models(models: Path) -> list[dict[str, Any]]:
    """JSON-ready: the links in the local folder `models`, of which `from` is what they lead to and
    `size` is in bytes, None where that is gone."""
    links = sorted(path for path in models.rglob("*") if path.is_symlink())
    return [
        {
            "path": str(link.relative_to(models)),
            "size": link.stat().st_size if link.exists() else None,
            "from": os.readlink(link),
        }
        for link in links
    ]
