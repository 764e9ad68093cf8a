"""What `gather_volume` found out about a volume, as frozen data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from bootstrap.core.files import Folder, Trouble
from bootstrap.core.temp_names import Leftover
from bootstrap.environment import Venv
from bootstrap.facts.model_paths import ModelPath
from bootstrap.facts.volume_disk import Access, Space, Writing
from bootstrap.facts.volume_links import LinkFact
from bootstrap.facts.volume_places import Place, Stray
from bootstrap.volume.layout import Mount

# Of each kind of thing so many are told; a diagnostics reply has room for 1 MB in all.
MOST_SHOWN = 50


class State(str, Enum):
    """What is at the volume's path. `BAD` is what cannot be asked; see `trouble`."""

    FOLDER = "folder"
    MISSING = "missing"
    FILE = "file"
    BAD = "bad"


@dataclass(frozen=True)
class Models:
    """`homes` are the models folders there are (the volume's own first), `missing` the usual
    categories that none has. `strays` lie outside of them, `wrong_case` are misspelt."""

    homes: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    strays: tuple[Stray, ...] = ()
    wrong_case: tuple[Stray, ...] = ()


@dataclass(frozen=True)
class VolumeFacts:
    """What was seen; fields behind a silence or a failure keep their defaults.

    `state` is None when not even the root answered within `silent_after` seconds. `comfyui` is
    the ComfyUI that will run (`comfyui_real` without links), None when its main.py is gone.
    `expected` is the listing of `<root>/ComfyUI` (None when there is nothing), `places` are other
    ComfyUIs. `user` is this process's user id; `configured` that VOLUME_PATH names the root.
    """

    root: str
    real: str = ""
    silent_after: float | None = None
    state: State | None = None
    trouble: Trouble | None = None
    mount: Mount | None = None
    top: Folder | None = None
    space: Space | None = None
    writing: Writing | None = None
    user: int = 0
    configured: bool = False
    access: tuple[Access, ...] = ()
    comfyui: str | None = None
    comfyui_real: str = ""
    comfyui_on_volume: bool = False
    expected: Folder | None = None
    places: tuple[Place, ...] = ()
    models: Models = Models()
    links: tuple[LinkFact, ...] = ()
    venvs: tuple[Venv, ...] = ()
    model_paths: tuple[ModelPath, ...] = ()
    leftovers: tuple[Leftover, ...] = ()

    @property
    def mounted(self) -> bool:
        """Is the root itself a mount, or a folder on a network's?"""
        if self.mount is None:
            return True  # nobody knows, so nobody complains
        return self.mount.network or self.mount.point == self.real

    def as_dict(self) -> dict[str, Any]:
        """The facts as JSON-ready data of bounded size; names that are no UTF-8 are escaped."""
        data: dict[str, Any] = _clean(asdict(self))
        data["mounted"] = self.mounted
        data["link_count"] = len(self.links)
        data["leftover_count"] = len(self.leftovers)
        return data


def _clean(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _clean(item) for key, item in value.items()}
    if isinstance(value, frozenset):
        return _clean(sorted(value))
    if isinstance(value, (list, tuple)):
        return [_clean(item) for item in value[:MOST_SHOWN]]
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return value
