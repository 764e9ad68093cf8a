"""In which order what ComfyUI opens of a weights file is best read ahead.

Opening such a file makes a view of every tensor (`get_tensor` of huggingface/safetensors), and
with each the page at its beginning is looked at: in a checkpoint of Stable Diffusion 1.5 some 400
page faults one after another, each a round trip on a network volume, more than a second before a
weight is used. The same pages by several readers at once take a twentieth of that.

Then the weights: of a checkpoint the diffusion model's come first (`load_state_dict_guess_config`
in ComfyUI's comfy/sd.py), which in most files, sorted by name, lie last.
"""

from __future__ import annotations

import json
import mmap
import os
from typing import Any, NamedTuple

from bootstrap.models.weights_file import MOST_PARSED

_PAGE = mmap.PAGESIZE
# What nearly every checkpoint calls it (`unet_prefix_from_state_dict`, comfy/model_detection.py).
_DIFFUSION_MODEL = "model.diffusion_model."


class LoadOrder(NamedTuple):
    """`starts`: offsets in bytes, in order, of the pages in which the tensors begin. `first`: the
    offset in bytes at which the part begins that is loaded first."""

    starts: list[int]
    first: int


def load_order(descriptor: int, size: int) -> LoadOrder:
    """Of an open file of `size` bytes; what is no safetensors has no starts, and is loaded from
    its beginning. Raises OSError."""
    length = int.from_bytes(os.pread(descriptor, 8, 0), "little")
    if not 2 <= length <= min(MOST_PARSED, size - 8):
        return LoadOrder([], 0)
    try:
        begins = _begins(json.loads(os.pread(descriptor, length, 8)), 8 + length, size)
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError):
        return LoadOrder([], 0)
    starts = sorted({at // _PAGE * _PAGE for at in begins.values()})
    model = (at for name, at in begins.items() if name.startswith(_DIFFUSION_MODEL))
    return LoadOrder(starts, min(model, default=0))


def _begins(header: Any, data: int, size: int) -> dict[str, int]:
    """Where in the file each tensor begins; `data` is where the first of them may."""
    places = {
        name: data + int(tensor["data_offsets"][0])
        for name, tensor in header.items()
        if name != "__metadata__"
    }
    return {name: at for name, at in places.items() if 0 <= at < size}
