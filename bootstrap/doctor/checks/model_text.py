"""How the models checks speak of files: a few by name, the others by number, never one each."""

from __future__ import annotations

import os
from collections.abc import Sequence

from bootstrap.core.text import counted, named, typed
from bootstrap.doctor.facts.inventory import ModelFile

# In a finding's details, where programs read them.
MOST_PATHS = 50
MOST_PATH = 300
# In a command that one is to type.
MOST_TYPED = 5


def place(file: ModelFile) -> str:
    """The file as seen from beside its model folder: `models/loras/x.safetensors`."""
    return f"{file.root.name}/{file.path}"


def about(files: Sequence[ModelFile], one: str, many: str) -> str:
    """`models/vae/x.pt has` or `7 files (a, b, c, d, e and 2 more) have`."""
    if len(files) == 1:
        return f"{named([place(files[0])])} {one}"
    return f"{counted(len(files), 'file')} ({named([place(f) for f in files])}) {many}"


def delete(files: Sequence[ModelFile]) -> str:
    """The command that deletes them, the first few where there are many."""
    command = typed("rm", "--", *(f.full_path for f in files[:MOST_TYPED]))
    more = len(files) - MOST_TYPED
    return f"{command} (and the {counted(more, 'other')})" if more > 0 else command


def paths_of(files: Sequence[ModelFile]) -> list[str]:
    """Paths for a finding's details, bounded in number and length."""
    return [os.path.join(f.root, f.path)[-MOST_PATH:] for f in files[:MOST_PATHS]]
